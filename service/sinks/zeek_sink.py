"""Verdicts back to Zeek, on flows and on traces: in batches, acknowledged, in a bounded spool while Zeek is away."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from tapline.models.flow import Flow
from tapline.models.verdict import Verdict
from tapline.service.community_id import community_id
from tapline.service.log_lines import log
from tapline.service.metrics import Metrics
from tapline.service.sources.bus.answers import TraceVerdictRow, VerdictRow
from tapline.service.sources.bus.events import BusEvent, VerdictsAck
from tapline.service.sources.bus.transport import Transport
from tapline.service.traces.trace_verdict import TraceVerdict

BATCH_VERDICTS = 100
"""Verdicts per event: taking events in is Zeek's slow direction."""

BATCHES_IN_FLIGHT = 8
"""Batches sent and not yet acknowledged: well below Zeek's own queue of 32 events for a client."""

GATHER_SECONDS = 0.1
ACK_SECONDS = 15.0
"""A batch not acknowledged for this long is sent again; Zeek logs a batch once however often it comes."""


Row = TypeVar("Row")
"""A verdict on its way: `VerdictRow` or `TraceVerdictRow`."""


class ZeekSink(Generic[Row]):
    """Returns verdicts of one kind to the sensor that their flows came from; each sink is a service run of its own."""

    def __init__(
        self,
        transport: Transport,
        metrics: Metrics,
        spool_verdicts: int,
        make_event: Callable[[str, int, Sequence[Row]], BusEvent],
        kind: str = "verdicts",
    ) -> None:
        """`make_event` puts the name of a service run, the number of a batch and its rows together; `kind` names what
        goes back.
        """
        self.kind = kind
        self.service = f"tapline-{secrets.token_hex(6)}"
        self._transport = transport
        self._metrics = metrics
        self._spool_verdicts = spool_verdicts
        self._make_event = make_event
        self._waiting: deque[Row] = deque()
        self._sent: OrderedDict[int, tuple[list[Row], float]] = OrderedDict()
        self._sent_verdicts = 0
        self._next_batch = 1
        self._changed = asyncio.Event()

    @property
    def pending_verdicts(self) -> int:
        """Verdicts that Zeek has not acknowledged."""
        return len(self._waiting) + self._sent_verdicts

    def put(self, row: Row) -> None:
        """Spool a verdict; where the spool is full, the oldest one not yet sent is lost, and counted."""
        if self.pending_verdicts >= self._spool_verdicts:
            self._metrics.verdicts_lost.labels(self._transport.url).inc()
            if not self._waiting:
                return
            self._waiting.popleft()
        self._waiting.append(row)
        self._changed.set()

    def acknowledge(self, ack: VerdictsAck) -> None:
        """Forget a batch that Zeek has logged."""
        if ack.service == self.service and ack.batch in self._sent:
            rows, _ = self._sent.pop(ack.batch)
            self._sent_verdicts -= len(rows)
            self._metrics.verdicts_returned.labels(self._transport.url).inc(len(rows))
            self._changed.set()

    async def run(self) -> None:
        """Send, and send again what is not acknowledged, until cancelled."""
        while True:
            self._changed.clear()
            await self._resend_overdue()
            while self._waiting and len(self._sent) < BATCHES_IN_FLIGHT:
                if len(self._waiting) < BATCH_VERDICTS:
                    await asyncio.sleep(GATHER_SECONDS)
                if not await self._send_next():
                    await asyncio.sleep(1)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1 if self._sent else None):
                    await self._changed.wait()

    async def drain(self, limit_seconds: float) -> None:
        """Wait until everything is acknowledged, at most so long; `run` must be running."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_seconds):
                while self.pending_verdicts:
                    await asyncio.sleep(0.02)
        if self.pending_verdicts:
            self._metrics.verdicts_lost.labels(self._transport.url).inc(self.pending_verdicts)
            log.warning("verdicts not returned", url=self._transport.url, verdicts=self.pending_verdicts)

    async def _send_next(self) -> bool:
        rows = [self._waiting.popleft() for _ in range(min(BATCH_VERDICTS, len(self._waiting)))]
        batch, self._next_batch = self._next_batch, self._next_batch + 1
        self._sent[batch] = (rows, asyncio.get_running_loop().time())
        self._sent_verdicts += len(rows)
        return await self._publish(batch, rows)

    async def _publish(self, batch: int, rows: list[Row]) -> bool:
        return await self._transport.publish(self._make_event(self.service, batch, rows))

    async def _resend_overdue(self) -> None:
        now = asyncio.get_running_loop().time()
        for batch, (rows, sent_at) in list(self._sent.items()):
            if now - sent_at >= ACK_SECONDS and batch in self._sent and await self._publish(batch, rows):
                self._sent[batch] = (rows, asyncio.get_running_loop().time())

    def resend_all(self) -> None:
        """Make every unacknowledged batch due again: the connection is a new one."""
        for batch, (rows, _) in self._sent.items():
            self._sent[batch] = (rows, -ACK_SECONDS)
        self._changed.set()


def verdict_row(flow: Flow, verdict: Verdict) -> VerdictRow:
    """A flow's verdict as Zeek takes it."""
    return VerdictRow(
        flow.uid, community_id(flow), flow.orig_h, flow.orig_p, flow.resp_h, flow.resp_p, flow.proto, verdict.nearest,
        verdict.confidence, verdict.unknown, verdict.final, verdict.model, verdict.version,
    )  # fmt: skip


def trace_verdict_row(trace: TraceVerdict) -> TraceVerdictRow:
    """A trace's verdict as Zeek takes it."""
    verdict = trace.verdict
    return TraceVerdictRow(
        trace.subject, trace.subject_kind, trace.start_us, trace.end_us, trace.flows, trace.cut, verdict.nearest,
        verdict.confidence, verdict.unknown, verdict.final, [flow.uid for flow in trace.top_flows],
        [flow.share for flow in trace.top_flows], verdict.model, verdict.version, trace.suspicion, trace.suspicious,
    )  # fmt: skip
