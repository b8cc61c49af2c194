"""Collects flows from many callers into batches for one engine; bounded, fair by arrival, answers every flow once."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import structlog

from models.flow import Flow
from service.classifier import Classifier, FlowOutcome
from service.metrics import Metrics

log = structlog.get_logger()


class QueueFullError(RuntimeError):
    """The queue has no room; come again later."""


class VerdictError(RuntimeError):
    """Flows get no verdicts because the service is stopping."""


@dataclass(eq=False)
class _Group:
    """Flows submitted together; answered when the last has its outcome."""

    done: asyncio.Future[list[FlowOutcome | None]]
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
    queued_at: float = field(default_factory=time.perf_counter)


class Batcher:
    """Blocks for the first flow, then waits at most `max_queue_delay_ms` for the batch to fill."""

    def __init__(
        self,
        classifier: Classifier,
        metrics: Metrics,
        *,
        max_batch_size: int = 256,
        max_queue_delay_ms: float = 5.0,
        max_queue_size: int = 16_384,
    ) -> None:
        self.classifier = classifier
        self.max_batch_size = max_batch_size
        self.max_queue_size = max_queue_size
        self._delay_seconds = max_queue_delay_ms / 1000
        self._metrics = metrics
        self._queue: deque[_Item] = deque()
        self._arrived = asyncio.Event()
        self._room = asyncio.Condition()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="engine")
        self._task: asyncio.Task[None] | None = None
        self._stopping = False

    @property
    def waiting_flows(self) -> int:
        """Flows in the queue."""
        return len(self._queue)

    def start(self) -> None:
        """Start the loop; call once, in the event loop that will submit."""
        self._task = asyncio.create_task(self._loop(), name="batcher")

    async def stop(self, drain_seconds: float) -> None:
        """Take no more, finish what is queued within the limit, answer the rest with `VerdictError`."""
        self._stopping = True
        self._arrived.set()
        if self._task is not None:
            done, _ = await asyncio.wait({self._task}, timeout=drain_seconds)
            if not done:
                self._task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await self._task
        self._cancel_queued()
        self._thread.shutdown(wait=False)

    def submit(self, flows: Sequence[Flow]) -> asyncio.Future[list[FlowOutcome | None]]:
        """Queue flows; the future gives their outcomes in order, None where the engine failed on a flow.

        Raises:
            QueueFullError: there is no room for all of them; none is queued.
            VerdictError: the service is stopping.
        """
        if self._stopping:
            raise VerdictError("the service is stopping")
        if len(self._queue) + len(flows) > self.max_queue_size:
            self._metrics.failures.labels("REJECTED").inc(len(flows))
            raise QueueFullError(f"{len(self._queue)} flows are waiting, the limit is {self.max_queue_size}")
        group = _Group(asyncio.get_running_loop().create_future(), [None] * len(flows), len(flows))
        if not flows:
            group.done.set_result([])
            return group.done
        self._queue.extend(_Item(flow, group, index) for index, flow in enumerate(flows))
        self._metrics.queue_flows.set(len(self._queue))
        self._arrived.set()
        return group.done

    async def classify(self, flows: Sequence[Flow]) -> list[FlowOutcome | None]:
        """Outcomes in order; waits for room where the queue is full. For bulk work that has no deadline."""
        found: list[FlowOutcome | None] = []
        step = min(self.max_batch_size, self.max_queue_size)
        for start in range(0, len(flows), step):
            found += await (await self._submit_when_room(flows[start : start + step]))
        return found

    async def _submit_when_room(self, flows: Sequence[Flow]) -> asyncio.Future[list[FlowOutcome | None]]:
        async with self._room:
            await self._room.wait_for(
                lambda: self._stopping or len(self._queue) + len(flows) <= self.max_queue_size,
            )
            return self.submit(flows)

    async def _loop(self) -> None:
        while self._queue or not self._stopping:
            if not self._queue:
                self._arrived.clear()
                await self._arrived.wait()
                continue
            batch = await self._next_batch()
            if batch:
                await self._run(batch)
            async with self._room:
                self._room.notify_all()

    async def _next_batch(self) -> list[_Item]:
        """The oldest flows, without those nobody waits for any more."""
        deadline = self._queue[0].queued_at + self._delay_seconds
        while len(self._queue) < self.max_batch_size and not self._stopping:
            left = deadline - time.perf_counter()
            if left <= 0:
                break
            self._arrived.clear()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._arrived.wait(), left)
        items = [self._queue.popleft() for _ in range(min(self.max_batch_size, len(self._queue)))]
        self._metrics.queue_flows.set(len(self._queue))
        batch = [item for item in items if not item.group.done.done()]
        self._metrics.failures.labels("CANCELED").inc(len(items) - len(batch))
        now = time.perf_counter()
        for item in batch:
            self._metrics.queue_seconds.observe(now - item.queued_at)
        return batch

    async def _run(self, batch: list[_Item]) -> None:
        loop = asyncio.get_running_loop()
        try:
            found = await loop.run_in_executor(self._thread, self.classifier.classify, [item.flow for item in batch])
        except Exception as error:  # whatever the engine raised, every waiter must hear of it
            if len(batch) > 1:  # one bad flow must not cost the others their verdicts
                for item in batch:
                    await self._run([item])
                return
            log.error("engine failed", error=type(error).__name__, uid=batch[0].flow.uid)
            self._metrics.failures.labels("BACKEND").inc()
            batch[0].group.answer(batch[0].index, None)
            return
        self._observe(len(batch))
        for item, outcome in zip(batch, found, strict=True):
            if outcome.verdict is not None:
                self._metrics.count_verdict(outcome.verdict)
            item.group.answer(item.index, outcome)

    def _observe(self, flows: int) -> None:
        timing = self.classifier.last_timing
        self._metrics.batch_flows.observe(flows)
        self._metrics.batch_tokens.observe(timing.tokens)
        self._metrics.encode_seconds.observe(timing.encode_seconds)
        self._metrics.compute_seconds.observe(timing.compute_seconds)
        self._metrics.lengths_out_of_vocabulary.inc(timing.lengths_out_of_vocabulary)

    def _cancel_queued(self) -> None:
        self._metrics.failures.labels("CANCELED").inc(len(self._queue))
        for item in self._queue:
            if not item.group.done.done():
                item.group.done.set_exception(VerdictError("the service is stopping"))
        self._queue.clear()
