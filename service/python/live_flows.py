"""`tapline.stream`: the live flows of sensors with their verdicts, as an asynchronous iterator. It is the live path of
the service with one listener; nothing is sent back to the sensors."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from tapline.models.flow import Flow
from tapline.models.verdict import Verdict
from tapline.service.engines.engine import EngineError
from tapline.service.inference.batcher import Batcher
from tapline.service.inference.classifier import DEFAULT_CHECKPOINT, Classifier
from tapline.service.live.observer import Observer
from tapline.service.live.pipeline import LiveCounts, LivePipeline
from tapline.service.live.sensors import Sensors
from tapline.service.metrics import Metrics
from tapline.service.process.supervisor import Supervisor
from tapline.service.python.arguments import check_threads, check_truth
from tapline.service.python.chosen import FlowChoice, check_model, model_directory, open_classifier
from tapline.service.python.flow_model import FlowModel
from tapline.service.sources.bus.source import BusState
from tapline.service.sources.bus.transport import TlsFiles
from tapline.service.traces.trace_verdict import TraceVerdict

ENGINE_SECONDS = 60.0
"""Longest time that the engine may take for a batch."""

WAITING_FLOWS = 20_000
"""Flows that wait for a verdict; where more come, the subjects that send most are shed first (`counts.shed`)."""

DEADLINE_SECONDS = 0.5
"""Longest wait of a flow under overload, ten times that in a burst; later ones are shed (`counts.expired`)."""

HELD_RESULTS = 10_000
"""Results that wait to be taken; where more come, the oldest are missed (`missed`)."""


@dataclass(frozen=True, slots=True)
class LiveResult:
    """A live flow with its verdict: early (`flow.complete` and `verdict.final` are False) or final. Both forms of
    a flow have its `uid`. `source` is the URL of the sensor's bus, without a password."""

    source: str
    flow: Flow
    verdict: Verdict


def stream(
    url: str | Iterable[str],
    *,
    model: FlowChoice = DEFAULT_CHECKPOINT,
    ports: bool = True,
    cascade: bool = True,
    threads: int = 0,
    ca: Path | None = None,
    certificate: Path | None = None,
    key: Path | None = None,
) -> Stream:
    """Live flows of sensors with their verdicts, until you stop.

    `async for live in tapline.stream(url)`; or `async with tapline.stream(url) as flows:`, and iterate `flows`, which
    ends all that it started where the block is left, also where the loop is left by `break`. A sensor that is away is
    tried again for ever, with growing pauses. Flows in which nobody sent payload have no verdict and are left out.

    Args:
        url: of a sensor's bus, `ws://host:port`, `wss://host:port` or `broker://host:port`, or of several.
        model: as of `classify`.
        ports: as of `classify`.
        cascade: as of `classify`.
        threads: as of `classify`.
        ca: PEM file of the CA that signed the sensors' certificates, as `--zeek-ca`.
        certificate: PEM file of the certificate to show to sensors.
        key: PEM file of its key.

    Raises:
        TypeError, ValueError: an argument is none.

    Raises, once it is iterated or entered:
        CheckpointError, EngineError: the model is none, cannot be run, or cannot be kept alive.
        TransportError: a URL or a TLS file cannot be used, or one sensor is named twice.
    """
    urls: list[str] = [url] if isinstance(url, str) else list(url) if isinstance(url, Iterable) else [url]
    if wrong := [each for each in urls if not isinstance(each, str)]:
        raise TypeError(f"url: expected that of a sensor's bus, or several, got {type(wrong[0]).__name__}: give texts")
    check_threads(threads)
    check_truth("ports", ports)
    check_truth("cascade", cascade)
    check_model(model)
    return Stream(urls, model, TlsFiles(ca, certificate, key), ports=ports, cascade=cascade, threads=threads)


