"""The live path: flows from any source through the fair queue and the batcher to the sinks, each flow counted once."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec
import numpy as np
import structlog
from numpy.typing import NDArray

from tapline.models.flow import Flow
from tapline.models.verdict import Verdict
from tapline.service.inference.batcher import Batcher, VerdictError
from tapline.service.inference.classifier import FlowOutcome
from tapline.service.inference.fair_queue import FairQueue, HeavyHitters
from tapline.service.metrics import Metrics
from tapline.service.process.quiet_log import QuietLog

log = structlog.get_logger()

OPEN_FLOWS = 65_536
"""Early verdicts remembered until the flow's end; the oldest are forgotten first."""

BATCHES_AT_ONCE = 2
"""Batches between this queue and the engine: one computed, one ready. More would undo the queue's fairness."""

RECENT_LATENCIES = 4096


Deliver = Callable[[Flow, FlowOutcome | None], None]
"""Is told of a flow what came of it; None where there was nothing to ask about it."""

Embedded = Callable[[Verdict, NDArray[np.float32]], None]
"""Is told of the embedding from which a verdict came, float32 [2 width], which it copies where it keeps it."""


@dataclass(slots=True, eq=False)
class LiveFlow:
    """A flow on its way, and who is told what came of it."""

    flow: Flow
    deliver: Deliver
    arrived_at: float = field(default_factory=time.perf_counter)


@dataclass(slots=True, frozen=True)
class _Early:
    """An early flow that was seen: its outcome and what that was given on, where it was not shed."""

    input_hash: int = 0
    outcome: FlowOutcome | None = None


@dataclass
class LiveCounts:
    """What became of the flows.

    `received` = `delivered` + `superseded` + `shed` + `skipped` + `failed` + those still waiting. `flows` counts each
    uid once, `reused` the deliveries that needed no computing, `superseded` the early forms replaced while they waited.
    """

    received: int = 0
    flows: int = 0
    delivered: int = 0
    reused: int = 0
    superseded: int = 0
    shed: int = 0
    skipped: int = 0
    failed: int = 0


