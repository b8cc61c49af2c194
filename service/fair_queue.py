"""The bounded queue in front of the engine on the live path: overload costs those who send most.

Flows leave in turn by subject, and when the queue is full the subject with most flows in it loses its newest. A flood
is shed, the others get their verdicts, and the counts per subject keep the flood visible.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Generic, TypeVar

Item = TypeVar("Item")


class HeavyHitters:
    """Counts by key in bounded space: the space-saving algorithm (Metwally et al., ICDT 2005).

    A count is never below the true one, and above it by at most the smallest count kept.
    """

    def __init__(self, size: int = 1024) -> None:
        self._size = size
        self._counts: dict[str, int] = {}

    def add(self, key: str) -> None:
        """Count one."""
        counts = self._counts
        if key in counts:
            counts[key] += 1
        elif len(counts) < self._size:
            counts[key] = 1
        else:
            smallest = min(counts, key=counts.__getitem__)
            counts[key] = counts.pop(smallest) + 1

    def top(self, number: int) -> list[tuple[str, int]]:
        """The keys with the largest counts."""
        return sorted(self._counts.items(), key=lambda entry: (-entry[1], entry[0]))[:number]


class FairQueue(Generic[Item]):
    """A queue of at most `size` items, fair by subject; every operation takes constant time."""

    def __init__(self, size: int, on_shed: Callable[[str, Item], None]) -> None:
        self.size = size
        self._on_shed = on_shed
        self._queued = 0
        self._turns: OrderedDict[str, deque[Item]] = OrderedDict()
        self._by_length: dict[int, OrderedDict[str, None]] = {}
        self._longest = 0

    def __len__(self) -> int:
        return self._queued

    def put(self, subject: str, item: Item) -> None:
        """Queue an item; where there is no room, the newest item of the subject with most items is shed instead."""
        queue = self._turns.get(subject)
        if queue is None:
            queue = self._turns[subject] = deque()
        queue.append(item)
        self._queued += 1
        self._resized(subject, len(queue) - 1, len(queue))
        if self._queued > self.size:
            heaviest = next(reversed(self._by_length[self._longest]))
            self._on_shed(heaviest, self._remove(heaviest, newest=True))

    def take(self, number: int) -> list[Item]:
        """Up to so many items, one of each subject in turn."""
        found: list[Item] = []
        while self._turns and len(found) < number:
            subject = next(iter(self._turns))
            found.append(self._remove(subject, newest=False))
            if subject in self._turns:
                self._turns.move_to_end(subject)
        return found

    def _remove(self, subject: str, *, newest: bool) -> Item:
        queue = self._turns[subject]
        item = queue.pop() if newest else queue.popleft()
        self._queued -= 1
        if not queue:
            del self._turns[subject]
        self._resized(subject, len(queue) + 1, len(queue))
        return item

    def _resized(self, subject: str, before: int, now: int) -> None:
        """Keep the subjects by the number of their items, and the largest such number."""
        if before:
            same = self._by_length[before]
            del same[subject]
            if not same:
                del self._by_length[before]
        if now:
            self._by_length.setdefault(now, OrderedDict())[subject] = None
        if now > self._longest:
            self._longest = now
        while self._longest and self._longest not in self._by_length:
            self._longest -= 1
