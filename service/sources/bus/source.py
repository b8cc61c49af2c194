"""A sensor's flows from its bus, with an account of what arrived, what is missing and what was refused."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tapline.models.flow import Flow
from tapline.models.foreign_text import clean
from tapline.service.log_lines import log
from tapline.service.metrics import Metrics
from tapline.service.process.quiet_log import QuietLog
from tapline.service.sources.bus.answers import finished_ack_event
from tapline.service.sources.bus.events import (
    ACKS_TOPIC,
    BATCH_VERSION,
    FLOWS_TOPIC,
    SCHEMA_VERSION,
    STATS_TOPIC,
    BusEvent,
    EventError,
    Finished,
    FlowRun,
    FlowsEvent,
    SchemaVersionError,
    Stats,
    TakesVerdicts,
    VerdictsAck,
    parse_event,
)
from tapline.service.sources.bus.glances import Choose
from tapline.service.sources.bus.native import NativeTransport
from tapline.service.sources.bus.transport import (
    Connected,
    Disconnected,
    Incoming,
    TlsFiles,
    Transport,
    TransportError,
    shown_url,
)
from tapline.service.sources.bus.websocket import WebSocketTransport

MAX_SENSORS = 256
"""Sensors told apart on one connection (the workers of a cluster); more are counted together."""

MAX_TOPICS = 64
"""Topics of a sensor whose numbering is followed; the one silent for longest is forgotten first."""

OTHER_SENSORS = "other"
MAX_GAP = 1_000_000_000
"""No sensor sends so much that nobody hears of: a number so far ahead is another numbering."""

MAX_VERSION_CHARS = 32

Numbers = Mapping[str, Mapping[str, int]]
"""By sensor and topic the number of the last flow."""

STARTING_SECONDS = 10.0
"""So long a sensor that has not connected yet is no reason for a warning: a Zeek that starts takes seconds."""


@dataclass
class SensorState:
    """The account of one sensor. `format`: of the events that its flows come in, 0 before the first. `lag_seconds`: how
    far behind this machine's clock its packets were, by its last counters; of a sensor that reads a capture that is the
    capture's age."""

    format: int = 0
    flows: int = 0
    early: int = 0
    missed: int = 0
    restarts: int = 0
    stats: Stats | None = None
    lag_seconds: float | None = None
    last_seq: OrderedDict[str, int] = field(default_factory=OrderedDict)
    """The last number by topic."""

    @property
    def format_hint(self) -> str | None:
        """What to do about the format, None where it is the newest."""
        if 0 < self.format < BATCH_VERSION:
            return "update its tapline package: an event for each flow costs it and this service more"
        return None

    def place(self, topic: str, run: FlowRun) -> int:
        """Take the numbers of flows of a topic; returns how many before them never came."""
        seq = run.seq
        last = self.last_seq.pop(topic, None)
        self.last_seq[topic] = run.last_seq
        if len(self.last_seq) > MAX_TOPICS:
            self.last_seq.popitem(last=False)
        if last is None:
            return 0
        if seq - last > MAX_GAP:
            self.restarts += 1
            return 0
        if seq <= last:  # it began again at 1
            self.restarts += 1
            last = 0
        self.missed += seq - last - 1
        return seq - last - 1


@dataclass
class BusState:
    """What an operator wants to know of a connection. `away_since`: by the monotonic clock, where it is
    not connected. `verdicts_version`: the newest of verdicts on flows that the other side said it takes, since it is
    connected."""

    url: str
    connected: bool = False
    peer_version: str = ""
    reason: str = "not yet connected"
    away_since: float = field(default_factory=time.monotonic)
    connections: int = 0
    malformed: int = 0
    faults: int = 0
    verdicts_version: int = SCHEMA_VERSION
    sensors: dict[str, SensorState] = field(default_factory=dict)


