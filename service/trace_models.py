"""The trace models of a service: those that serve side by side, each loaded, swapped and unloaded by itself."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable
from pathlib import Path

from tapline.models.checkpoint import Checkpoint, CheckpointError, TracegramCheckpoint
from tapline.service.engines.devices import FIRST_GPU, parse_devices
from tapline.service.engines.trace_engine import TraceEngine
from tapline.service.inference.classifier import Classifier
from tapline.service.inference.repository import UnknownModelError
from tapline.service.inference.served import ModelBusyError
from tapline.service.inference.trace_encoders import TraceEncoder
from tapline.service.inference.trace_loading import fitting, load_beside, misfit
from tapline.service.log_lines import log
from tapline.service.metrics import Metrics
from tapline.service.process.supervisor import Part, Supervisor
from tapline.service.settings import Settings
from tapline.service.traces.capture_traces import CaptureTraces
from tapline.service.traces.live_model import Scored
from tapline.service.traces.live_traces import LiveTraces, TraceWatcher
from tapline.service.traces.room import Room
from tapline.service.traces.scorer import TraceScorer
from tapline.service.traces.window_state import StateError, TraceState, adopt_former
from tapline.service.traces.windows import EarlyRule, TraceWindows, WindowBounds

WATCH_SECONDS = 1.0
"""How often it is looked whether an engine for traces hangs."""

Swap = Callable[[], Awaitable[None]]
"""Lets classifiers encode for the models that serve now; returns once no flow comes that was encoded before."""


class TraceModels:
    """The trace models that serve by name, none at the least; `live` are their windows on live traffic, where there is
    any. Open windows of all models together have the room that the settings give."""

    def __init__(
        self,
        settings: Settings,
        directories: Iterable[Path],
        metrics: Metrics,
        supervisor: Supervisor,
        watcher: TraceWatcher,
        scored: Scored = lambda checkpoint, logits: None,
    ) -> None:
        """`directories`: of the models that serve from the start; `watcher` and `scored` as of `LiveTraces`.

        Raises:
            CheckpointError, EngineError: one cannot serve, or its window has no end where traffic has none.
            StateError: the state directory cannot be used.
        """
        self.scorers: dict[str, TraceScorer] = {}
        self.encoders: Callable[[], Iterable[TraceEncoder]] = lambda: ()
        self.live: LiveTraces | None = None
        self._settings = settings
        self._device = (parse_devices(settings.devices) or [FIRST_GPU])[0]  # trace models are small: one engine each
        self._metrics = metrics
        self._supervisor = supervisor
        self._watching: dict[str, Part] | None = None
        if settings.is_live:
            room = Room(settings.trace_subjects, settings.trace_open_flows)
            self.live = LiveTraces(metrics, room, watcher=watcher, scored=scored)
            if settings.state_dir is not None:
                adopt_former(settings.state_dir)
        for directory in directories:
            scorer = self.scorer(directory)
            self._refuse_endless(scorer.checkpoint)
            self._serve(scorer)

    def scorer(self, directory: Path) -> TraceScorer:
        """What scores with a checkpoint.

        Raises:
            CheckpointError, EngineError: it cannot serve.
        """
        settings = self._settings
        engine = load_beside(settings.engine, directory, settings.threads, settings.precision, self._device)
        return TraceScorer(engine, settings.engine_timeout_seconds)

    def warm_scorer(self, directory: Path) -> TraceScorer:
        """The same, once it has run.

        Raises:
            CheckpointError, EngineError: as there.
        """
        scorer = self.scorer(directory)
        scorer.warm_up()
        return scorer

    def warm_up(self) -> None:
        """Run each engine once."""
        for scorer in self.scorers.values():
            scorer.warm_up()

    def fitting(self, flows: Checkpoint, *, required: bool = False) -> list[TraceEngine]:
        """The engines that can read flows which `flows` classifies.

        Raises:
            CheckpointError: one cannot, and they were `required`.
        """
        engines = (scorer.engine for scorer in self.scorers.values())
        return fitting(engines, flows, required=required, warn=log.warning)

    def captured(self, classifier: Classifier, source: str, chosen: Collection[str] | None = None) -> CaptureTraces:
        """What collects the traces of a capture or a request, by the models whose flows the classifier encodes: by all
        of them, or by those `chosen`."""
        names = [engine.checkpoint.name for engine in classifier.trace_engines]
        found = [self.scorers[name] for name in names if name in self.scorers and (chosen is None or name in chosen)]
        return CaptureTraces(found, source, self.scorers.get)

    def check_chosen(self, names: Iterable[str]) -> None:
        """See whether trace models serve.

        Raises:
            UnknownModelError: one does not.
        """
        for name in names:
            if name not in self.scorers:
                loaded = ", ".join(sorted(self.scorers)) or "none"
                raise UnknownModelError(f"no trace model {name[:64]} is loaded, only {loaded}")

    async def load(self, scorer: TraceScorer, swap: Swap) -> int:
        """Let a model serve: beside the others, or in the place of another version of it. Gives how many live windows
        of that were closed.

        Raises:
            CheckpointError: its window has no end where traffic has none.
            ModelBusyError: another service keeps its state.
        """
        checkpoint = scorer.checkpoint
        self._refuse_endless(checkpoint)
        live = self.live.models.get(checkpoint.name) if self.live is not None else None
        if live is not None:
            live.open(self._windows(checkpoint, after=live.windows), scorer)
            self._show(scorer)
        else:
            try:
                self._serve(scorer)
            except StateError as error:
                raise ModelBusyError(str(error)) from None
        await swap()
        closed = await live.close_old() if live is not None else 0
        log.info("trace model loaded", model=checkpoint.name, version=checkpoint.version, closed_windows=closed)
        return closed

    async def unload(self, name: str, swap: Swap) -> None:
        """Serve a model no more; its open windows get their verdicts.

        Raises:
            UnknownModelError: it is not loaded.
        """
        self.check_chosen([name])
        del self.scorers[name]
        await swap()
        closed = await self.live.remove(name) if self.live is not None else 0
        if self._watching is not None:
            await self._supervisor.stop([self._watching.pop(name)])
        self._metrics.model.remove(name)
        log.info("trace model unloaded", model=name, closed_windows=closed)

    def start_watching(self) -> None:
        """Say of each model, from now on, when its engine hangs."""
        self._watching = {}
        for name in self.scorers:
            self._watch(name)

    @property
    def watching(self) -> list[Part]:
        """The parts that watch engines."""
        return list((self._watching or {}).values())

    def give_up(self) -> None:
        """Wait for no engine any more."""
        for scorer in self.scorers.values():
            scorer.thread.close()

    def misfits(self, flows: Checkpoint) -> str | None:
        """Why none of the models can read the flows of the default model; None where one can."""
        reasons = [misfit(scorer.checkpoint, flows) for scorer in self.scorers.values()]
        return next((reason for reason in reasons if reason), None) if all(reasons) else None

    def _serve(self, scorer: TraceScorer) -> None:
        """Let a model serve beside the others."""
        checkpoint = scorer.checkpoint
        if self.live is not None:
            directory = self._settings.state_dir
            state = TraceState(directory / checkpoint.name, checkpoint) if directory is not None else None
            self.live.add(self._windows(checkpoint), scorer, state)
        self._show(scorer)
        self._watch(checkpoint.name)

    def _show(self, scorer: TraceScorer) -> None:
        checkpoint = scorer.checkpoint
        self.scorers[checkpoint.name] = scorer
        self._metrics.model.labels(checkpoint.name).info({"version": checkpoint.version, "kind": checkpoint.kind})

    def _windows(self, checkpoint: TracegramCheckpoint, after: TraceWindows | None = None) -> TraceWindows:
        """The live windows of a model; `after` as of `TraceWindows`."""
        assert self.live is not None
        settings = self._settings
        bounds = WindowBounds(settings.trace_lateness_seconds, settings.trace_subjects, settings.trace_open_flows)
        captures = [str(settings.replay)] if settings.replay else []
        rule = EarlyRule(checkpoint.early.confidence, checkpoint.early.min_flows)
        return TraceWindows(checkpoint.trace, bounds, rule, captures, after, self.live.room)

    def _refuse_endless(self, checkpoint: TracegramCheckpoint) -> None:
        if checkpoint.trace.window_seconds == 0 and (self._settings.zeek or self._settings.interface):
            raise CheckpointError(
                f"the trace checkpoint {checkpoint.name} has no window (window_seconds 0), so that live traces would "
                "never end: give one with a window, or --traces none"
            )

    def _watch(self, name: str) -> None:
        if self._watching is not None:
            self._watching[name] = self._supervisor.start(f"trace engine {name}", lambda: self._check(name))

    async def _check(self, name: str) -> None:
        """Die where the engine of a model hangs, until it answers again; nothing else runs here."""
        while (scorer := self.scorers.get(name)) is not None:
            scorer.thread.check()
            for encoder in self.encoders():
                if any(checkpoint.name == name for checkpoint in encoder.checkpoints):
                    encoder.thread.check()
            await asyncio.sleep(WATCH_SECONDS)
