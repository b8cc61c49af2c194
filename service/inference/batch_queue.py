"""The queue of a batcher: what callers submitted, and the next batch of it and of a feed, for whichever engine asks."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import count

from tapline.models.flow import Flow
from tapline.service.inference.fair_queue import FairQueue
from tapline.service.inference.waiting import Answers, Fed, Feed, Group, QueueFullError, VerdictError, Waiting
from tapline.service.metrics import Metrics

_FED = "live"
"""The name by which flows of a feed take turns with those of callers."""


class BatchQueue:
    """Bounded, fair by caller, urgent flows first. Blocks for the first flow of a batch, then waits at most
    `delay_seconds` for `max_batch_size` flows or `max_batch_tokens` tokens."""

    def __init__(
        self,
        metrics: Metrics,
        tokens: Callable[[Flow], int],
        *,
        max_batch_size: int,
        max_batch_tokens: int,
        delay_seconds: float,
        max_queue_size: int,
    ) -> None:
        """`tokens`: what computing a flow costs."""
        self.max_batch_size = max_batch_size
        self.max_queue_size = max_queue_size
        self.stopping = False
        self._max_batch_tokens = max_batch_tokens
        self._delay_seconds = delay_seconds
        self._metrics = metrics
        self._tokens = tokens
        self._queue: FairQueue[Waiting] = FairQueue()
        self._feed: Feed | None = None
        self._waiting_since = 0.0
        self._arrived = asyncio.Event()
        self._forming = asyncio.Lock()
        self._room = asyncio.Event()
        self._callers = count()

    def __len__(self) -> int:
        return len(self._queue)

    @property
    def waiting_flows(self) -> int:
        """Flows here and in the feed."""
        return len(self._queue) + (self._feed.queued_flows if self._feed is not None else 0)

    @contextlib.contextmanager
    def fed_by(self, feed: Feed) -> Iterator[Callable[[], None]]:
        """As of `Batcher`."""
        self._feed = feed
        self._arrived.set()
        try:
            yield self._arrived.set
        finally:
            self._feed = None

    def wake(self) -> None:
        """Let whoever waits for flows, or for room, look again: something else has changed."""
        self._arrived.set()
        self._room.set()

    def submit(
        self, flows: Sequence[Flow], caller: str, *, urgent: bool, ports: bool | None, cascade: bool | None
    ) -> Answers:
        """As of `Batcher`."""
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
        group = Group(fed.answers, [None] * len(fed.flows), len(fed.flows))
        for index, (flow, queued_at) in enumerate(zip(fed.flows, fed.arrived_at, strict=True)):
            item = Waiting(flow, group, index, ports, cascade, queued_at)
            self._queue.put(name, item, tokens=self._tokens(flow), urgent=urgent)

    def check_room(self, flows: int) -> None:
        """See whether so many flows can be queued now.

        Raises:
            QueueFullError: there is no room for all of them.
            VerdictError: the service is stopping.
        """
        if self.stopping:
            raise VerdictError("the service is stopping")
        if not self._has_room(flows):
            self._metrics.failures.labels("REJECTED").inc(flows)
            raise QueueFullError(f"{len(self._queue)} flows are waiting, the limit is {self.max_queue_size}")

    async def wait_for_room(self, flows: int) -> None:
        """Wait until so many flows can be queued, or the service stops."""
        while not (self.stopping or self._has_room(flows)):
            self._room.clear()
            await self._room.wait()

    def _has_room(self, flows: int) -> bool:
        return len(self._queue) + flows <= self.max_queue_size

    async def next_batch(self, is_retired: Callable[[], bool]) -> list[Waiting]:
        """What is next, without those nobody waits for any more; empty where all are, or where whoever asks is retired
        meanwhile, or the service stops and nothing is left. Whoever is cancelled has taken nothing."""
        async with self._forming:
            while not self.waiting_flows:
                if is_retired() or self.stopping:
                    return []
                self._arrived.clear()
                await self._arrived.wait()
            if is_retired():
                return []
            await self._fill()
            self._take_over()
            items = self._queue.take(self.max_batch_size, self._max_batch_tokens)
        self._room.set()
        self._metrics.queue_flows.set(len(self._queue))
        batch = [item for item in items if not item.group.done.done()]
        self._metrics.failures.labels("CANCELED").inc(len(items) - len(batch))
        now = time.perf_counter()
        self._metrics.queue_seconds.observe_all([now - item.queued_at for item in batch])
        return batch

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
        while self.waiting_flows < self.max_batch_size and self._queue.tokens < self._max_batch_tokens:
            since = [self._waiting_since] if self._queue else []
            since += [self._feed.busy_since] if self._feed is not None and self._feed.queued_flows else []
            if not since:
                return
            left = min(since) + self._delay_seconds - time.perf_counter()
            if left <= 0 or self.stopping:
                return
            self._arrived.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._arrived.wait()

    def give_up(self) -> None:
        """Tell everybody whose flows are queued, or wait for room, that the service is stopping."""
        self._metrics.failures.labels("CANCELED").inc(len(self._queue))
        for item in self._queue.take(len(self._queue)):
            if not item.group.done.done():
                item.group.done.set_exception(VerdictError("the service is stopping"))
        self.wake()
