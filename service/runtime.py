"""One running service: its models and metrics, and what feeds them; command line and API run it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tapline.models.checkpoint import CheckpointError, checkpoint_kind, read_checkpoint, read_trace_checkpoint
from tapline.service.alerts.alert import Alert
from tapline.service.drift.drift_monitor import DriftMonitor
from tapline.service.drift.drift_state import DRIFT_DIRECTORY
from tapline.service.drift.model_drift import ModelDrift
from tapline.service.engines.devices import parse_devices
from tapline.service.gpu import gpu_collector
from tapline.service.inference.batcher import Batcher
from tapline.service.inference.classifier import Classifier
from tapline.service.inference.flow_network import Network
from tapline.service.inference.known_models import names_and_labels
from tapline.service.inference.network_messages import NetworkRecipe
from tapline.service.inference.network_opening import open_networks
from tapline.service.inference.repository import ZOO, Repository, UnknownModelError, newest_version, versions_directory
from tapline.service.inference.served import ServedModels
from tapline.service.inference.trace_loading import fitting, trace_directories
from tapline.service.inference.trial import try_out, try_out_aside
from tapline.service.jobs.jobs import Jobs
from tapline.service.live.kept_numbers import FILE_NAME as NUMBERS_FILE
from tapline.service.live.kept_numbers import KeptNumbers
from tapline.service.live.observer import Observer, Observers
from tapline.service.live.pipeline import LivePipeline
from tapline.service.live.replay import Replay
from tapline.service.live.sensors import Sensors
from tapline.service.live.verdict_stream import VerdictStream
from tapline.service.log_lines import log
from tapline.service.metrics import Metrics
from tapline.service.process.completion import to_its_end
from tapline.service.process.data_directory import DataDirectory
from tapline.service.process.supervisor import Supervisor
from tapline.service.settings import Settings
from tapline.service.sinks.outputs import Outputs
from tapline.service.sources.bus.transport import TlsFiles
from tapline.service.sources.zeek_options import zeek_arguments
from tapline.service.sources.zeek_process import ZeekLogs, zeeks_on
from tapline.service.trace_models import TraceModels

if TYPE_CHECKING:
    from tapline.service.alerts.alert_watch import AlertWatch
    from tapline.service.history.history import History


READY_QUEUE_SHARE = 0.9
"""The service says *not ready* while its queue is fuller than this."""


class BusyError(RuntimeError):
    """As many captures as are allowed are being worked on."""


class Service:
    """The models that serve, and what feeds them: requests, sensors, a replay.

    `observer` is told of every live verdict, beside the history.
    """

    def __init__(self, settings: Settings, observer: Observer | None = None) -> None:
        """
        Raises:
            CheckpointError, EngineError, StateError, TransportError: a model, the state or a sensor cannot be used.
            OutputError: an output cannot be used as it is set.
            DataDirectoryError, HistoryError: the data directory is in use, or the history cannot be.
            AlertRulesError: the alert rules have mistakes.
        """
        self.settings = settings
        self.metrics = Metrics()
        self.supervisor = Supervisor(self.metrics)
        if settings.engine == "torch" and (gpus := gpu_collector()):
            self.metrics.registry.register(gpus)
        self.alerts: AlertWatch | None = None
        repository, self.default_model = find_models(settings)
        if settings.alerts is not None:
            self.alerts = self._open_alerts(settings.alerts, lambda alert: told.alert(alert), repository)
        self.data = DataDirectory(settings.data_dir) if settings.history != "none" else None
        self.history = self._open_history()
        self.stream = VerdictStream(self.metrics)
        self.outputs = Outputs(settings.output, settings.data_dir, self.metrics)
        self.drift = self._open_drift()
        told = Observers(self.stream, self.history, self.outputs, self.alerts, self.drift, observer)
        directories = trace_directories(settings.traces, repository)
        try_out(
            *directories,
            repository.find(self.default_model),
            engine=settings.engine,
            precision=settings.precision,
            seconds=settings.model_trial_seconds,
        )
        self.trace_models = TraceModels(
            settings, directories, self.metrics, self.supervisor, told.trace, self.drift.logits
        )
        self._pin(repository, directories)
        self.models = ServedModels(
            repository, self.default_model, self._try_out, self._load_engines, self._make_batcher, self.metrics
        )
        self.trace_models.encoders = self.models.encoders
        self.traces = self.trace_models.live
        self.pipeline = LivePipeline(
            self.batcher,
            self.metrics,
            queue_flows=settings.live_queue_flows,
            deadline_seconds=settings.live_deadline_seconds,
            embedded=self.drift.embedding,
        )
        logs = ZeekLogs(settings.zeek_dir or settings.data_dir / "zeek", settings.zeek_logs_mb)
        self.zeeks = zeeks_on(settings.interface, logs, zeek_arguments(settings.zeek_script, settings.zeek_option))
        self.sensors = self._open_sensors(told)
        self.replay = self._open_replay(told)
        self.jobs = Jobs(settings, self.models, self.trace_models, self.metrics, self.supervisor)
        self._uploads = 0

    def _open_alerts(self, rules: Path, tell: Callable[[Alert], None], repository: Repository) -> AlertWatch:
        from tapline.service.alerts.alert_watch import AlertWatch  # with all that reads rules
        from tapline.service.alerts.rule_warnings import Known

        return AlertWatch(
            rules, tell, self.metrics,
            known=lambda: Known(*names_and_labels([repository, Repository(ZOO)], log.warning)),
        )  # fmt: skip

    def _open_drift(self) -> DriftMonitor:
        is_kept = self.settings.history != "none"
        directory = self.settings.data_dir / DRIFT_DIRECTORY if is_kept else None
        return DriftMonitor(self._model_directory, self.metrics, self._tell_drift, directory=directory)

    def _pin(self, repository: Repository, directories: Iterable[Path]) -> None:
        """Let trace models that were named, or that the repository lacks, be found where they lie."""
        for directory in directories:
            name = read_trace_checkpoint(directory, needs=()).name
            if self.settings.traces or not repository.versions(name):
                repository.pinned[name] = versions_directory(directory, name)

    def _open_replay(self, told: Observers) -> Replay | None:
        settings = self.settings
        if settings.replay is None:
            return None
        return Replay(settings.replay, settings.speed, self.pipeline, told, self.traces, lambda: self.classifier.heads)

    def _open_sensors(self, told: Observers) -> Sensors:
        settings = self.settings
        return Sensors(
            [*settings.zeek, *(zeek.url for zeek in self.zeeks)],
            self.pipeline,
            self.metrics,
            tls=TlsFiles(settings.zeek_ca, settings.zeek_cert, settings.zeek_key),
            shards=settings.shards,
            spool_verdicts=settings.spool_verdicts,
            observer=told,
            traces=self.traces,
            supervisor=self.supervisor,
            names={zeek.url: zeek.name for zeek in self.zeeks},
            numbers=KeptNumbers(settings.data_dir / NUMBERS_FILE) if settings.history != "none" else None,
        )

    def _open_history(self) -> History | None:
        settings = self.settings
        if settings.history == "none":
            return None
        from tapline.service.history.history import History  # imports a database, which a service without it spares

        return History(
            settings.history,
            settings.data_dir,
            self.metrics,
            days=settings.history_days,
            size_mb=settings.history_mb,
            content=settings.history_content,
        )

    def _model_directory(self, name: str, version: str) -> Path:
        """Where a model that serves lies; its directory need not bear the name of its version."""
        try:
            return self.models.repository.find(name, version)
        except UnknownModelError:
            return self.models.repository.find(name)

    def _tell_drift(self, drift: ModelDrift) -> None:
        """Tell of what a model sees now: the log and the alert rules; it is in metrics and on the pages already."""
        for measure in drift.drifted:
            log.info(
                "drift", model=drift.model, against=measure.against, distance=measure.distance, what=measure.reason
            )
        if self.alerts is not None:
            self.alerts.drift(drift)

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
        networks = self._networks(directory)
        checkpoint = networks[0].checkpoint
        traces = self.trace_models.fitting(
            checkpoint, required=checkpoint.name == self.default_model and bool(settings.traces)
        )
        return [
            Classifier(network, trace_engines=traces, ports=settings.ports == "on", cascade=settings.cascade == "on")
            for network in networks
        ]

    def _networks(self, directory: Path) -> Sequence[Network]:
        settings, deaths = self.settings, self.metrics.part_deaths
        return open_networks(
            NetworkRecipe(str(directory.absolute()), settings.engine, settings.threads, settings.precision),
            settings.engine_processes,
            parse_devices(settings.devices),
            settings.engine_timeout_seconds,
            lambda process: deaths.labels(process).inc(),
        )

    async def _try_out(self, directory: Path) -> None:
        """Raise CheckpointError or EngineError where a checkpoint cannot serve."""
        settings = self.settings
        await try_out_aside(directory, settings.engine, settings.precision, settings.model_trial_seconds)

    async def load_model(self, name: str, version: str | None = None) -> int | None:
        """Load a version of a flow model or of a trace model, the newest where none is given, and let it serve.

        A trace model serves beside those of other names, whose windows it leaves alone. In the place of another version
        of it, new flows open windows of the new one; the windows that are open get the verdicts of the old one and are
        closed.

        Returns:
            Of a trace model how many live windows were closed for it, None of a flow model.

        Raises:
            UnknownModelError, CheckpointError, EngineError, ModelBusyError: as of `ServedModels.load`; a trace model
                does not fit the default flow model.
        """
        directory = self.models.repository.find(name, version)
        if checkpoint_kind(directory) == "tracegram":
            return await self._load_trace_model(name, directory)
        await self.models.load(name, version)
        return None

    async def _load_trace_model(self, name: str, directory: Path) -> int:
        async with self.models.changing():
            await self._try_out(directory)
            scorer = await asyncio.to_thread(self.trace_models.warm_scorer, directory)
            if scorer.checkpoint.name != name:
                raise CheckpointError(f"{directory}: holds a model named {scorer.checkpoint.name}, expected {name}")
            fitting([scorer.engine], self.classifier.checkpoint, required=True, warn=log.warning)
            return await to_its_end(self.trace_models.load(scorer, self._encode_for_all))

    async def unload_model(self, name: str) -> None:
        """Serve a flow model or a trace model no more; what waits for it gets its verdicts first.

        Raises:
            UnknownModelError, ModelBusyError: as of `ServedModels.unload`.
        """
        if name not in self.trace_models.scorers:
            await self.models.unload(name, self.settings.shutdown_seconds)
            return
        async with self.models.changing():
            await to_its_end(self.trace_models.unload(name, self._encode_for_all))

    async def _encode_for_all(self) -> None:
        """Let every classifier encode for the trace models that serve now, and wait for what is on its way."""
        await self.models.replace_classifiers(
            lambda classifier: classifier.with_traces(self.trace_models.fitting(classifier.checkpoint))
        )
        if self.traces is not None:
            await self.pipeline.settle(self.settings.shutdown_seconds)

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

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Warm up, serve, then drain within the limit."""
        await asyncio.to_thread(self.trace_models.warm_up)
        await self.models.start()
        keeping = [self.supervisor.start("history", self.history.run)] if self.history is not None else []
        keeping += self.outputs.start(self.supervisor)
        if self.alerts is not None:
            keeping.append(self.supervisor.start("alert rules", self.alerts.run))
        if self.settings.is_live:
            self.drift.start()
            keeping.append(self.supervisor.start("drift", self.drift.run))
        try:
            for name in self.settings.load_models:
                await self.load_model(name)
            async with self.sensors.running(self.settings.shutdown_seconds):
                feeding = [self.supervisor.start(f"zeek on {zeek.interface}", zeek.run) for zeek in self.zeeks]
                if self.replay is not None:
                    feeding.append(self.supervisor.start("replay", self.replay.run))
                self.trace_models.start_watching()
                try:
                    yield
                finally:
                    asyncio.get_running_loop().call_later(2 * self.settings.shutdown_seconds, self._give_up_engines)
                    await self.supervisor.stop([*feeding, *self.trace_models.watching])
        finally:
            await self.models.stop(self.settings.shutdown_seconds)
            self._give_up_engines()
            await self.supervisor.stop(keeping)
            await asyncio.gather(self._stop_history(), self.outputs.stop(self.settings.shutdown_seconds))
            await self.drift.stop()
            if self.data is not None:
                self.data.release()

    async def _stop_history(self) -> None:
        if self.history is not None:
            await self.history.stop(self.settings.shutdown_seconds)

    def hang_up(self) -> None:
        """What SIGHUP asks of a service that has no terminal: open files anew, and read the alert rules."""
        log.info("reopening")
        self.outputs.reopen()
        if self.alerts is not None:
            self.alerts.reload()

    def _give_up_engines(self) -> None:
        """Wait for no engine any more."""
        self.models.give_up()
        self.trace_models.give_up()

    def no_live_traces(self) -> str | None:
        """Why there are no verdicts on live traces, or None."""
        if not self.trace_models.scorers:
            return "there is no trace model: load one, or start with --traces"
        if self.traces is None:
            return "there is no live traffic: start with --zeek, --interface or --replay"
        return self.trace_models.misfits(self.classifier.checkpoint)

    def not_ready(self) -> str | None:
        """Why no work should be sent here now, or None."""
        if down := self.supervisor.down() or next((zeek.failure for zeek in self.zeeks if zeek.is_down), None):
            return down
        if away := self.sensors.all_away(self.settings.sensor_grace_seconds):
            return away
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
