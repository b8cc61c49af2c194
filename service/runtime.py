"""One running service: its models and metrics, and what feeds them; command line and API run it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import structlog

from tapline.models.checkpoint import CheckpointError, TracegramCheckpoint, checkpoint_kind, read_checkpoint
from tapline.service.engines.loading import load_engines
from tapline.service.engines.thread import EngineThread
from tapline.service.engines.trace_engine import TraceEngine
from tapline.service.gpu import gpu_collector
from tapline.service.inference.batcher import Batcher
from tapline.service.inference.classifier import Classifier
from tapline.service.inference.repository import ZOO, Repository, UnknownModelError, newest_version, versions_directory
from tapline.service.inference.served import ModelBusyError, ServedModels
from tapline.service.inference.trace_loading import fitting, load_beside, load_traces, misfit, trace_directory
from tapline.service.inference.trial import try_out, try_out_aside
from tapline.service.live.pipeline import LivePipeline
from tapline.service.live.replay import Replay
from tapline.service.live.sensors import Sensors, Watcher
from tapline.service.metrics import Metrics
from tapline.service.process.supervisor import Supervisor
from tapline.service.settings import Settings
from tapline.service.sources.bus.transport import TlsFiles
from tapline.service.sources.zeek_process import zeeks_on
from tapline.service.traces.capture_traces import CaptureTraces
from tapline.service.traces.live_traces import LiveTraces, TraceWatcher
from tapline.service.traces.recent_traces import RecentTraces
from tapline.service.traces.scorer import TraceScorer
from tapline.service.traces.window_state import TraceState
from tapline.service.traces.windows import EarlyRule, TraceWindows, WindowBounds

log = structlog.get_logger()

WATCH_SECONDS = 1.0
"""How often it is looked whether the trace engine hangs."""

READY_QUEUE_SHARE = 0.9
"""The service says *not ready* while its queue is fuller than this."""


class BusyError(RuntimeError):
    """As many captures as are allowed are being worked on."""


class Service:
    """The models that serve, and what feeds them: requests, sensors, a replay.

    `watcher` is told of every live verdict; `log_dir` is where Zeeks of our own keep their logs.
    """

    def __init__(
        self,
        settings: Settings,
        watcher: Watcher = lambda flow, verdict: None,
        log_dir: Path | None = None,
        trace_watcher: TraceWatcher = lambda trace: None,
    ) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.supervisor = Supervisor(self.metrics)
        if settings.engine == "torch" and (gpus := gpu_collector()):
            self.metrics.registry.register(gpus)
        repository, self.default_model = find_models(settings)
        served = (trace_directory(settings.trace_checkpoint), repository.find(self.default_model))
        try_out(
            *(directory for directory in served if directory is not None),
            engine=settings.engine,
            precision=settings.precision,
            seconds=settings.model_trial_seconds,
        )
        self._trace_engine = load_traces(
            settings.trace_checkpoint, settings.engine, settings.threads, settings.precision
        )
        if self._trace_engine is not None:
            name = self._trace_engine.checkpoint.name
            if settings.trace_checkpoint is not None:
                repository.pinned[name] = versions_directory(settings.trace_checkpoint, name)
            elif not repository.versions(name):
                repository.pinned[name] = ZOO / name
        self.models = ServedModels(
            repository, self.default_model, self._try_out, self._load_engines, self._make_batcher, self.metrics
        )
        self.trace_scorer = self._scorer(self._trace_engine) if self._trace_engine else None
        self.traces = live_traces(settings, self.trace_scorer, self.metrics, trace_watcher)
        self.pipeline = LivePipeline(self.batcher, self.metrics, queue_flows=settings.live_queue_flows)
        self.zeeks = zeeks_on(settings.interface, log_dir)
        self.sensors = Sensors(
            [*settings.zeek, *(zeek.url for zeek in self.zeeks)],
            self.pipeline,
            self.metrics,
            tls=TlsFiles(settings.zeek_ca, settings.zeek_cert, settings.zeek_key),
            shards=settings.shards,
            spool_verdicts=settings.spool_verdicts,
            watcher=watcher,
            traces=self.traces,
            supervisor=self.supervisor,
        )
        self.replay: Replay | None = None
        if settings.replay:
            heads = self.classifier.heads
            self.replay = Replay(settings.replay, settings.speed, self.pipeline, watcher, self.traces, heads)
        self._uploads = 0

    @property
    def batcher(self) -> Batcher:
        """The batcher of the default model."""
        return self.models.batcher()

    @property
    def classifier(self) -> Classifier:
        """What the default model classifies with now."""
        return self.batcher.classifier

    def _load_engines(self, directory: Path) -> list[Classifier]:
        settings = self.settings
        engines = load_engines(settings.engine, directory, settings.threads, settings.precision)
        checkpoint = engines[0].checkpoint
        required = checkpoint.name == self.default_model and settings.trace_checkpoint is not None
        traces = fitting(self._trace_engine, checkpoint, required=required, warn=log.warning)
        seconds = settings.engine_timeout_seconds
        return [
            Classifier(
                engine,
                trace_engine=traces,
                ports=settings.ports == "on",
                thread=EngineThread(f"engine {number} of {checkpoint.name}", seconds),
            )
            for number, engine in enumerate(engines, 1)
        ]

    def _scorer(self, engine: TraceEngine) -> TraceScorer:
        return TraceScorer(engine, self.settings.engine_timeout_seconds)

    async def _try_out(self, directory: Path) -> None:
        """Raise CheckpointError or EngineError where a checkpoint cannot serve."""
        settings = self.settings
        await try_out_aside(directory, settings.engine, settings.precision, settings.model_trial_seconds)

    async def load_model(self, name: str, version: str | None = None) -> int | None:
        """Load a version of a flow model or of a trace model, the newest where none is given, and let it serve.

        There is one trace model: another takes its place, whatever its name. New flows open windows of the new one; the
        windows that are open get the verdicts of the old one and are closed.

        Returns:
            Of a trace model how many live windows were closed for it, None of a flow model.

        Raises:
            UnknownModelError, CheckpointError, EngineError, ModelBusyError: as of `ServedModels.load`; a trace model
                does not fit the default flow model, or traces are off.
        """
        directory = self.models.repository.find(name, version)
        if checkpoint_kind(directory) == "tracegram":
            return await self._load_trace_model(name, directory)
        await self.models.load(name, version)
        return None

    async def _load_trace_model(self, name: str, directory: Path) -> int:
        if self.trace_scorer is None:
            raise ModelBusyError("traces are off since the start: start again with --trace-checkpoint DIR")
        async with self.models.changing():
            await self._try_out(directory)
            scorer = await asyncio.to_thread(self._warm_scorer, directory)
            engine, checkpoint = scorer.engine, scorer.checkpoint
            if checkpoint.name != name:
                raise CheckpointError(f"{directory}: holds a model named {checkpoint.name}, expected {name}")
            fitting(engine, self.classifier.checkpoint, required=True, warn=log.warning)
            if self.traces is not None:
                refuse_endless(self.settings, checkpoint)
            self._trace_engine, self.trace_scorer = engine, scorer
            if self.traces is not None:
                windows = trace_windows(self.settings, checkpoint, after=self.traces.windows)
                self.traces.open(windows, self.trace_scorer)
            await self.models.replace_classifiers(self._retraced)
            closed = 0
            if self.traces is not None:
                await self.pipeline.settle(self.settings.shutdown_seconds)
                closed = await self.traces.close_old()
            log.info("trace model loaded", model=name, version=checkpoint.version, closed_windows=closed)
        return closed

    def _warm_scorer(self, directory: Path) -> TraceScorer:
        settings = self.settings
        scorer = self._scorer(load_beside(settings.engine, directory, settings.threads, settings.precision))
        scorer.warm_up()
        return scorer

    def _retraced(self, classifier: Classifier) -> Classifier:
        """The same classifier for the trace model that serves now, where that can read its flows."""
        return classifier.with_traces(
            fitting(self._trace_engine, classifier.checkpoint, required=False, warn=log.warning)
        )

    def _make_batcher(self, classifiers: list[Classifier]) -> Batcher:
        return Batcher(
            classifiers,
            self.metrics,
            max_batch_size=self.settings.max_batch_size,
            max_batch_tokens=self.settings.max_batch_tokens,
            max_queue_delay_ms=self.settings.max_queue_delay_ms,
            max_queue_size=self.settings.max_queue_size,
            supervisor=self.supervisor,
        )

    def capture_traces(self, classifier: Classifier, name: str) -> CaptureTraces | None:
        """What collects the traces of a capture or a request; None where the model's flows make none."""
        if self.trace_scorer is None or classifier.trace_engine is None:
            return None
        return CaptureTraces(self.trace_scorer, name, lambda: self.trace_scorer)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Warm up, serve, then drain within the limit."""
        if self.trace_scorer is not None:
            await asyncio.to_thread(self.trace_scorer.warm_up)
        await self.models.start()
        try:
            for name in self.settings.load_models:
                await self.load_model(name)
            async with self.sensors.running(self.settings.shutdown_seconds):
                feeding = [self.supervisor.start(f"zeek on {zeek.interface}", zeek.run) for zeek in self.zeeks]
                if self.replay is not None:
                    feeding.append(self.supervisor.start("replay", self.replay.run))
                if self.trace_scorer is not None:
                    feeding.append(self.supervisor.start("trace engine", self._watch_trace_engine))
                try:
                    yield
                finally:
                    asyncio.get_running_loop().call_later(2 * self.settings.shutdown_seconds, self._give_up_engines)
                    await self.supervisor.stop(feeding)
        finally:
            await self.models.stop(self.settings.shutdown_seconds)
            self._give_up_engines()

    async def _watch_trace_engine(self) -> None:
        """Die where the trace engine hangs, until it answers again; nothing else runs here."""
        while self.trace_scorer is not None:
            self.trace_scorer.thread.check()
            await asyncio.sleep(WATCH_SECONDS)

    def _give_up_engines(self) -> None:
        """Wait for no engine any more."""
        self.models.give_up()
        if self.trace_scorer is not None:
            self.trace_scorer.thread.close()

    def no_live_traces(self) -> str | None:
        """Why there are no verdicts on live traces, or None."""
        if self.trace_scorer is None:
            return "there is no trace checkpoint: start with --trace-checkpoint DIR"
        if self.traces is None:
            return "there is no live traffic: start with --zeek, --interface or --replay"
        return misfit(self.trace_scorer.checkpoint, self.classifier.checkpoint)

    def not_ready(self) -> str | None:
        """Why no work should be sent here now, or None."""
        if down := self.supervisor.down() or next((zeek.failure for zeek in self.zeeks if zeek.is_down), None):
            return down
        waiting = self.batcher.waiting_flows
        if waiting > READY_QUEUE_SHARE * self.batcher.max_queue_size:
            return f"{waiting} flows are waiting"
        if self.batcher.failing:
            return "the engine fails on every flow"
        if self.pipeline.queue_share > READY_QUEUE_SHARE:
            return "the queue of live flows is full"
        if self._uploads >= self.settings.max_uploads:
            return f"{self._uploads} captures are being worked on"
        return None

    @contextlib.contextmanager
    def upload_slot(self) -> Iterator[None]:
        """Hold one of the places for captures.

        Raises:
            BusyError: all are taken.
        """
        if self._uploads >= self.settings.max_uploads:
            self.metrics.failures.labels("REJECTED").inc()
            raise BusyError(f"{self._uploads} captures are being worked on: come again")
        self._uploads += 1
        self.metrics.uploads_active.set(self._uploads)
        try:
            yield
        finally:
            self._uploads -= 1
            self.metrics.uploads_active.set(self._uploads)


def live_traces(
    settings: Settings, scorer: TraceScorer | None, metrics: Metrics, watcher: TraceWatcher
) -> LiveTraces | None:
    """The traces of the live path; None where there is no trace checkpoint, or no live path.

    Raises:
        CheckpointError: the checkpoint's window has no end.
        StateError: the state directory cannot be used.
    """
    if scorer is None or not settings.is_live:
        return None
    checkpoint = scorer.checkpoint
    refuse_endless(settings, checkpoint)
    windows = trace_windows(settings, checkpoint)
    state = TraceState(settings.state_dir, checkpoint) if settings.state_dir else None
    return LiveTraces(windows, scorer, metrics, RecentTraces(settings.trace_history), state=state, watcher=watcher)


def trace_windows(
    settings: Settings, checkpoint: TracegramCheckpoint, after: TraceWindows | None = None
) -> TraceWindows:
    """The windows of the live path for a trace checkpoint; `after` as of `TraceWindows`."""
    bounds = WindowBounds(settings.trace_lateness_seconds, settings.trace_subjects, settings.trace_open_flows)
    captures = [str(settings.replay)] if settings.replay else []
    rule = EarlyRule(checkpoint.early.confidence, checkpoint.early.min_flows)
    return TraceWindows(checkpoint.trace, bounds, rule, captures, after)


def refuse_endless(settings: Settings, checkpoint: TracegramCheckpoint) -> None:
    """Refuse a checkpoint whose window has no end where traffic has none.

    Raises:
        CheckpointError: so it is.
    """
    if checkpoint.trace.window_seconds == 0 and (settings.zeek or settings.interface):
        raise CheckpointError(
            f"the trace checkpoint {checkpoint.name} has no window (window_seconds 0), so that live traces would never "
            "end: give one with a window, or --trace-checkpoint none"
        )


def find_models(settings: Settings) -> tuple[Repository, str]:
    """The repository of the settings, and the name of the model that serves by default.

    Raises:
        CheckpointError: the default model is not there, or not a checkpoint.
    """
    root = settings.repository or ZOO
    if settings.checkpoint is not None:
        name = read_checkpoint(newest_version(settings.checkpoint), needs=()).name
        return Repository(root, {name: settings.checkpoint}), name
    repository = Repository(root)
    try:
        repository.find(settings.model)
    except UnknownModelError as error:
        raise CheckpointError(f"{root}: {error}") from None
    return repository, settings.model
