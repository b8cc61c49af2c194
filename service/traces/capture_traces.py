"""The traces of one capture, or of one request's flows: what `tapline classify` and the REST API collect them with."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import msgspec

from tapline.models.checkpoint import TracegramCheckpoint
from tapline.models.flow import Flow
from tapline.service.inference.classifier import FlowOutcome
from tapline.service.inference.flow_features import FlowFeatures
from tapline.service.traces.scorer import TraceScorer
from tapline.service.traces.trace_verdict import TraceFlow, TraceVerdict, traced
from tapline.service.traces.windows import TraceWindows, WindowBounds, WindowCounts

MAX_OPEN_FLOWS = 100_000
"""Flows of open windows of one capture and one model; beyond, the windows that end first are closed before the capture
ends."""

BATCH_TRACES = 64
_BOUNDS = WindowBounds(max_subjects=MAX_OPEN_FLOWS, max_open_flows=MAX_OPEN_FLOWS, max_jobs=2 * MAX_OPEN_FLOWS)

Serving = Callable[[str], TraceScorer | None]
"""Gives the scorer of the trace model of a name that serves when it is asked, None where none does any more."""


@dataclass(frozen=True)
class _Version:
    """What one version of a trace model reads of the flows, and what scores it."""

    windows: TraceWindows
    scorer: TraceScorer


class TraceAccount(msgspec.Struct):
    """What became of flows and windows of one trace model, `model` by its name; the rest as of `WindowCounts`, and
    windows on which the engine `failed`."""

    model: str
    failed: int
    below_min_flows: int
    flows: int
    cut: int
    late: int
    unread: int


class ModelTraces:
    """The traces of one trace model. Where it is swapped meanwhile, flows from then on make traces of their own, which
    the new version scores."""

    def __init__(self, scorer: TraceScorer, source: str, serving: Serving) -> None:
        self.failed = 0
        self._source = source
        self._serving = serving
        self._versions = [_Version(TraceWindows(scorer.checkpoint.trace, _BOUNDS, captures=[source]), scorer)]

    @property
    def checkpoint(self) -> TracegramCheckpoint:
        """What says what the traces are, and classifies them; the first, where there are several."""
        return self._versions[0].scorer.checkpoint

    @property
    def counts(self) -> WindowCounts:
        """What became of flows and windows."""
        return self._versions[0].windows.counts  # one account for all versions

    def account(self) -> TraceAccount:
        """What became of all, once the last trace is out."""
        counts = self.counts
        return TraceAccount(
            self.checkpoint.name, self.failed, counts.below_min_flows, counts.flows, counts.cut, counts.late,
            counts.unread,
        )  # fmt: skip

    def add(self, flow: Flow, features: FlowFeatures, kept: TraceFlow | None) -> None:
        """Take a flow: what is `kept` of it for the version that reads its `features`."""
        if kept is None:
            self.counts.unread += 1
            return
        version = self._version(features.checkpoint)
        if version is None:
            self.counts.late += 1
        else:
            version.windows.add(self._source, flow, kept, time.time())

    def _version(self, checkpoint: TracegramCheckpoint) -> _Version | None:
        """Where flows go that a checkpoint reads; None where it serves no more."""
        for version in self._versions:
            if version.scorer.checkpoint is checkpoint:
                return version
        scorer = self._serving(checkpoint.name)
        if scorer is None or scorer.checkpoint is not checkpoint:
            return None
        after = self._versions[-1].windows
        windows = TraceWindows(scorer.checkpoint.trace, _BOUNDS, captures=[self._source], after=after)
        self._versions.append(_Version(windows, scorer))
        return self._versions[-1]

    def finish(self) -> None:
        """No more flows will come."""
        for version in self._versions:
            version.windows.close_all()

    def ready(self) -> list[TraceVerdict]:
        """Verdicts on the next windows that are over, about `BATCH_TRACES`; empty when none is left.

        A window on which the engine failed is counted in `failed` and has none.
        """
        for version in self._versions:
            while jobs := version.windows.take_jobs(BATCH_TRACES):
                scored = version.scorer.score_each(jobs)
                found = [trace for trace in scored if trace is not None]
                self.failed += len(scored) - len(found)
                if found:
                    return found
        return []


class CaptureTraces:
    """Takes the flows of one source as they come, gives its traces by each model: some on the way where there are very
    many flows, the rest after `finish`. Memory is bounded, whatever the size of the capture.
    """

    def __init__(self, scorers: Iterable[TraceScorer], source: str, serving: Serving = lambda name: None) -> None:
        """`serving`: to go on with another version where a model is swapped meanwhile."""
        self.models = [ModelTraces(scorer, source, serving) for scorer in scorers]
        self._by_name = {model.checkpoint.name: model for model in self.models}

    @property
    def checkpoints(self) -> Sequence[TracegramCheckpoint]:
        """Those of the models."""
        return [model.checkpoint for model in self.models]

    def add(self, flow: Flow, outcome: FlowOutcome) -> None:
        """Take a flow; its packet heads are forgotten: nobody needs them after this."""
        for features, kept in traced(flow, outcome):
            if (model := self._by_name.get(features.checkpoint.name)) is not None:
                model.add(flow, features, kept)
        flow.heads, flow.heads_kind, flow.link_type = [], "none", 0

    def finish(self) -> None:
        """No more flows will come."""
        for model in self.models:
            model.finish()

    def ready(self) -> list[TraceVerdict]:
        """Verdicts on the next windows that are over, of one model after the other; empty when none is left."""
        return next((found for model in self.models if (found := model.ready())), [])

    def accounts(self) -> list[TraceAccount]:
        """What became of the flows of each model's traces, once the last trace is out."""
        return [model.account() for model in self.models]
