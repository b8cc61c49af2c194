"""One engine at work: takes batch after batch, has two of them under way, and answers them in their order."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from tapline.service.engines.engine import Timing
from tapline.service.engines.thread import EngineStalledError
from tapline.service.inference.batch_queue import BatchQueue
from tapline.service.inference.classifier import Classifier, FlowOutcome
from tapline.service.inference.waiting import Waiting
from tapline.service.metrics import Metrics
from tapline.service.process.supervisor import Part

BATCHES_UNDER_WAY = 2
"""Of an engine: one that it computes, and one on its way to it or back."""


class Lane:
    """An engine with the threads that encode for it. A retired lane takes no further batch."""

    def __init__(
        self, classifier: Classifier, queue: BatchQueue, metrics: Metrics, tell_failing: Callable[[bool], None]
    ) -> None:
        """`tell_failing` hears after each batch whether the engine failed on all of it."""
        self.classifier = classifier
        self.retired = False
        self.part: Part | None = None
        self._queue = queue
        self._metrics = metrics
        self._tell_failing = tell_failing
        self._threads = ThreadPoolExecutor(BATCHES_UNDER_WAY, thread_name_prefix="engine")

    async def work(self) -> None:
        """Batch after batch, until the lane is retired, or the service stops and nothing is left.

        Raises:
            EngineStalledError: its engine hangs. Who starts the lane again hears of it until the engine answers.
        """
        network, queue = self.classifier.network, self._queue
        under_way: deque[asyncio.Task[None]] = deque()
        try:
            while not (self.retired or network.is_closed) and (queue.waiting_flows or not queue.stopping):
                network.check()
                if batch := await queue.next_batch(lambda: self.retired):
                    under_way.append(self._start(batch, under_way[-1] if under_way else None))
                while under_way and (len(under_way) == BATCHES_UNDER_WAY or not queue.waiting_flows):
                    await under_way.popleft()
            while under_way:
                await under_way.popleft()
        finally:
            for computing in under_way:
                computing.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)
        self._threads.shutdown(wait=False)

    def give_up(self) -> None:
        """Wait for the engine no more: what it computes fails now."""
        self.classifier.give_up()
        self._threads.shutdown(wait=False)

    def _start(self, batch: Sequence[Waiting], before: asyncio.Task[None] | None) -> asyncio.Task[None]:
        """Compute a batch. Whatever happens to the task, also before it has begun, every waiter hears of it."""

        def over(task: asyncio.Task[None]) -> None:
            for item in batch:
                item.answer(None)

        computing = asyncio.create_task(self._compute(batch, before))
        computing.add_done_callback(over)
        return computing

    async def _compute(self, batch: Sequence[Waiting], before: asyncio.Task[None] | None) -> None:
        """Answer a batch, after the one before; what is left of it when this returns has no outcome.

        Raises:
            EngineStalledError: the engine hangs.
        """
        classifier = self.classifier
        try:
            found, timing = await asyncio.get_running_loop().run_in_executor(
                self._threads, partial(_classify, classifier, batch)
            )
        except EngineStalledError:
            self._metrics.failures.labels("BACKEND").inc(len(batch))
            if classifier.network.is_closed:
                return
            self._tell_failing(True)
            raise
        if before is not None:
            await asyncio.wait([before])
        self._tell_failing(all(outcome is None for outcome in found))
        self._metrics.failures.labels("BACKEND").inc(found.count(None))
        self._metrics.observe_batch(timing, len(batch))
        self._metrics.count_verdicts(outcome.verdict for outcome in found if outcome is not None and outcome.verdict)
        for item, outcome in zip(batch, found, strict=True):
            item.answer(outcome)


def _classify(classifier: Classifier, batch: Sequence[Waiting]) -> tuple[list[FlowOutcome | None], Timing]:
    """The outcomes of a batch, in a thread, and what they took."""
    ports = [classifier.ports if item.ports is None else item.ports for item in batch]
    cascade = [classifier.asked_cascade if item.cascade is None else item.cascade for item in batch]
    return classifier.classify_each([item.flow for item in batch], ports, cascade), classifier.last_timing
