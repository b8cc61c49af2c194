"""The sensors of a running service: their buses, the live path behind them, and the verdicts that go back."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from tapline.models.flow import Flow
from tapline.service.inference.classifier import FlowOutcome
from tapline.service.live.kept_numbers import SAVE_SECONDS, KeptNumbers
from tapline.service.live.observer import Observer, tell
from tapline.service.live.pipeline import LivePipeline
from tapline.service.metrics import Metrics
from tapline.service.process.supervisor import Part, Supervisor
from tapline.service.sinks.zeek_sink import ZeekSink, trace_verdict_row, verdict_row
from tapline.service.sources.bus.answers import VerdictRow, trace_verdicts_event, verdict_lines_event, verdicts_event
from tapline.service.sources.bus.events import LINES_VERSION, BusEvent, VerdictsAck
from tapline.service.sources.bus.source import BusSource, Numbers, make_transport
from tapline.service.sources.bus.transport import TlsFiles, Transport, TransportError, shown_url
from tapline.service.traces.live_traces import LiveTraces


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
        observer: Observer,
        traces: LiveTraces | None = None,
        supervisor: Supervisor,
        names: Mapping[str, str] | None = None,
        numbers: KeptNumbers | None = None,
    ) -> None:
        """`spool_verdicts` 0 sends no verdicts back; `traces` get all flows; `names`: what buses are called that are
        not called by their URLs, whose Zeeks begin with this service; `numbers`: of the other sensors' flows, which go
        on over a restart."""
        if len({shown_url(url) for url in urls}) < len(urls):
            raise TransportError("a sensor is named twice: one connection per sensor is all that Zeek should bear")
        self._pipeline = pipeline
        self._metrics = metrics
        self._spool_verdicts = spool_verdicts
        self._observer = observer
        self._traces = traces
        self._supervisor = supervisor
        self._numbers = numbers
        names, earlier = names or {}, numbers.load() if numbers is not None else {}
        transports = {url: make_transport(url, tls, list(shards), names.get(url)) for url in urls}
        self.sensors = [
            self._sensor(transport, earlier.get(transport.url, {}) if url not in names else {})
            for url, transport in transports.items()
        ]

    def _sensor(self, transport: Transport, earlier: Numbers) -> Sensor:
        def flow_verdicts(service: str, batch: int, rows: Sequence[VerdictRow]) -> BusEvent:
            takes_lines = source.state.verdicts_version >= LINES_VERSION
            return (verdict_lines_event if takes_lines else verdicts_event)(service, batch, rows)

        flow_sink = ZeekSink(transport, self._metrics, self._spool_verdicts, flow_verdicts, "flow verdicts")
        trace_sink = ZeekSink(transport, self._metrics, self._spool_verdicts, trace_verdicts_event, "trace verdicts")
        sinks: list[ZeekSink[Any]] = [flow_sink, trace_sink] if self._spool_verdicts else []
        if self._traces is not None and sinks:
            self._traces.deliver_to(transport.url, lambda trace: trace_sink.put(trace_verdict_row(trace)))

        def deliver(flow: Flow, outcome: FlowOutcome | None) -> None:
            verdict = tell(transport.url, flow, outcome, self._traces, self._observer)
            if verdict is not None and sinks:
                flow_sink.put(verdict_row(flow, verdict))

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
            earlier=earlier,
            choose=lambda: self._pipeline.choose(),
        )
        return Sensor(source, sinks)

    def all_away(self, grace_seconds: float) -> str | None:
        """Why no sensor has been connected for so long, or None: one is, has just been, or there are none at all."""
        states = [sensor.source.state for sensor in self.sensors]
        if not states or any(state.connected for state in states):
            return None
        last = max(states, key=lambda state: state.away_since)
        if time.monotonic() - last.away_since <= grace_seconds:
            return None
        return f"no sensor is connected; {last.url}: {last.reason}"

    @contextlib.asynccontextmanager
    async def running(self, drain_seconds: float) -> AsyncIterator[None]:
        """Receive while the block runs; then stop receiving, finish what is under way within the limit, close."""
        parts = self._start()
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
            await self._supervisor.stop(parts)
            await self._save_numbers()

    async def _keep_numbers(self) -> None:
        """Save the numbers of sensors now and then, for the run after this one."""
        while True:
            await asyncio.sleep(SAVE_SECONDS)
            await self._save_numbers()

    async def _save_numbers(self) -> None:
        if self._numbers is not None:
            sources = [sensor.source for sensor in self.sensors]
            await asyncio.to_thread(self._numbers.save, {each.state.url: each.numbers for each in sources})

    def _start(self) -> list[Part]:
        """Start every part of the live path."""
        start = self._supervisor.start
        if self._traces is not None:
            self._traces.start(self._supervisor)
        parts = [start("live path", self._pipeline.run)]
        if self._numbers is not None:
            parts.append(start("numbers of sensors", self._keep_numbers))
        for sensor in self.sensors:
            url = sensor.source.state.url
            parts += [start(f"{sink.kind} to {url}", sink.run) for sink in sensor.sinks]
            parts.append(start(f"end of {url}", partial(self._confirm, sensor)))
            parts.append(start(f"bus {url}", sensor.source.run))
        return parts

    async def _confirm(self, sensor: Sensor) -> None:
        """Answer a sensor's end marker once every flow before it and its traces have verdicts, and Zeek has those."""
        while True:
            await sensor.source.end_marker.wait()
            sensor.source.end_marker.clear()
            try:
                await self._finish(sensor)
            except BaseException:
                sensor.source.end_marker.set()  # it is still to be answered
                raise

    async def _finish(self, sensor: Sensor) -> None:
        while self._pipeline.waiting_flows:
            await asyncio.sleep(0.02)
        if self._traces is not None:
            await self._traces.finish(sensor.source.state.url)
        while self._pipeline.waiting_flows or sensor.pending_verdicts:
            await asyncio.sleep(0.02)
        await sensor.source.confirm_finished()
