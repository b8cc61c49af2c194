"""The traces of one capture, or of one request's flows: what `tapline classify` and the REST API collect them with."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from tapline.models.checkpoint import TracegramCheckpoint
from tapline.models.flow import Flow
from tapline.service.inference.classifier import FlowOutcome
from tapline.service.traces.scorer import TraceScorer
from tapline.service.traces.trace_verdict import TraceVerdict
from tapline.service.traces.windows import TraceWindows, WindowBounds, WindowCounts

MAX_OPEN_FLOWS = 100_000
"""Flows of open windows of one capture; beyond, the windows that end first are closed before the capture ends."""

BATCH_TRACES = 64
_BOUNDS = WindowBounds(max_subjects=MAX_OPEN_FLOWS, max_open_flows=MAX_OPEN_FLOWS, max_jobs=2 * MAX_OPEN_FLOWS)


@dataclass(frozen=True)
class _Part:
    """What one trace model embedded of the flows, and what scores it."""

    windows: TraceWindows
    scorer: TraceScorer


class CaptureTraces:
    """Takes the flows of one source as they come, gives its traces: some on the way where there are very many flows,
    the rest after `finish`. Memory is bounded, whatever the size of the capture.

    Where the trace model is swapped meanwhile, flows from then on make traces of their own, which the new one scores.
    """

    def __init__(
        self, scorer: TraceScorer, source: str, current: Callable[[], TraceScorer | None] = lambda: None
    ) -> None:
        """`current` gives the scorer that serves when it is asked."""
        self.failed = 0
        self._source = source
        self._current = current
        self._parts = [_Part(TraceWindows(scorer.checkpoint.trace, _BOUNDS, captures=[source]), scorer)]

    @property
    def checkpoint(self) -> TracegramCheckpoint:
        """What says what the traces are, and classifies them; the first, where there are several."""
        return self._parts[0].scorer.checkpoint

    @property
    def counts(self) -> WindowCounts:
        """What became of flows and windows."""
        return self._parts[0].windows.counts  # one account for all parts

    def add(self, flow: Flow, outcome: FlowOutcome) -> None:
        """Take a flow; its packet heads are forgotten: nobody needs them after this."""
        if outcome.embedding is not None:
            part = self._part(outcome.embedded_for)
            if part is None:
                self.counts.late += 1
            else:
                part.windows.add(self._source, flow, outcome, time.time())
        flow.heads, flow.heads_kind, flow.link_type = [], "none", 0

    def _part(self, checkpoint: TracegramCheckpoint | None) -> _Part | None:
        """Where flows go that were embedded for that checkpoint; None where it serves no more."""
        for part in self._parts:
            if checkpoint is None or part.scorer.checkpoint is checkpoint:
                return part
        scorer = self._current()
        if scorer is None or scorer.checkpoint is not checkpoint:
            return None
        after = self._parts[-1].windows
        windows = TraceWindows(scorer.checkpoint.trace, _BOUNDS, captures=[self._source], after=after)
        self._parts.append(_Part(windows, scorer))
        return self._parts[-1]

    def finish(self) -> None:
        """No more flows will come."""
        for part in self._parts:
            part.windows.close_all()

    def ready(self) -> list[TraceVerdict]:
        """Verdicts on the next windows that are over, about `BATCH_TRACES`; empty when none is left.

        A window on which the engine failed is counted in `failed` and has none.
        """
        for part in self._parts:
            while jobs := part.windows.take_jobs(BATCH_TRACES):
                scored = part.scorer.score_each(jobs)
                found = [trace for trace in scored if trace is not None]
                self.failed += len(scored) - len(found)
                if found:
                    return found
        return []
