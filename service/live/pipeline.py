"""The live path: flows from any source through the live queue and the batcher to the sinks, each flow counted once.

Who wants verdicts is told flow by flow; all else that can happens once for those that came or were computed together.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import msgspec
import numpy as np
from numpy.typing import NDArray

from tapline.models.flow import Flow
from tapline.models.verdict import Verdict
from tapline.service.inference.batcher import Batcher
from tapline.service.inference.classifier import FlowOutcome
from tapline.service.inference.fair_queue import HeavyHitters
from tapline.service.inference.waiting import Answers, Fed
from tapline.service.live.live_queue import Deliver, LiveFlow, LiveQueue
from tapline.service.log_lines import log
from tapline.service.metrics import Metrics
from tapline.service.process.quiet_log import QuietLog
from tapline.service.sources.bus.glances import Glance, Wanted

OPEN_FLOWS = 65_536
"""Early verdicts remembered until the flow's end; the oldest are forgotten first."""

RECENT_LATENCIES = 4096

SHED_LATELY = 1024
"""Subjects of which flows were shed, before these are added up: that costs more for each than shedding."""


Embedded = Callable[[Verdict, NDArray[np.float32]], None]
"""Is told of the embedding from which a verdict came, float32 [2 width], which it copies where it keeps it."""


@dataclass(slots=True, frozen=True)
class _Early:
    """An early flow that was seen: its outcome and what that was given on, where it was not shed."""

    input_hash: int = 0
    outcome: FlowOutcome | None = None


_SEEN = _Early()


@dataclass(slots=True)
class LiveCounts:
    """What became of the flows.

    `received` = `delivered` + `superseded` + `shed` + `skipped` + `failed` + those still waiting. `flows` counts each
    uid once, `reused` the deliveries that needed no computing, `superseded` the early forms replaced while they waited,
    `expired` those of the shed that had waited past their deadline, `unread` those that were shed before they were read
    from a batch.
    """

    received: int = 0
    flows: int = 0
    delivered: int = 0
    reused: int = 0
    superseded: int = 0
    shed: int = 0
    expired: int = 0
    unread: int = 0
    skipped: int = 0
    failed: int = 0


def _is_awaited(complete: bool, early: _Early | None) -> bool:
    """Whether shedding a flow would leave an early verdict without its end."""
    return complete and early is not None and early.outcome is not None