class BusSource:
    """Receives from one transport and hands flows on without ever waiting."""

    def __init__(
        self,
        transport: Transport,
        metrics: Metrics,
        take_flow: Callable[[Flow], None],
        take_ack: Callable[[VerdictsAck], None] = lambda ack: None,
        on_connected: Callable[[], None] = lambda: None,
        earlier: Numbers | None = None,
        choose: Choose = lambda: None,
    ) -> None:
        """`earlier`: `numbers` of the run before, from which those go on that a sensor gives now; `choose` is asked
        of each batch that comes which of its flows to read."""
        self.transport = transport
        self.state = BusState(transport.url)
        self._metrics = metrics
        self._take_flow = take_flow
        self._take_ack = take_ack
        self._on_connected = on_connected
        self._earlier = dict(earlier or {})
        self._choose = choose
        self._closed = False
        self._late_flows = 0
        self._log = QuietLog(log, url=transport.url)
        self._finished: dict[str, None] = {}
        self.end_marker = asyncio.Event()

    async def run(self) -> None:
        """Receive until cancelled."""
        self._metrics.bus_connected.labels(self.state.url).set(0)
        self.state.away_since = time.monotonic()
        try:
            await self.transport.run(self._receive)
        finally:
            if self._closed:
                log.info("sensor left", url=self.state.url, late_flows=self._late_flows)
            elif self.state.connected:
                self._disconnected(Disconnected("the task of the connection ended"))

    async def confirm_finished(self) -> None:
        """Answer the end markers that came: all flows before them have their verdicts."""
        while self._finished:
            await self.transport.publish(finished_ack_event(self._finished.popitem()[0]))

    @property
    def numbers(self) -> Numbers:
        """The last numbers of sensors, those of this run before earlier ones, for the run after this one."""
        now = {name: account.last_seq for name, account in self.state.sensors.items() if account.last_seq}
        return dict(itertools.islice((now | self._earlier).items(), MAX_SENSORS))

    def close(self) -> None:
        """Take no more flows; the connection stays for the acknowledgements of verdicts. What comes is counted."""
        self._closed, self._choose = True, lambda: None

    def _receive(self, incoming: Incoming) -> None:
        if isinstance(incoming, BusEvent):
            try:
                self._handle(incoming)
            except EventError as error:
                self._refuse(error)
            except Exception as error:  # whatever an event sets off costs that event, not the connection
                self._fault(error)
        elif isinstance(incoming, EventError):
            self._refuse(incoming)
        elif isinstance(incoming, Connected):
            self._connected(incoming)
        else:
            self._disconnected(incoming)

    def _handle(self, event: BusEvent) -> None:
        parsed = parse_event(event, self._choose)
        if isinstance(parsed, FlowsEvent):
            self._flows(parsed)
        elif isinstance(parsed, Stats):
            self._stats(parsed)
        elif isinstance(parsed, VerdictsAck):
            self._take_ack(parsed)
        elif isinstance(parsed, TakesVerdicts):
            self.state.verdicts_version = parsed.verdicts
        elif isinstance(parsed, Finished):
            if len(self._finished) < MAX_SENSORS:
                self._finished[parsed.sensor] = None
            self.end_marker.set()

    def _flows(self, event: FlowsEvent) -> None:
        for error in event.refused:
            self._refuse(error)
        if not event.runs:
            return
        name = self._name(event.sensor)
        sensor = self._account(name)
        if sensor.format != event.format:
            sensor.format = event.format
            self._log.info("format", "sensor sends flows", sensor=name, format=event.format, hint=sensor.format_hint)
        for run in event.runs:
            self._run_of(name, sensor, event.topic, run)

    def _run_of(self, name: str, sensor: SensorState, topic: str, run: FlowRun) -> None:
        missed = sensor.place(topic, run)
        if missed:
            self._metrics.bus_missed.labels(name).inc(missed)
            self._log.warning("gap", "flows of a sensor are missing", sensor=name, missed=missed)
        if self._closed:
            self._late_flows += len(run.flows)
            self._metrics.bus_refused.labels(self.state.url, "stopping").inc(len(run.flows))
            return
        final = sum(flow.complete for flow in run.flows) + sum(glance.final for glance in run.unread)
        early = len(run.flows) + len(run.unread) - final
        sensor.flows += final + early
        sensor.early += early
        self._metrics.bus_flows.labels(name, "final").inc(final)
        self._metrics.bus_flows.labels(name, "early").inc(early)
        for flow in run.flows:
            try:
                self._take_flow(flow)
            except Exception as error:  # it costs this flow, not those beside it
                self._fault(error)

    def _stats(self, stats: Stats) -> None:
        name = self._name(stats.sensor)
        account = self._account(name)
        account.stats = stats
        account.lag_seconds = time.time() - stats.time_us / 1e6
        for field_name in ("packets", "dropped", "without_payload", "filtered", "gaps", "cut", "unchanged"):
            self._metrics.sensor_counts.labels(name, field_name).set(getattr(stats, field_name))
        if stats.loss_percent >= 0:
            self._metrics.sensor_loss.labels(name).set(stats.loss_percent / 100)

    def _account(self, name: str) -> SensorState:
        if name not in self.state.sensors:
            self.state.sensors[name] = SensorState(last_seq=OrderedDict(self._earlier.pop(name, {})))
        return self.state.sensors[name]

    def _name(self, sensor: str) -> str:
        known, name = self.state.sensors, clean(sensor)
        return name if name in known or len(known) < MAX_SENSORS else OTHER_SENSORS

    def _refuse(self, error: EventError) -> None:
        self.state.malformed += 1
        kind = "version" if isinstance(error, SchemaVersionError) else "malformed"
        self._metrics.bus_refused.labels(self.state.url, kind).inc()
        self._log.warning(kind, "event refused", reason=clean(str(error)))

    def _fault(self, error: Exception) -> None:
        self.state.faults += 1
        self._metrics.bus_refused.labels(self.state.url, "fault").inc()
        self._log.error("fault", "an event could not be worked on", error=type(error).__name__, exc_info=error)

    def _connected(self, connected: Connected) -> None:
        self.state.connected, self.state.reason = True, ""
        self.state.peer_version = clean(connected.peer_version, MAX_VERSION_CHARS)
        self.state.connections += 1
        self.state.verdicts_version = SCHEMA_VERSION
        self._metrics.bus_connected.labels(self.state.url).set(1)
        self._metrics.bus_connections.labels(self.state.url).inc()
        self._on_connected()
        self._log.info("connected", "sensor connected", zeek=self.state.peer_version)

    def _disconnected(self, disconnected: Disconnected) -> None:
        if self.state.connected:
            self.state.away_since = time.monotonic()
        self.state.connected, self.state.reason = False, disconnected.reason
        self._metrics.bus_connected.labels(self.state.url).set(0)
        if not self.state.connections and time.monotonic() - self.state.away_since < STARTING_SECONDS:
            self._log.info("starting", "sensor not connected yet", reason=disconnected.reason)
        else:
            self._log.warning("connection", "sensor not connected, trying again", reason=disconnected.reason)


def make_transport(url: str, tls: TlsFiles, shards: list[str] | None = None, name: str | None = None) -> Transport:
    """The transport of a URL: `ws://` and `wss://` or `broker://`; `shards` narrows it to some shards' topics. `name`
    is what it is called, its URL without password where not given.

    Raises:
        TransportError: another scheme, missing bindings or unusable TLS files.
    """
    flows = [f"{FLOWS_TOPIC}{shard}" for shard in shards] if shards else [FLOWS_TOPIC]
    topics = [*flows, STATS_TOPIC, ACKS_TOPIC]
    scheme = url.partition("://")[0].lower()
    if scheme in ("ws", "wss", "broker"):
        transport = NativeTransport(url, topics, tls) if scheme == "broker" else WebSocketTransport(url, topics, tls)
        transport.url = name or transport.url
        return transport
    raise TransportError(f"{shown_url(url)}: expected ws://host:port, wss://host:port or broker://host:port")
