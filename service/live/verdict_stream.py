"""Verdicts as they come, for those who listen: each has a queue of its own, and no verdict waits for any of them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Iterator
from functools import cached_property
from typing import Literal

import msgspec

from tapline.models.flow import Flow
from tapline.models.verdict import Verdict
from tapline.service.history.conditions import flow_matches, trace_matches
from tapline.service.history.filters import FlowFilter, TraceFilter
from tapline.service.history.past import FlowRecord, TraceRecord
from tapline.service.history.rows import flow_record, trace_record
from tapline.service.live.observer import Observer
from tapline.service.metrics import Metrics
from tapline.service.traces.trace_verdict import TraceVerdict

MAX_LISTENERS = 16
"""Beyond, those who would listen are told to come again."""

QUEUE = 2000
"""Verdicts that wait for a listener; where more come, the oldest are missed."""

LOOK_SECONDS = 0.1
MOST_LOOKED_AT, MOST_HEARD = 1000, 100
"""How often a listener is served, how many verdicts are then compared with its filter, and how many it gets at most:
what many listeners cost is bounded so, whatever comes."""

EventKind = Literal["flow", "trace"]


class ListenersError(RuntimeError):
    """As many listen as may."""


class FlowEvent:
    """A verdict on a flow on its way to listeners."""

    kind: EventKind = "flow"

    def __init__(self, source: str, flow: Flow, verdict: Verdict) -> None:
        self._seen_us = time.time_ns() // 1000
        self._source = source
        self._flow = flow
        self._verdict = verdict

    def is_wanted(self, flows: FlowFilter | None, traces: TraceFilter | None) -> bool:
        """Whether filters want it."""
        return flows is not None and flow_matches(flows, self._source, self._flow, self._verdict)

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

    def is_wanted(self, flows: FlowFilter | None, traces: TraceFilter | None) -> bool:
        """Whether filters want it."""
        return traces is not None and trace_matches(traces, self._trace)

    @cached_property
    def record(self) -> TraceRecord:
        """What is told."""
        return trace_record(self._seen_us, self._trace)

    @cached_property
    def json(self) -> bytes:
        """The record as JSON."""
        return msgspec.json.encode(self.record)


Event = FlowEvent | TraceEvent


class Listener:
    """One who listens, to flows and traces that its filters want; None: to none of them."""

    def __init__(self, flows: FlowFilter | None, traces: TraceFilter | None, metrics: Metrics) -> None:
        self.missed = 0
        self._flows = flows
        self._traces = traces
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
            if event.is_wanted(self._flows, self._traces):
                found.append(event)
                if len(found) >= MOST_HEARD:
                    break
        return found


class VerdictStream(Observer):
    """Hands verdicts on to who listens. An observer of the service: used in its event loop, it never waits."""

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

    def _put(self, event: Event) -> None:
        for listener in self._listeners:
            listener.put(event)

    @contextlib.contextmanager
    def listening(self, flows: FlowFilter | None, traces: TraceFilter | None) -> Iterator[Listener]:
        """Listen while the block runs.

        Raises:
            ListenersError: as many listen as may.
        """
        if len(self._listeners) >= MAX_LISTENERS:
            raise ListenersError(f"{MAX_LISTENERS} clients listen already: come again")
        listener = Listener(flows, traces, self._metrics)
        self._listeners.add(listener)
        self._metrics.stream_clients.set(len(self._listeners))
        try:
            yield listener
        finally:
            self._listeners.discard(listener)
            self._metrics.stream_clients.set(len(self._listeners))
