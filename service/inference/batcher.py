"""Collects flows from many callers into batches for one model: bounded, fair, urgent work first, each answered once.

Every engine of the model has a lane: a task that takes the next batch, and threads that compute it. Under load one
batch is encoded, and answered by a student, while the engine is at the one before. Lanes share the queue, so that a
model can be replaced by another while flows keep coming. Flows of the live path wait with it (`Feed`) until an engine
is ready, and are then one caller among the others.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Protocol

from tapline.models.flow import Flow
from tapline.service.engines.engine import Timing
from tapline.service.engines.thread import EngineStalledError
from tapline.service.inference.classifier import Classifier, FlowOutcome
from tapline.service.inference.fair_queue import FairQueue
from tapline.service.metrics import Metrics
from tapline.service.process.supervisor import STEADY_SECONDS, Part, Supervisor


class QueueFullError(RuntimeError):
    """The queue has no room; come again later."""


class VerdictError(RuntimeError):
    """Flows get no verdicts because the service is stopping."""


Answers = asyncio.Future[list[FlowOutcome | None]]
"""Outcomes of flows in order, None where the engine failed on a flow; cancelled by who does not want them any more."""


@dataclass(frozen=True, slots=True)
class Fed:
    """Flows that a feed hands over, when each came by `time.perf_counter`, and where their outcomes go."""

    flows: Sequence[Flow]
    arrived_at: Sequence[float]
    answers: Answers


class Feed(Protocol):
    """Flows that wait elsewhere until an engine is ready for them."""

    @property
    def busy_since(self) -> float:
        """Since when there have always been some, by `time.perf_counter`, where there are some now."""
        ...

    @property
    def queued_flows(self) -> int:
        """How many there are."""
        ...

    def hand_over(self, number: int) -> Fed | None:
        """At most so many, for the batch that is about to be computed; none where all were given up just now."""
        ...

    def failed(self, error: BaseException) -> None:
        """`hand_over` raised this: the batcher no longer takes from here, and its engines go on."""
        ...


BATCHES_UNDER_WAY = 2
"""Of an engine: one that it computes, and one on its way to it or back."""

_FED = "live"
"""The name by which flows of a feed take turns with those of callers."""


@dataclass(eq=False)
class _Group:
    """Flows submitted together; answered when the last has its outcome."""

    done: Answers
    outcomes: list[FlowOutcome | None]
    missing: int

    def answer(self, index: int, outcome: FlowOutcome | None) -> None:
        """Take the outcome of one flow; None if the engine failed on it."""
        self.outcomes[index] = outcome
        self.missing -= 1
        if not self.missing and not self.done.done():
            self.done.set_result(self.outcomes)


@dataclass(slots=True, eq=False)
class _Item:
    flow: Flow
    group: _Group
    index: int
    ports: bool | None
    cascade: bool | None
    queued_at: float
    answered: bool = False

    def answer(self, outcome: FlowOutcome | None) -> None:
        """Give the flow its outcome, None if the engine failed on it; only the first counts."""
        if not self.answered:
            self.answered = True
            self.group.answer(self.index, outcome)


@dataclass(eq=False)
class _Lane:
    """One engine at work. A retired lane takes no further batch."""

    classifier: Classifier
    thread: ThreadPoolExecutor
    retired: bool = False
    part: Part | None = None


class Batcher:
    """Blocks for the first flow, then waits at most `max_queue_delay_ms` for the batch to fill.

    A batch is full with `max_batch_size` flows or `max_batch_tokens` tokens. Callers take turns, flow by flow.
    """

    def __init__(
        self,
        classifiers: Sequence[Classifier],
        metrics: Metrics,
        *,
        max_batch_size: int = 256,
        max_batch_tokens: int = 65_536,
        max_queue_delay_ms: float = 5.0,
        max_queue_size: int = 16_384,
        supervisor: Supervisor | None = None,
    ) -> None:
        self._supervisor = supervisor or Supervisor(metrics)
        self.max_batch_size = max_batch_size
        self.max_queue_size = max_queue_size
        self.failing = False
        self._max_batch_tokens = max_batch_tokens
        self._delay_seconds = max_queue_delay_ms / 1000
        self._metrics = metrics
        self._lanes = [_lane(classifier) for classifier in classifiers]
        self._queue: FairQueue[_Item] = FairQueue()
        self._feed: Feed | None = None
        self._waiting_since = 0.0
        self._arrived = asyncio.Event()
        self._forming = asyncio.Lock()
        self._room = asyncio.Condition()
        self._callers = count()
        self._stopping = False

    @property
    def classifier(self) -> Classifier:
        """What classifies now; after `replace` another."""
        return self._lanes[0].classifier

    @property
    def classifiers(self) -> list[Classifier]:
        """What classifies now, one for each engine."""
        return [lane.classifier for lane in self._lanes]

    @property
    def provider(self) -> str:
        """What computes, as of `Engine`; with several engines all that do, and how many alike."""
        counts = Counter(lane.classifier.provider for lane in self._lanes)
        return ", ".join(name if alike == 1 else f"{alike} of {name}" for name, alike in counts.items())

    @property
    def waiting_flows(self) -> int:
        """Flows in the queue."""
        return len(self._queue)

    @contextlib.contextmanager
    def fed_by(self, feed: Feed) -> Iterator[Callable[[], None]]:
        """Take flows of a feed, too, while the block runs; gives what to call when it has some again."""
        self._feed = feed
        self._arrived.set()
        try:
            yield self._arrived.set
        finally:
            self._feed = None

    def start(self) -> None:
        """Start the lanes; call once, in the event loop that will submit."""
        for number, lane in enumerate(self._lanes, 1):
            name = f"engine {number} of {lane.classifier.checkpoint.name}"
            steady_seconds = max(STEADY_SECONDS, 2 * lane.classifier.thread.timeout_seconds)
            lane.part = self._supervisor.start(name, partial(self._work, lane), steady_seconds)

    async def replace(self, classifiers: Sequence[Classifier]) -> None:
        """Classify with others from the next batch on; returns when the old ones have finished theirs."""
        old, self._lanes = self._lanes, [_lane(classifier) for classifier in classifiers]
        self.start()
        for lane in old:
            lane.retired = True
        self._arrived.set()
        await asyncio.gather(*_tasks(old), return_exceptions=True)

    async def stop(self, drain_seconds: float) -> None:
        """Take no more, finish what is queued within the limit, answer the rest with `VerdictError`."""
        self._stopping = True
        self._arrived.set()
        if tasks := _tasks(self._lanes):
            await asyncio.wait(tasks, timeout=drain_seconds)
        await self._supervisor.stop(lane.part for lane in self._lanes if lane.part)
        for lane in self._lanes:
            lane.classifier.give_up()
            lane.thread.shutdown(wait=False)
        self._cancel_queued()

    def submit(
        self,
        flows: Sequence[Flow],
        *,
        caller: str = "",
        urgent: bool = True,
        ports: bool | None = None,
        cascade: bool | None = None,
    ) -> Answers:
        """Queue flows; the future gives their outcomes in order, None where the engine failed on a flow.

        Callers of one name share a turn; without a name, every call is a caller of its own. `ports`: whether verdicts
        read ports, `cascade`: whether a student may answer, each None as the classifier does. Cancel the future and
        what is not yet computed never is.

        Raises:
            QueueFullError: there is no room for all of them; none is queued.
            VerdictError: the service is stopping.
        """
        self.check_room(len(flows))
        answers: Answers = asyncio.get_running_loop().create_future()
        if not flows:
            answers.set_result([])
            return answers
        now = time.perf_counter()
        if not self._queue:
            self._waiting_since = now
        name = caller or f"call {next(self._callers)}"
        self._put(name, Fed(flows, [now] * len(flows), answers), urgent=urgent, ports=ports, cascade=cascade)
        self._metrics.queue_flows.set(len(self._queue))
        self._arrived.set()
        return answers

    def _put(
        self, name: str, fed: Fed, *, urgent: bool, ports: bool | None = None, cascade: bool | None = None
    ) -> None:
        group = _Group(fed.answers, [None] * len(fed.flows), len(fed.flows))
        tokens = self.classifier.tokens
        for index, (flow, queued_at) in enumerate(zip(fed.flows, fed.arrived_at, strict=True)):
            item = _Item(flow, group, index, ports, cascade, queued_at)
            self._queue.put(name, item, tokens=tokens(flow), urgent=urgent)

    def check_room(self, flows: int) -> None:
        """See whether so many flows can be queued now.

        Raises:
            QueueFullError: there is no room for all of them.
            VerdictError: the service is stopping.
        """
        if self._stopping:
            raise VerdictError("the service is stopping")
        if len(self._queue) + flows > self.max_queue_size:
            self._metrics.failures.labels("REJECTED").inc(flows)
            raise QueueFullError(f"{len(self._queue)} flows are waiting, the limit is {self.max_queue_size}")

    async def classify(
        self,
        flows: Sequence[Flow],
        *,
        caller: str = "",
        urgent: bool = False,
        ports: bool | None = None,
        cascade: bool | None = None,
    ) -> list[FlowOutcome | None]:
        """Outcomes in order; a batch for each engine and one more are under way at a time, and it waits for room where
        the queue is full. Arguments as of `submit`."""
        found: list[FlowOutcome | None] = []
        step = min(self.max_batch_size, self.max_queue_size)
        under_way: deque[Answers] = deque()
        try:
            for start in range(0, len(flows), step):
                if len(under_way) > len(self._lanes):
                    found += await under_way.popleft()
                part = flows[start : start + step]
                put = partial(self.submit, part, caller=caller, urgent=urgent, ports=ports, cascade=cascade)
                under_way.append(await self._when_room(len(part), put))
            while under_way:
                found += await under_way.popleft()
        finally:
            for unread in under_way:
                unread.cancel()
        return found

    async def _when_room(self, flows: int, submit: Callable[[], Answers]) -> Answers:
        async with self._room:
            await self._room.wait_for(lambda: self._stopping or len(self._queue) + flows <= self.max_queue_size)
            return submit()

    async def _work(self, lane: _Lane) -> None:
        """Batch after batch, until the lane is retired, or the service stops and nothing is left.

        Raises:
            EngineStalledError: its engine hangs. Who starts the lane again hears of it until the engine answers.
        """
        engine = lane.classifier.thread
        under_way: deque[asyncio.Task[None]] = deque()
        try:
            while not (lane.retired or engine.is_closed) and (self._waiting or not self._stopping):
                engine.check()
                batch = await self._next_batch(lane)
                before = under_way[-1] if under_way else None
                under_way.append(asyncio.create_task(self._answer(lane, batch, before)))
                while under_way and (len(under_way) == BATCHES_UNDER_WAY or not self._waiting):
                    await under_way.popleft()
            while under_way:
                await under_way.popleft()
        finally:
            for computing in under_way:
                computing.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)
        lane.thread.shutdown(wait=False)

    async def _answer(self, lane: _Lane, batch: list[_Item], before: asyncio.Task[None] | None) -> None:
        """Compute a batch, and answer it after the one before. Whatever happens, every waiter hears of it, and who
        waits for room, also where nobody wants what was taken."""
        try:
            if batch:
                await self._compute(lane, batch, before)
        finally:
            for item in batch:
                item.answer(None)
        async with self._room:
            self._room.notify_all()

    async def _next_batch(self, lane: _Lane) -> list[_Item]:
        """What is next, without those nobody waits for any more; empty when there is nothing more for this lane."""
        async with self._forming:
            while not self._waiting:
                if lane.retired or self._stopping:
                    return []
                self._arrived.clear()
                await self._arrived.wait()
            if lane.retired:
                return []
            await self._fill()
            self._take_over()
            items = self._queue.take(self.max_batch_size, self._max_batch_tokens)
        self._metrics.queue_flows.set(len(self._queue))
        batch = [item for item in items if not item.group.done.done()]
        self._metrics.failures.labels("CANCELED").inc(len(items) - len(batch))
        now = time.perf_counter()
        self._metrics.queue_seconds.observe_all([now - item.queued_at for item in batch])
        return batch

    @property
    def _waiting(self) -> int:
        """Flows here and in the feed."""
        return len(self._queue) + (self._feed.queued_flows if self._feed is not None else 0)

    def _take_over(self) -> None:
        """Let as many flows of the feed as fill a batch take turns with those that callers submitted. They come no
        sooner, so that the feed says until now which, and beyond the bound of this queue, which is for callers."""
        room = self.max_batch_size - self._queue.waiting_of(_FED)
        if self._feed is not None and room > 0 and self._feed.queued_flows:
            feed, fed = self._feed, None
            try:
                fed = feed.hand_over(room)
            except (Exception, asyncio.CancelledError) as error:
                self._feed = None
                feed.failed(error)
            if fed is not None:
                self._put(_FED, fed, urgent=True)

    async def _fill(self) -> None:
        """Wait until the queue holds a full batch, or its first flow has waited long enough."""
        while self._waiting < self.max_batch_size and self._queue.tokens < self._max_batch_tokens:
            since = [self._waiting_since] if self._queue else []
            since += [self._feed.busy_since] if self._feed is not None and self._feed.queued_flows else []
            if not since:
                return
            left = min(since) + self._delay_seconds - time.perf_counter()
            if left <= 0 or self._stopping:
                return
            self._arrived.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._arrived.wait()

    async def _compute(self, lane: _Lane, batch: list[_Item], before: asyncio.Task[None] | None) -> None:
        """Answer a batch; what is left of it when this returns has no outcome.

        Raises:
            EngineStalledError: the engine hangs.
        """
        loop, flows, classifier = asyncio.get_running_loop(), [item.flow for item in batch], lane.classifier
        ports = [classifier.ports if item.ports is None else item.ports for item in batch]
        cascade = [classifier.asked_cascade if item.cascade is None else item.cascade for item in batch]

        def classify() -> tuple[list[FlowOutcome | None], Timing]:
            return classifier.classify_each(flows, ports, cascade), classifier.last_timing

        try:
            found, timing = await loop.run_in_executor(lane.thread, classify)
        except EngineStalledError:
            self._metrics.failures.labels("BACKEND").inc(len(batch))
            if classifier.thread.is_closed:
                return
            self.failing = True
            raise
        if before is not None:
            await asyncio.wait([before])
        self.failing = all(outcome is None for outcome in found)
        self._metrics.failures.labels("BACKEND").inc(found.count(None))
        self._metrics.observe_batch(timing, len(batch))
        self._metrics.count_verdicts(outcome.verdict for outcome in found if outcome is not None and outcome.verdict)
        for item, outcome in zip(batch, found, strict=True):
            item.answer(outcome)

    def _cancel_queued(self) -> None:
        self._metrics.failures.labels("CANCELED").inc(len(self._queue))
        for item in self._queue.take(len(self._queue)):
            if not item.group.done.done():
                item.group.done.set_exception(VerdictError("the service is stopping"))


def _tasks(lanes: Sequence[_Lane]) -> list[asyncio.Task[None]]:
    return [lane.part.task for lane in lanes if lane.part and lane.part.task]


def _lane(classifier: Classifier) -> _Lane:
    return _Lane(classifier, ThreadPoolExecutor(BATCHES_UNDER_WAY, thread_name_prefix="engine"))
