"""Batches of flows on several lanes at a time: what comes next is read while what was read is computed."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import cycle
from queue import SimpleQueue
from typing import Protocol

from tapline.models.flow import Flow
from tapline.service.inference.classifier import Classifier, FlowOutcome
from tapline.service.sources.capture import CaptureError

LANES = 2
"""Batches that are computed at a time by one engine."""

CLOSE_SECONDS = 5.0
"""Longest time that a batch which nobody waits for any more is waited for."""

Outcomes = list[FlowOutcome | None]
"""As of `Classifier.classify_each`: one for each flow of a batch."""


class Lane(Protocol):
    """Computes batches in the order in which they are started."""

    def start(self, flows: list[Flow]) -> None:
        """Begin with a batch, or let it wait for the one before."""
        ...

    def outcomes(self) -> Outcomes:
        """What was said of the oldest batch of which nobody asked yet; waits for it. Raises what computing raised."""
        ...


class ThreadLane:
    """A lane of a thread of its own. Two of them keep one engine at work: one encodes while the other's batch is
    computed, outside the interpreter's lock.

    A daemon: the interpreter does not wait for an engine that hangs.
    """

    def __init__(self, classifier: Classifier) -> None:
        """`classifier`: nobody else's."""
        self._classifier = classifier
        self._asked: SimpleQueue[list[Flow] | None] = SimpleQueue()
        self._given: SimpleQueue[Outcomes | Exception] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="classifying", daemon=True)
        self._thread.start()

    def start(self, flows: list[Flow]) -> None:
        """As of `Lane`."""
        self._asked.put(flows)

    def outcomes(self) -> Outcomes:
        """As of `Lane`."""
        given = self._given.get()
        if isinstance(given, Exception):
            raise given
        return given

    def close(self) -> None:
        """Take no more batches, and wait for the last one: a library that tidies up under a thread at work brings the
        interpreter down."""
        self._asked.put(None)
        self._thread.join(CLOSE_SECONDS)

    def _work(self) -> None:
        while (flows := self._asked.get()) is not None:
            try:
                self._given.put(self._classifier.classify_each(flows))
            except Exception as error:
                self._given.put(error)


@contextlib.contextmanager
def thread_lanes(classifier: Classifier) -> Iterator[list[Lane]]:
    """Lanes of this process for the engine of a classifier."""
    lanes = [ThreadLane(classifier.with_traces(classifier.trace_engines)) for _ in range(LANES)]
    try:
        yield [*lanes]
    finally:
        for lane in lanes:
            lane.close()


def in_order(batches: Iterable[list[Flow]], lanes: Sequence[Lane]) -> Iterator[tuple[list[Flow], Outcomes]]:
    """Batches with what was said of them, in their order; as many are under way as there are lanes, which take turns.

    Raises:
        CaptureError: reading failed; what was read before comes first.
        Exception: what a lane raises.
    """
    under_way: deque[tuple[list[Flow], Lane]] = deque()
    failed: CaptureError | None = None
    reading = iter(batches)
    for lane in cycle(lanes):
        try:
            batch = next(reading, None)
        except CaptureError as error:
            failed, batch = error, None
        if batch is None:
            break
        if len(under_way) == len(lanes):
            yield _oldest(under_way)
        lane.start(batch)
        under_way.append((batch, lane))
    while under_way:
        yield _oldest(under_way)
    if failed is not None:
        raise failed


def _oldest(under_way: deque[tuple[list[Flow], Lane]]) -> tuple[list[Flow], Outcomes]:
    batch, lane = under_way.popleft()
    return batch, lane.outcomes()
