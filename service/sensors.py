"""The sensors of a running service: their buses, the live path behind them, and the verdicts that go back."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import structlog

from models.flow import Flow
from models.verdict import Verdict
from service.classifier import FlowOutcome
from service.live import LivePipeline
from service.metrics import Metrics
from service.sinks.zeek import ZeekSink, trace_verdict_row, verdict_row
from service.sources.bus.events import VerdictsAck, trace_verdicts_event, verdicts_event
from service.sources.bus.source import BusSource, make_transport
from service.sources.bus.transport import TlsFiles, Transport, TransportError, shown_url
from service.traces.live import LiveTraces

log = structlog.get_logger()

Watcher = Callable[[Flow, Verdict], None]


@dataclass
class Sensor:
    """One bus: what comes from it, and what goes back."""

    source: BusSource
    sinks: list[ZeekSink[Any]]

    @property
    def pending_verdicts(self) -> int:
        """Verdicts that Zeek has not acknowledged, on flows and on traces."""
        return sum(sink.pending_verdicts for sink in self.sinks)


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
        traces: LiveTraces | None = None,
    ) -> None:
        """`spool_verdicts` 0 sends no verdicts back; `watcher` is told of every verdict; `traces` get all flows."""
        if len({shown_url(url) for url in urls}) < len(urls):
            raise TransportError("a sensor is named twice: one connection per sensor is all that Zeek should bear")
        self._pipeline = pipeline
        self._metrics = metrics
        self._spool_verdicts = spool_verdicts
        self._watcher = watcher
        self._traces = traces
        self.sensors = [self._sensor(make_transport(url, tls, list(shards))) for url in urls]

    def _sensor(self, transport: Transport) -> Sensor:
        flow_sink = ZeekSink(transport, self._metrics, self._spool_verdicts, verdicts_event)
        trace_sink = ZeekSink(transport, self._metrics, self._spool_verdicts, trace_verdicts_event)
        sinks: list[ZeekSink[Any]] = [flow_sink, trace_sink] if self._spool_verdicts else []
        if self._traces is not None and sinks:
            self._traces.deliver_to(transport.url, lambda trace: trace_sink.put(trace_verdict_row(trace)))

        def deliver(flow: Flow, outcome: FlowOutcome) -> None:
            if self._traces is not None:
                self._traces.take(transport.url, flow, outcome)
            if outcome.verdict is not None:
                self._watcher(flow, outcome.verdict)
                if sinks:
                    flow_sink.put(verdict_row(flow, outcome.verdict))

        def take_ack(ack: VerdictsAck) -> None:
            for sink in sinks:
                sink.acknowledge(ack)

        def resend() -> None:
            for sink in sinks:
                sink.resend_all()

        source = BusSource(
            transport,
            self._metrics,
            take_flow=lambda flow: self._pipeline.take(flow, deliver),
            take_ack=take_ack,
            on_connected=resend,
        )
        return Sensor(source, sinks)

    @contextlib.asynccontextmanager
    async def running(self, drain_seconds: float) -> AsyncIterator[None]:
        """Receive while the block runs; then stop receiving, finish what is under way within the limit, close."""
        if self._traces is not None:
            self._traces.start()
        receiving = [asyncio.create_task(sensor.source.run()) for sensor in self.sensors]
        working = [asyncio.create_task(self._pipeline.run())]
        working += [asyncio.create_task(sink.run()) for sensor in self.sensors for sink in sensor.sinks]
        working += [asyncio.create_task(self._confirm(sensor)) for sensor in self.sensors]
        for task in (*receiving, *working):
            task.add_done_callback(_report_death)
        try:
            yield
        finally:
            for sensor in self.sensors:
                sensor.source.close()
            await self._pipeline.drain(drain_seconds)
            if self._traces is not None:
                await self._traces.stop()
            connected = [sensor for sensor in self.sensors if sensor.source.state.connected]
            await asyncio.gather(*(sink.drain(drain_seconds) for sensor in connected for sink in sensor.sinks))
            for task in (*working, *receiving):
                task.cancel()
            await asyncio.gather(*working, *receiving, return_exceptions=True)

    async def _confirm(self, sensor: Sensor) -> None:
        """Answer a sensor's end marker once every flow before it and its traces have verdicts, and Zeek has those."""
        while True:
            await sensor.source.end_marker.wait()
            sensor.source.end_marker.clear()
            while self._pipeline.waiting_flows:
                await asyncio.sleep(0.02)
            if self._traces is not None:
                await self._traces.finish(sensor.source.state.url)
            while self._pipeline.waiting_flows or sensor.pending_verdicts:
                await asyncio.sleep(0.02)
            await sensor.source.confirm_finished()


def _report_death(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        log.error("a part of the live path died", error=type(task.exception()).__name__, exc_info=task.exception())
