"""The traces of live traffic: each flow to every trace model, the verdicts of all to sinks and to those who ask."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from tapline.models.flow import Flow
from tapline.service.inference.classifier import FlowOutcome
from tapline.service.metrics import Metrics
from tapline.service.process.supervisor import Supervisor
from tapline.service.traces.live_model import LiveModel, Scored
from tapline.service.traces.room import Room
from tapline.service.traces.scorer import TraceScorer
from tapline.service.traces.trace_verdict import TraceVerdict, traced
from tapline.service.traces.window_state import TraceState
from tapline.service.traces.windows import TraceWindows

TraceWatcher = Callable[[TraceVerdict], None]


class LiveTraces:
    """The live trace models by name, each with windows and a task of its own; from `start` on others may be added. Used
    in one event loop. Open windows of all of them share one `room`.
    """

    def __init__(
        self,
        metrics: Metrics,
        room: Room,
        *,
        watcher: TraceWatcher = lambda trace: None,
        scored: Scored = lambda checkpoint, logits: None,
    ) -> None:
        """`watcher` is told of every verdict, `scored` as of `LiveModel`."""
        self.room = room
        self.models: dict[str, LiveModel] = {}
        self._metrics = metrics
        self._watcher = watcher
        self._scored = scored
        self._sinks: dict[str, TraceWatcher] = {}
        self._supervisor: Supervisor | None = None

    @property
    def open_windows(self) -> int:
        """Windows that are open, of all models."""
        return sum(model.open_windows for model in self.models.values())

    @property
    def open_flows(self) -> int:
        """Flows in them; one that is open in the windows of two models counts twice."""
        return sum(model.open_flows for model in self.models.values())

    def add(self, windows: TraceWindows, scorer: TraceScorer, state: TraceState | None = None) -> LiveModel:
        """Take flows for one more model; `state` as of `LiveModel`."""
        model = LiveModel(windows, scorer, self._metrics, self._deliver, state=state, scored=self._scored)
        self.models[model.name] = model
        if self._supervisor is not None:
            model.start(self._supervisor)
        return model

    async def remove(self, name: str) -> int:
        """Take no more flows for a model; its open windows get their verdicts. Gives how many those were."""
        model = self.models.pop(name)
        closed = await model.end()
        if self._supervisor is not None and model.part is not None:
            self._supervisor.forget(model.part)
        return closed

    def deliver_to(self, source: str, sink: TraceWatcher) -> None:
        """Tell `sink` of the verdicts on traces of a source."""
        self._sinks[source] = sink

    def take(self, source: str, flow: Flow, outcome: FlowOutcome) -> None:
        """Take a flow of a source, with what the networks made of it."""
        by_name = {features.checkpoint.name: (features, kept) for features, kept in traced(flow, outcome)}
        for name, model in self.models.items():
            model.take(source, flow, *by_name.get(name, (None, None)))

    def start(self, supervisor: Supervisor) -> None:
        """Start to work; call once, in the event loop in which flows come."""
        self._supervisor = supervisor
        for model in self.models.values():
            model.start(supervisor)

    async def finish(self, source: str) -> None:
        """A source has ended: close its windows and deliver their verdicts."""
        await asyncio.gather(*(model.finish(source) for model in self.models.values()))

    async def save(self) -> None:
        """Write what is open to the state directory, where there is one."""
        await asyncio.gather(*(model.save() for model in self.models.values()))

    async def stop(self) -> None:
        """Keep what is open for the next run, or close and deliver it where nothing is kept. No flow may come after."""
        await asyncio.gather(*(model.stop() for model in self.models.values()))

    def _deliver(self, source: str, trace: TraceVerdict) -> None:
        self._watcher(trace)
        sink = self._sinks.get(source)
        if sink is not None:
            sink(trace)
