"""The bounded queue in front of an engine: overload costs those who send most, and urgent work goes first.

Items leave in turn by subject, urgent ones before the others, and when the queue is full the subject with most items in
it loses its newest. A flood is shed, the others get their verdicts, and the counts per subject keep the flood visible.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Generic, TypeVar

Item = TypeVar("Item")

BULK_EVERY = 8
"""One item of so many is not urgent, where there is one: urgent work must not starve the rest."""


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


class _Turns(OrderedDict[str, deque[tuple[Item, int]]], Generic[Item]):
    """The queues of the subjects, whose turn it is first."""

    def add(self, subject: str, item: Item, tokens: int) -> None:
        """Queue an item behind the others of its subject."""
        queue = self.get(subject)
        if queue is None:
            queue = self[subject] = deque()
        queue.append((item, tokens))

    def next_tokens(self) -> int:
        """The tokens of the item whose turn it is."""
        return next(iter(self.values()))[0][1]


class FairQueue(Generic[Item]):
    """A queue of at most `size` items, fair by subject; every operation takes constant time.

    `tokens` of an item is what computing it costs; the queue adds them up.
    """

    def __init__(self, size: int, on_shed: Callable[[str, Item], None]) -> None:
        self.size = size
        self.tokens = 0
        self._on_shed = on_shed
        self._queued = 0
        self._urgent: _Turns[Item] = _Turns()
        self._bulk: _Turns[Item] = _Turns()
        self._count_of: dict[str, int] = {}
        self._by_count: dict[int, OrderedDict[str, None]] = {}
        self._largest = 0

    def __len__(self) -> int:
        return self._queued

    def put(self, subject: str, item: Item, *, tokens: int = 0, urgent: bool = False) -> None:
        """Queue an item; where there is no room, the newest item of the subject with most items is shed instead.

        Of that subject, what is not urgent is shed first.
        """
        (self._urgent if urgent else self._bulk).add(subject, item, tokens)
        self._queued += 1
        self.tokens += tokens
        self._resized(subject, 1)
        if self._queued > self.size:
            heaviest = next(reversed(self._by_count[self._largest]))
            turns = self._bulk if heaviest in self._bulk else self._urgent
            self._on_shed(heaviest, self._remove(turns, heaviest, newest=True))

    def take(self, number: int, max_tokens: int | None = None) -> list[Item]:
        """Up to so many items, one of each subject in turn; no more tokens than `max_tokens`, but for a first item."""
        found: list[Item] = []
        before = self.tokens
        while self._queued and len(found) < number:
            bulk_turn = self._bulk and len(found) % BULK_EVERY == BULK_EVERY - 1
            turns = self._bulk if bulk_turn or not self._urgent else self._urgent
            taken = before - self.tokens
            if found and max_tokens is not None and taken + turns.next_tokens() > max_tokens:
                break
            subject = next(iter(turns))
            found.append(self._remove(turns, subject, newest=False))
            if subject in turns:
                turns.move_to_end(subject)
        return found

    def _remove(self, turns: _Turns[Item], subject: str, *, newest: bool) -> Item:
        queue = turns[subject]
        item, tokens = queue.pop() if newest else queue.popleft()
        self._queued -= 1
        self.tokens -= tokens
        if not queue:
            del turns[subject]
        self._resized(subject, -1)
        return item

    def _resized(self, subject: str, change: int) -> None:
        """Keep the subjects by the number of their items, and the largest such number."""
        before = self._count_of.pop(subject, 0)
        now = before + change
        if before:
            same = self._by_count[before]
            del same[subject]
            if not same:
                del self._by_count[before]
        if now:
            self._count_of[subject] = now
            self._by_count.setdefault(now, OrderedDict())[subject] = None
        self._largest = max(self._largest, now)
        while self._largest and self._largest not in self._by_count:
            self._largest -= 1
