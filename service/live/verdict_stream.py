"""Verdicts and alerts as they come, for those who listen: each has a queue of its own, nothing waits for them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Iterator
from functools import cached_property
from typing import Literal, NamedTuple

import msgspec

from tapline.models.flow import Flow
from tapline.models.verdict import Verdict
from tapline.service.alerts.alert import Alert
from tapline.service.history.filters import AlertFilter, FlowFilter, TraceFilter
from tapline.service.history.matches import alert_matches, flow_matches, trace_matches
from tapline.service.history.past import FlowRecord, TraceRecord
from tapline.service.history.rows import flow_record, trace_record
from tapline.service.live.observer import Observer
from tapline.service.metrics import Metrics
from tapline.service.traces.trace_verdict import TraceVerdict

MAX_LISTENERS = 16
"""Beyond, those who would listen are told to come again."""

QUEUE = 2000
"""Verdicts and alerts that wait for a listener; where more come, the oldest are missed."""

LOOK_SECONDS = 0.1
MOST_LOOKED_AT, MOST_HEARD = 1000, 100
"""How often a listener is served, how many verdicts are then compared with its filter, and how many it gets at most:
what many listeners cost is bounded so, whatever comes."""

EventKind = Literal["flow", "trace", "alert"]


class ListenersError(RuntimeError):
    """As many listen as may."""


class Wants(NamedTuple):
    """What one who listens wants; None: none of that kind."""

    flows: FlowFilter | None
    traces: TraceFilter | None
    alerts: AlertFilter | None = None


class FlowEvent:
    """A verdict on a flow on its way to listeners."""

    kind: EventKind = "flow"

    def __init__(self, source: str, flow: Flow, verdict: Verdict) -> None:
        self._seen_us = time.time_ns() // 1000
        self._source = source
        self._flow = flow
        self._verdict = verdict

    def is_wanted(self, wanted: Wants) -> bool:
        """Whether filters want it."""
        return wanted.flows is not None and flow_matches(wanted.flows, self._source, self._flow, self._verdict)

    @cached_property
    def record(self) -> FlowRecord:
        """What is told; made once for all who listen, where one wants it."""
        return flow_record(self._seen_us, self._source, self._flow, self._verdict)

    @cached_property
    def json(self) -> bytes:
        """The record as JSON."""
        return msgspec.json.encode(self.record)


class TraceEvent:
    """A verdict on a trace on its way to listeners; members as of `FlowEvent`."""

    kind: EventKind = "trace"

    def __init__(self, trace: TraceVerdict) -> None:
        self._seen_us = time.time_ns() // 1000
        self._trace = trace

    def is_wanted(self, wanted: Wants) -> bool:
        """Whether filters want it."""
        return wanted.traces is not None and trace_matches(wanted.traces, self._trace)

    @cached_property
    def record(self) -> TraceRecord:
        """What is told."""
        return trace_record(self._seen_us, self._trace)

    @cached_property
    def json(self) -> bytes:
        """The record as JSON."""
        return msgspec.json.encode(self.record)


class AlertEvent:
    """An alert on its way to listeners; members as of `FlowEvent`."""

    kind: EventKind = "alert"

    def __init__(self, alert: Alert) -> None:
        self.record = alert

    def is_wanted(self, wanted: Wants) -> bool:
        """Whether filters want it."""
        return wanted.alerts is not None and alert_matches(wanted.alerts, self.record)

    @cached_property
    def json(self) -> bytes:
        """The alert as JSON."""
        return msgspec.json.encode(self.record)


Event = FlowEvent | TraceEvent | AlertEvent


class Listener:
    """One who listens, to what its filters want."""

    def __init__(self, wanted: Wants, metrics: Metrics) -> None:
        self.missed = 0
        self._wanted = wanted
        self._metrics = metrics
        self._queue: deque[Event] = deque()
        self._came = asyncio.Event()
        self._looked_at = 0.0

    def put(self, event: Event) -> None:
        """Take an event; the oldest makes room for it."""
        if len(self._queue) >= QUEUE:
            self._queue.popleft()
            self.missed += 1
            self._metrics.stream_missed.inc()
        self._queue.append(event)
        self._came.set()

    def take_missed(self) -> int:
        """How many verdicts were missed since this was last asked."""
        missed, self.missed = self.missed, 0
        return missed

    async def next(self, seconds: float) -> list[Event]:
        """What came that is wanted, oldest first; empty where nothing did in this time, or all that came was missed."""
        until = time.monotonic() + seconds
        await asyncio.sleep(self._looked_at + LOOK_SECONDS - time.monotonic())
        while True:
            if self._queue:
                self._looked_at = time.monotonic()
                if (found := self._look()) or self.missed:
                    return found
            self._came.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(asyncio.get_running_loop().time() + until - time.monotonic()):
                    await self._came.wait()
            if time.monotonic() >= until:
                return []
            await asyncio.sleep(self._looked_at + LOOK_SECONDS - time.monotonic())

    def _look(self) -> list[Event]:
        found: list[Event] = []
        for _ in range(min(MOST_LOOKED_AT, len(self._queue))):
            event = self._queue.popleft()
            if event.is_wanted(self._wanted):
                found.append(event)
                if len(found) >= MOST_HEARD:
                    break
        return found


class VerdictStream(Observer):
    """Hands verdicts and alerts on to who listens. An observer of the service, in its event loop: it never waits."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._listeners: set[Listener] = set()

    def flow(self, source: str, flow: Flow, verdict: Verdict | None) -> None:
        """Tell those who listen of a verdict."""
        if self._listeners and verdict is not None:
            self._put(FlowEvent(source, flow, verdict))

    def trace(self, trace: TraceVerdict) -> None:
        """Tell those who listen of a verdict."""
        if self._listeners:
            self._put(TraceEvent(trace))

    def alert(self, alert: Alert) -> None:
        """Tell those who listen of an alert."""
        if self._listeners:
            self._put(AlertEvent(alert))

    def _put(self, event: Event) -> None:
        for listener in self._listeners:
            listener.put(event)

    @contextlib.contextmanager
    def listening(
        self, flows: FlowFilter | None, traces: TraceFilter | None, alerts: AlertFilter | None = None
    ) -> Iterator[Listener]:
        """Listen while the block runs; filters as of `Wants`.

        Raises:
            ListenersError: as many listen as may.
        """
        if len(self._listeners) >= MAX_LISTENERS:
            raise ListenersError(f"{MAX_LISTENERS} clients listen already: come again")
        listener = Listener(Wants(flows, traces, alerts), self._metrics)
        self._listeners.add(listener)
        self._metrics.stream_clients.set(len(self._listeners))
        try:
            yield listener
        finally:
            self._listeners.discard(listener)
            self._metrics.stream_clients.set(len(self._listeners))