class Stream:
    """Live flows of sensors; `stream` makes it. Used in one event loop, and started once."""

    def __init__(
        self, urls: Sequence[str], model: FlowChoice, tls: TlsFiles, *, ports: bool, cascade: bool, threads: int
    ) -> None:
        self.missed = 0
        self._urls = urls
        self._model = model
        self._tls = tls
        self._ports, self._cascade = ports, cascade
        self._threads = threads
        self._held: deque[LiveResult] = deque()
        self._came = asyncio.Event()
        self._stack: contextlib.AsyncExitStack | None = None
        self._pipeline: LivePipeline | None = None
        self._sensors: Sensors | None = None
        self._failure: str | None = None
        self._ended = False

    @property
    def counts(self) -> LiveCounts:
        """What became of every flow that came."""
        return self._pipeline.counts if self._pipeline is not None else LiveCounts()

    @property
    def sensors(self) -> list[BusState]:
        """The state of the connection to each sensor, and what came from it."""
        return [sensor.source.state for sensor in self._sensors.sensors] if self._sensors is not None else []

    def __repr__(self) -> str:
        stage = "ended" if self._ended else "running" if self._stack is not None else "not started"
        return f"<Stream of {len(self._urls)} {'sensor' if len(self._urls) == 1 else 'sensors'}, {stage}>"

    def __aiter__(self) -> AsyncIterator[LiveResult]:
        return self._results()

    async def __aenter__(self) -> Stream:
        if self._stack is not None:
            raise RuntimeError("a stream is started once: make another by tapline.stream")
        self._stack = contextlib.AsyncExitStack()
        try:
            await self._stack.enter_async_context(self._running())
        except BaseException:
            self._ended = True
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End it: connections, tasks and threads have ended when this returns, and iterating ends."""
        self._ended = True
        self._came.set()
        if self._stack is not None:
            await self._stack.aclose()

    async def _results(self) -> AsyncGenerator[LiveResult, None]:
        """The results as they come; what this started ends with it."""
        async with contextlib.AsyncExitStack() as stack:
            if self._stack is None:
                await stack.enter_async_context(self)
            while not self._ended:
                while self._held and not self._ended:
                    yield self._held.popleft()
                if self._failure is not None:
                    raise EngineError(self._failure)
                self._came.clear()
                if not (self._held or self._ended):
                    await self._came.wait()

    @contextlib.asynccontextmanager
    async def _running(self) -> AsyncIterator[None]:
        """The live path, while the block runs."""
        classifier = await asyncio.to_thread(self._classifier)
        metrics = Metrics()
        supervisor = Supervisor(metrics)
        batcher = Batcher([classifier], metrics, supervisor=supervisor)
        self._pipeline = LivePipeline(batcher, metrics, queue_flows=WAITING_FLOWS, deadline_seconds=DEADLINE_SECONDS)
        self._sensors = Sensors(
            self._urls, self._pipeline, metrics, tls=self._tls, observer=_Listener(self), supervisor=supervisor
        )
        batcher.start()
        watching = asyncio.create_task(self._watch(supervisor))
        try:
            async with self._sensors.running(0):
                yield
        finally:
            watching.cancel()
            await batcher.stop(0)
            await asyncio.gather(watching, return_exceptions=True)

    def _classifier(self) -> Classifier:
        model = self._model if isinstance(self._model, FlowModel) else model_directory(self._model)
        return open_classifier(
            model,
            [],
            required=False,
            warn=lambda reason: None,
            threads=self._threads,
            ports=self._ports,
            cascade=self._cascade,
            timeout_seconds=ENGINE_SECONDS,
        )

    async def _watch(self, supervisor: Supervisor) -> None:
        """Wake who iterates where a part of the live path cannot be kept alive."""
        await supervisor.gave_up.wait()
        self._failure = supervisor.failure
        self._came.set()

    def take(self, result: LiveResult) -> None:
        """Hold a result until it is taken; the oldest makes room for it."""
        if len(self._held) >= HELD_RESULTS:
            self._held.popleft()
            self.missed += 1
        self._held.append(result)
        self._came.set()


class _Listener(Observer):
    """Hands what the live path decides to a stream."""

    def __init__(self, target: Stream) -> None:
        self._target = target

    def flow(self, source: str, flow: Flow, verdict: Verdict | None) -> None:
        """Hand on a flow that has a verdict."""
        if verdict is not None:
            self._target.take(LiveResult(source, flow, verdict))

    def trace(self, trace: TraceVerdict) -> None:
        """There are none: no trace model serves here."""