class LivePipeline:
    """Takes flows without ever waiting, and delivers a verdict for each that is not shed."""

    def __init__(
        self,
        batcher: Batcher,
        metrics: Metrics,
        *,
        queue_flows: int,
        embedded: Embedded = lambda verdict, embedding: None,
    ) -> None:
        """`embedded` is told of what was computed of each flow that has a verdict."""
        self.counts = LiveCounts()
        self.shed_by_subject = HeavyHitters()
        self.latencies_seconds: deque[float] = deque(maxlen=RECENT_LATENCIES)
        self._batcher = batcher
        self._metrics = metrics
        self._embedded = embedded
        self._queue: FairQueue[LiveFlow] = FairQueue(queue_flows, self._shed)
        self._queued: dict[str, LiveFlow] = {}
        self._open: OrderedDict[str, _Early] = OrderedDict()
        self._arrived = asyncio.Event()
        self._in_flight = 0
        self._log = QuietLog(log)
        self._working: set[asyncio.Task[None]] = set()

    @property
    def waiting_flows(self) -> int:
        """Flows without a verdict yet."""
        return len(self._queue) + self._in_flight

    @property
    def queue_share(self) -> float:
        """How full the queue is, 0 to 1."""
        return len(self._queue) / self._queue.size

    def _count(self, outcome: str, flows: int = 1) -> None:
        setattr(self.counts, outcome, getattr(self.counts, outcome) + flows)
        self._metrics.live_flows.labels(outcome).inc(flows)

    def take(self, flow: Flow, deliver: Deliver) -> None:
        """Take a flow; `deliver` is called with its outcome, later or at once, unless it is shed."""
        self._count("received")
        if not self._batcher.classifier.accepts(flow):
            self._skip(flow)
            self._tell(flow, None, deliver)
            return
        live = LiveFlow(flow, deliver)
        queued = self._queued.get(flow.uid)
        if queued is not None:  # the early form still waits: the final one takes its place
            self._count("superseded")
            queued.flow, queued.deliver = flow, deliver
            return
        early = self._open.get(flow.uid)
        if early is None:
            self._count("flows")
        elif early.outcome is not None and early.input_hash == self._batcher.classifier.input_hash(flow):
            self._reuse(live, early.outcome)
            return
        if not flow.complete:
            self._remember(flow.uid, early or _Early())
        self._queued[flow.uid] = live
        self._queue.put(flow.orig_h, live, urgent=not flow.complete)
        self._metrics.live_queue_flows.set(len(self._queue))
        self._arrived.set()

    async def run(self) -> None:
        """Feed the batcher until cancelled."""
        slots = asyncio.Semaphore(BATCHES_AT_ONCE)
        async with asyncio.TaskGroup() as tasks:  # where a batch fails, the others are accounted for, and this ends
            while True:
                await slots.acquire()
                while not len(self._queue):
                    self._arrived.clear()
                    await self._arrived.wait()
                batch = self._queue.take(self._batcher.max_batch_size)
                self._metrics.live_queue_flows.set(len(self._queue))
                for live in batch:
                    self._queued.pop(live.flow.uid, None)
                self._in_flight += len(batch)
                task = tasks.create_task(self._classify(batch))
                self._working.add(task)
                task.add_done_callback(self._working.discard)
                task.add_done_callback(lambda _: slots.release())

    async def drain(self, limit_seconds: float) -> None:
        """Wait until no flow waits for a verdict, at most so long; `run` must be running."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_seconds):
                while self.waiting_flows:
                    await asyncio.sleep(0.01)

    async def settle(self, limit_seconds: float) -> None:
        """Wait until the outcomes of all flows that are being classified now are delivered, at most so long."""
        if self._working:
            await asyncio.wait(set(self._working), timeout=limit_seconds)

    async def _classify(self, batch: list[LiveFlow]) -> None:
        found: list[FlowOutcome | None] = []
        try:
            found = await self._batcher.classify([live.flow for live in batch], caller="live", urgent=True)
        except VerdictError:
            return  # the service is stopping
        finally:
            self._in_flight -= len(batch)
            self._count("failed", len(batch) - len(found))
        for live, outcome in zip(batch, found, strict=True):
            if outcome is None:
                self._count("failed")
            else:
                self._deliver(live, outcome)

    def _skip(self, flow: Flow) -> None:
        self._count("skipped")
        reason = "below_min_packets" if flow.payload_lengths else "without_payload"
        self._metrics.flows_left_out.labels(reason).inc()

    def _deliver(self, live: LiveFlow, outcome: FlowOutcome) -> None:
        flow = live.flow
        if flow.complete:
            self._open.pop(flow.uid, None)
        else:
            self._remember(flow.uid, _Early(self._batcher.classifier.input_hash(flow), FlowOutcome(outcome.verdict)))
        if outcome.verdict is None:
            self._skip(flow)
        else:
            self._count("delivered")
            seconds = time.perf_counter() - live.arrived_at
            self.latencies_seconds.append(seconds)
            self._metrics.live_seconds.observe(seconds)
            if outcome.embedding is not None:
                self._embedded(outcome.verdict, outcome.embedding)
        self._tell(flow, outcome, live.deliver)

    def _tell(self, flow: Flow, outcome: FlowOutcome | None, deliver: Deliver) -> None:
        try:
            deliver(flow, outcome)
        except Exception as error:  # of a sink: it costs this verdict, not the others
            self._metrics.failures.labels("OTHER").inc()
            self._log.error("deliver", "a verdict was not delivered", error=type(error).__name__, exc_info=error)

    def _remember(self, uid: str, early: _Early) -> None:
        self._open[uid] = early
        if len(self._open) > OPEN_FLOWS:
            self._open.popitem(last=False)

    def _reuse(self, live: LiveFlow, early: FlowOutcome) -> None:
        """The final form of a flow shows the model nothing new: its early verdict is final, without an embedding."""
        if early.verdict is None:
            self._deliver(live, early)
            return
        self._count("reused")
        final = msgspec.structs.replace(early.verdict, final=live.flow.complete)
        self._metrics.count_verdict(final)
        self._deliver(live, FlowOutcome(final))

    def _shed(self, subject: str, live: LiveFlow) -> None:
        self._queued.pop(live.flow.uid, None)
        self._count("shed")
        self.shed_by_subject.add(subject)
