"""Collects flows from many callers into batches for one model: bounded, fair, urgent work first, each answered once.

Every engine of the model has a lane (`Lane`): a task that takes the next batch, and threads that compute it. Under load
one batch is encoded, and answered by a student, while the engine is at the one before. Lanes share the queue
(`BatchQueue`), so that a model can be replaced by another while flows keep coming. Flows of the live path wait with it
(`Feed`) until an engine is ready, and are then one caller among the others.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, deque
from collections.abc import Callable, Sequence

from tapline.models.flow import Flow
from tapline.service.inference.batch_queue import BatchQueue
from tapline.service.inference.classifier import Classifier, FlowOutcome
from tapline.service.inference.lane import Lane
from tapline.service.inference.waiting import Answers, Feed
from tapline.service.metrics import Metrics
from tapline.service.process.supervisor import STEADY_SECONDS, Supervisor


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
        self.failing = False
        self._metrics = metrics
        self._queue = BatchQueue(
            metrics,
            lambda flow: self.classifier.tokens(flow),
            max_batch_size=max_batch_size,
            max_batch_tokens=max_batch_tokens,
            delay_seconds=max_queue_delay_ms / 1000,
            max_queue_size=max_queue_size,
        )
        self._lanes = self._lanes_of(classifiers)

    def _lanes_of(self, classifiers: Sequence[Classifier]) -> list[Lane]:
        return [Lane(classifier, self._queue, self._metrics, self._note_failing) for classifier in classifiers]

    def _note_failing(self, failing: bool) -> None:
        self.failing = failing

    @property
    def max_batch_size(self) -> int:
        """Most flows of a batch."""
        return self._queue.max_batch_size

    @property
    def max_queue_size(self) -> int:
        """Most flows that callers have waiting."""
        return self._queue.max_queue_size

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

    def fed_by(self, feed: Feed) -> contextlib.AbstractContextManager[Callable[[], None]]:
        """Take flows of a feed, too, while the block runs; gives what to call when it has some again."""
        return self._queue.fed_by(feed)

    def start(self) -> None:
        """Start the lanes; call once, in the event loop that will submit."""
        for number, lane in enumerate(self._lanes, 1):
            name = f"engine {number} of {lane.classifier.checkpoint.name}"
            steady_seconds = max(STEADY_SECONDS, 2 * lane.classifier.network.timeout_seconds)
            lane.part = self._supervisor.start(name, lane.work, steady_seconds)

    async def replace(self, classifiers: Sequence[Classifier]) -> None:
        """Classify with others from the next batch on; returns when the old ones have finished theirs."""
        old, self._lanes = self._lanes, self._lanes_of(classifiers)
        self.start()
        for lane in old:
            lane.retired = True
        self._queue.wake()
        await asyncio.gather(*_tasks(old), return_exceptions=True)

    async def stop(self, drain_seconds: float) -> None:
        """Take no more, finish what is queued within the limit, answer the rest with `VerdictError`."""
        self._queue.stopping = True
        self._queue.wake()
        if tasks := _tasks(self._lanes):
            await asyncio.wait(tasks, timeout=drain_seconds)
        await self._supervisor.stop(lane.part for lane in self._lanes if lane.part)
        for lane in self._lanes:
            lane.give_up()
        self._queue.give_up()

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
        return self._queue.submit(flows, caller, urgent=urgent, ports=ports, cascade=cascade)

    def check_room(self, flows: int) -> None:
        """See whether so many flows can be queued now.

        Raises:
            QueueFullError: there is no room for all of them.
            VerdictError: the service is stopping.
        """
        self._queue.check_room(flows)

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
                await self._queue.wait_for_room(len(part))
                under_way.append(self.submit(part, caller=caller, urgent=urgent, ports=ports, cascade=cascade))
            while under_way:
                found += await under_way.popleft()
        finally:
            for unread in under_way:
                unread.cancel()
        return found


def _tasks(lanes: Sequence[Lane]) -> list[asyncio.Task[None]]:
    return [lane.part.task for lane in lanes if lane.part and lane.part.task]