class LivePipeline:
    """Takes flows without ever waiting, and delivers a verdict for each that is not shed. A feed of its batcher."""

    def __init__(
        self,
        batcher: Batcher,
        metrics: Metrics,
        *,
        queue_flows: int,
        deadline_seconds: float = 0.0,
        embedded: Embedded = lambda verdict, embedding: None,
    ) -> None:
        """`deadline_seconds` as of `LiveQueue`; `embedded` is told of what was computed of each flow that has a
        verdict."""
        self.counts = LiveCounts()
        self._shed_by_subject = HeavyHitters()
        self._shed_lately: Counter[str] = Counter()
        self.latencies_seconds: deque[float] = deque(maxlen=RECENT_LATENCIES)
        self._batcher = batcher
        self._metrics = metrics
        self._embedded = embedded
        self._queue = LiveQueue(queue_flows, self._shed, deadline_seconds=deadline_seconds)
        self._open: OrderedDict[str, _Early] = OrderedDict()
        self._in_flight = 0
        self._working: set[Answers] = set()
        self._log = QuietLog(log)
        self._counters = {each.name: metrics.live_flows.labels(each.name) for each in fields(LiveCounts)}
        self._shown = dict.fromkeys(self._counters, 0)
        self._not_shown: list[float] | None = None
        self._wake: Callable[[], None] = lambda: None
        self._ended: asyncio.Future[None]

    @property
    def waiting_flows(self) -> int:
        """Flows without a verdict yet."""
        return len(self._queue) + self._in_flight

    @property
    def queue_share(self) -> float:
        """How full the queue is, 0 to 1."""
        return len(self._queue) / self._queue.size

    def take(self, flow: Flow, deliver: Deliver, *, expires: bool = True) -> None:
        """Take a flow; `deliver` is called with its outcome, later or at once, unless it is shed.

        `expires` False: it has no deadline, because its source waits for room.
        """
        self._show_soon()
        self.counts.received += 1
        if not self._batcher.classifier.accepts(flow):
            self._skip(flow)
            self._tell(flow, None, deliver)
            return
        queued = self._queue.find(flow.uid)
        if queued is not None:  # the early form still waits: the final one takes its place
            self.counts.superseded += 1
            queued.flow, queued.deliver = flow, deliver
            return
        early = self._open.get(flow.uid)
        self._note(flow.uid, flow.complete, early)
        if expires and not _is_awaited(flow.complete, early) and self._queue.refused([flow.orig_h])[0]:
            self._count_shed([flow.orig_h])
            return
        live = LiveFlow(flow, deliver, flow.orig_h, time.perf_counter(), not flow.complete, expires)
        outcome = early.outcome if early is not None else None
        if early is not None and outcome is not None and early.input_hash == self._batcher.classifier.input_hash(flow):
            self._reuse(live, outcome)
        else:
            self._queue.put(live)

    def choose(self) -> Wanted | None:
        """Which flows of a batch to read that came just now: None where all are. The others are counted here."""
        return self._wanted if self._queue.is_overloaded else None

    def _wanted(self, glances: Sequence[Glance | None]) -> list[bool]:
        self._show_soon()
        wanted, shed = [True] * len(glances), []
        refused = self._queue.refused([glance.orig_h if glance is not None else "" for glance in glances])
        for place, (glance, is_refused) in enumerate(zip(glances, refused, strict=True)):
            if is_refused and glance is not None and self._queue.find(glance.uid) is None:
                early = self._open.get(glance.uid)
                if not _is_awaited(glance.final, early):
                    wanted[place] = False
                    shed.append(glance.orig_h)
                    self._note(glance.uid, glance.final, early)
        self.counts.received += len(shed)
        self.counts.unread += len(shed)
        self._count_shed(shed)
        return wanted

    def _note(self, uid: str, complete: bool, early: _Early | None) -> None:
        """A form of a flow came, `early` is what is known of one before."""
        if early is None:
            self.counts.flows += 1
        if not complete:
            self._remember(uid, early or _SEEN)

    async def run(self) -> None:
        """Feed the batcher until cancelled; raises what went wrong in it."""
        self._ended = asyncio.get_running_loop().create_future()
        with self._batcher.fed_by(self) as self._wake:
            await self._ended

    @property
    def busy_since(self) -> float:
        """As of `Feed`."""
        return self._queue.busy_since

    @property
    def queued_flows(self) -> int:
        """As of `Feed`: flows that no engine has begun with."""
        return len(self._queue)

    def hand_over(self, number: int) -> Fed | None:
        """As of `Feed`."""
        self._show_soon()
        batch = self._queue.take(number)
        if not batch:
            return None
        answers: Answers = asyncio.get_running_loop().create_future()
        answers.add_done_callback(lambda _: self._answered(batch, answers))
        self._working.add(answers)
        self._in_flight += len(batch)
        return Fed([live.flow for live in batch], [live.arrived_at for live in batch], answers)

    def failed(self, error: BaseException) -> None:
        """As of `Feed`: `run` ends with it."""
        if self._ended.done():
            return
        if isinstance(error, asyncio.CancelledError):
            self._ended.cancel()
        else:
            self._ended.set_exception(error)

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

    def _answered(self, batch: list[LiveFlow], answers: Answers) -> None:
        self._show_soon()
        self._working.discard(answers)
        self._in_flight -= len(batch)
        if answers.cancelled() or answers.exception() is not None:  # the service is stopping
            self.counts.failed += len(batch)
            return
        for live, outcome in zip(batch, answers.result(), strict=True):
            if outcome is None:
                self.counts.failed += 1
            else:
                self._deliver(live, outcome)

    def _skip(self, flow: Flow) -> None:
        self.counts.skipped += 1
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
            self.counts.delivered += 1
            self._show_soon().append(time.perf_counter() - live.arrived_at)
        self._tell(flow, outcome, live.deliver)

    def _tell(self, flow: Flow, outcome: FlowOutcome | None, deliver: Deliver) -> None:
        try:
            if outcome is not None and outcome.verdict is not None and outcome.embedding is not None:
                self._embedded(outcome.verdict, outcome.embedding)
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
        self.counts.reused += 1
        final = msgspec.structs.replace(early.verdict, final=live.flow.complete)
        self._metrics.count_verdicts([final])
        self._deliver(live, FlowOutcome(final))

    def _shed(self, flows: list[LiveFlow], expired: bool) -> None:
        self.counts.expired += len(flows) if expired else 0
        self._count_shed([live.subject for live in flows])

    def _count_shed(self, subjects: Sequence[str]) -> None:
        self.counts.shed += len(subjects)
        self._shed_lately.update(subjects)
        if len(self._shed_lately) >= SHED_LATELY:
            self._add_shed()

    def _add_shed(self) -> HeavyHitters:
        for subject, flows in self._shed_lately.items():
            self._shed_by_subject.add(subject, flows)
        self._shed_lately.clear()
        return self._shed_by_subject

    @property
    def shed_by_subject(self) -> HeavyHitters:
        """How many were shed of whom."""
        return self._add_shed()

    def _show_soon(self) -> list[float]:
        """Bring metrics up to date, and wake the batcher, when all that comes at once has come. Gives the latencies
        that are not shown yet."""
        if self._not_shown is None:
            self._not_shown = []
            asyncio.get_running_loop().call_soon(self._show)
        return self._not_shown

    def _show(self) -> None:
        latencies, self._not_shown = self._not_shown or [], None
        self.latencies_seconds.extend(latencies)
        self._metrics.live_seconds.observe_all(latencies)
        self._metrics.live_queue_flows.set(len(self._queue))
        for name, counter in self._counters.items():
            flows = getattr(self.counts, name)
            if flows != self._shown[name]:
                counter.inc(flows - self._shown[name])
                self._shown[name] = flows
        if len(self._queue):
            self._wake()
