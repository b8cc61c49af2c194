"""The sensors of a running service: their buses, the live path behind them, and the verdicts that go back."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

import structlog

from models.flow import Flow
from models.verdict import Verdict
from service.classifier import FlowOutcome
from service.live import LivePipeline
from service.metrics import Metrics
from service.sinks.zeek import ZeekSink
from service.sources.bus.source import BusSource, make_transport
from service.sources.bus.transport import TlsFiles, TransportError

log = structlog.get_logger()

Watcher = Callable[[Flow, Verdict], None]


@dataclass
class Sensor:
    """One bus: what comes from it, and what goes back."""

    source: BusSource
    sink: ZeekSink | None


class Sensors:
    """Runs one connection per sensor; a sensor given twice is refused."""

    def __init__(
        self,
        urls: Sequence[str],
        pipeline: LivePipeline,
        metrics: Metrics,
        *,
        tls: TlsFiles,
        shards: Sequence[str] = (),
        spool_verdicts: int = 0,
        watcher: Watcher = lambda flow, verdict: None,
    ) -> None:
        """`spool_verdicts` 0 sends no verdicts back; `watcher` is told of every verdict."""
        if len({url.rstrip("/") for url in urls}) < len(urls):
            raise TransportError("a sensor is named twice: one connection per sensor is all that Zeek should bear")
        self.sensors = [self._sensor(url, pipeline, metrics, tls, shards, spool_verdicts, watcher) for url in urls]
        self._pipeline = pipeline

    @staticmethod
    def _sensor(
        url: str,
        pipeline: LivePipeline,
        metrics: Metrics,
        tls: TlsFiles,
        shards: Sequence[str],
        spool_verdicts: int,
        watcher: Watcher,
    ) -> Sensor:
        transport = make_transport(url, tls, list(shards))
        sink = ZeekSink(transport, metrics, spool_verdicts) if spool_verdicts else None

        def deliver(flow: Flow, outcome: FlowOutcome) -> None:
            if outcome.verdict is None:
                return
            watcher(flow, outcome.verdict)
            if sink is not None:
                sink.put(flow, outcome.verdict)

        source = BusSource(
            transport,
            metrics,
            take_flow=lambda flow: pipeline.take(flow, deliver),
            take_ack=sink.acknowledge if sink else lambda ack: None,
            on_connected=sink.resend_all if sink else lambda: None,
        )
        return Sensor(source, sink)

    @contextlib.asynccontextmanager
    async def running(self, drain_seconds: float) -> AsyncIterator[None]:
        """Receive while the block runs; then stop receiving, finish what is under way within the limit, close."""
        receiving = [asyncio.create_task(sensor.source.run()) for sensor in self.sensors]
        working = [asyncio.create_task(self._pipeline.run())]
        working += [asyncio.create_task(sensor.sink.run()) for sensor in self.sensors if sensor.sink]
        working += [asyncio.create_task(self._confirm(sensor)) for sensor in self.sensors]
        for task in (*receiving, *working):
            task.add_done_callback(_report_death)
        try:
            yield
        finally:
            for sensor in self.sensors:
                sensor.source.close()
            await self._pipeline.drain(drain_seconds)
            await asyncio.gather(
                *(
                    sensor.sink.drain(drain_seconds)
                    for sensor in self.sensors
                    if sensor.sink and sensor.source.state.connected
                )
            )
            for task in (*working, *receiving):
                task.cancel()
            await asyncio.gather(*working, *receiving, return_exceptions=True)

    async def _confirm(self, sensor: Sensor) -> None:
        """Answer a sensor's end marker once every flow before it has its verdict, and Zeek has those."""
        while True:
            await sensor.source.end_marker.wait()
            sensor.source.end_marker.clear()
            while self._pipeline.waiting_flows or (sensor.sink and sensor.sink.pending_verdicts):
                await asyncio.sleep(0.02)
            await sensor.source.confirm_finished()


def _report_death(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        log.error("a part of the live path died", error=type(task.exception()).__name__, exc_info=task.exception())
