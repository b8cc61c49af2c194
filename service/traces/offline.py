"""The traces of one capture, or of one request's flows: what `tapline classify` and the REST API collect them with."""

from __future__ import annotations

import time

from models.checkpoint import TracegramCheckpoint
from models.flow import Flow
from service.classifier import FlowOutcome
from service.traces.records import TraceVerdict
from service.traces.scorer import TraceScorer
from service.traces.windows import TraceWindows, WindowBounds, WindowCounts

MAX_OPEN_FLOWS = 100_000
"""Flows of open windows of one capture; beyond, the windows that end first are closed before the capture ends."""

BATCH_TRACES = 64
_BOUNDS = WindowBounds(max_subjects=MAX_OPEN_FLOWS, max_open_flows=MAX_OPEN_FLOWS, max_jobs=2 * MAX_OPEN_FLOWS)


class CaptureTraces:
    """Takes the flows of one source as they come, gives its traces: some on the way where there are very many flows,
    the rest after `finish`. Memory is bounded, whatever the size of the capture."""

    def __init__(self, scorer: TraceScorer, source: str) -> None:
        self.failed = 0
        self._scorer = scorer
        self._source = source
        self._windows = TraceWindows(scorer.checkpoint.trace, _BOUNDS, captures=[source])

    @property
    def checkpoint(self) -> TracegramCheckpoint:
        """What says what the traces are, and classifies them."""
        return self._scorer.checkpoint

    @property
    def counts(self) -> WindowCounts:
        """What became of flows and windows."""
        return self._windows.counts

    def add(self, flow: Flow, outcome: FlowOutcome) -> None:
        """Take a flow; its packet heads are forgotten: nobody needs them after this."""
        if outcome.embedding is not None:
            self._windows.add(self._source, flow, outcome, time.time())
        flow.heads, flow.heads_kind, flow.link_type = [], "none", 0

    def finish(self) -> None:
        """No more flows will come."""
        self._windows.close_all()

    def ready(self) -> list[TraceVerdict]:
        """Verdicts on the next windows that are over, about `BATCH_TRACES`; empty when none is left.

        A window on which the engine failed is counted in `failed` and has none.
        """
        while jobs := self._windows.take_jobs(BATCH_TRACES):
            scored = self._scorer.score_each(jobs)
            found = [trace for trace in scored if trace is not None]
            self.failed += len(scored) - len(found)
            if found:
                return found
        return []
