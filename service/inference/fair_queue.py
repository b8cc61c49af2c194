"""The queue in front of an engine: whoever waits takes turns, and urgent work goes first.

Under overload its owner takes the newest first, and trims it at those who send most: a flood is shed, the others get
their verdicts, and counts per subject keep the flood visible.
"""

from __future__ import annotations

import heapq
from collections import Counter, OrderedDict, deque
from typing import Generic, Literal, TypeVar

Item = TypeVar("Item")

Order = Literal["oldest", "newest of each", "newest"]
"""Which item is next: of the subject whose turn it is the oldest, or the newest; or the newest of the subject that has
just come."""

BULK_EVERY = 8
"""One item of so many is not urgent, where there is one: urgent work must not starve the rest."""


class HeavyHitters:
    """Counts by key in bounded space, and constant time where one is added: the space-saving algorithm and its stream
    summary (Metwally et al., ICDT 2005).

    A count is never below the true one, and above it by at most the smallest count kept.
    """

    def __init__(self, size: int = 1024) -> None:
        self._size = size
        self._counts: dict[str, int] = {}
        self._by_count: dict[int, OrderedDict[str, None]] = {}
        self._smallest = 1

    def add(self, key: str, number: int = 1) -> None:
        """Count so many."""
        count = self._counts.get(key)
        if count is None:
            if len(self._counts) < self._size:
                self._smallest = count = 0
            else:
                count = self._smallest
                replaced = next(iter(self._by_count[count]))
                del self._counts[replaced]
                self._leave(replaced, count)
        else:
            self._leave(key, count)
        self._counts[key] = count + number
        self._by_count.setdefault(count + number, OrderedDict())[key] = None
        if self._smallest not in self._by_count:  # whoever was the only one there has more now
            self._smallest = self._smallest + 1 if number == 1 else min(self._by_count)

    def _leave(self, key: str, count: int) -> None:
        same = self._by_count[count]
        del same[key]
        if not same:
            del self._by_count[count]

    def top(self, number: int) -> list[tuple[str, int]]:
        """The keys with the largest counts."""
        return heapq.nsmallest(number, self._counts.items(), key=lambda entry: (-entry[1], entry[0]))


class _Turns(OrderedDict[str, deque[tuple[Item, int]]], Generic[Item]):
    """The queues of the subjects, whose turn it is first, and whose came up last at the end."""

    def add(self, subject: str, item: Item, tokens: int) -> None:
        """Queue an item behind the others of its subject."""
        queue = self.get(subject)
        if queue is None:
            queue = self[subject] = deque()
        queue.append((item, tokens))

    def next(self, order: Order) -> tuple[str, int]:
        """The subject that is next, and the tokens of its item."""
        subject = next(reversed(self)) if order == "newest" else next(iter(self))
        return subject, self[subject][0 if order == "oldest" else -1][1]

    def take(self, subject: str, order: Order) -> tuple[Item, int]:
        """An item of the subject with its tokens; the subject's next turn comes after those of all others."""
        queue = self[subject]
        found = queue.popleft() if order == "oldest" else queue.pop()
        if queue:
            self.move_to_end(subject, last=order != "newest")
        else:
            del self[subject]
        return found


class FairQueue(Generic[Item]):
    """A queue that is fair by subject: items leave in turn, urgent ones before the others, in constant time.

    `tokens` of an item is what computing it costs; the queue adds them up. Its owner bounds it.
    """

    def __init__(self) -> None:
        self.tokens = 0
        self._queued = 0
        self._urgent: _Turns[Item] = _Turns()
        self._bulk: _Turns[Item] = _Turns()

    def __len__(self) -> int:
        return self._queued

    @property
    def subjects(self) -> int:
        """Subjects with items, those with urgent and other ones twice."""
        return len(self._urgent) + len(self._bulk)

    def waiting_of(self, subject: str) -> int:
        """Items of a subject."""
        return len(self._urgent.get(subject, ())) + len(self._bulk.get(subject, ()))

    def put(self, subject: str, item: Item, *, tokens: int = 0, urgent: bool = False) -> None:
        """Queue an item."""
        (self._urgent if urgent else self._bulk).add(subject, item, tokens)
        self._queued += 1
        self.tokens += tokens

    def take(self, number: int, max_tokens: int | None = None, order: Order = "oldest") -> list[Item]:
        """Up to so many items, one of each subject in turn; no more tokens than `max_tokens`, but for a first item.

        In the order `newest` a subject that has just come goes before those that wait: where many wait too long that is
        what is fresh, of those who send least.
        """
        found: list[Item] = []
        taken = 0
        while self._queued and len(found) < number:
            bulk_turn = self._bulk and len(found) % BULK_EVERY == BULK_EVERY - 1
            turns = self._bulk if bulk_turn or not self._urgent else self._urgent
            subject, tokens = turns.next(order)
            if found and max_tokens is not None and taken + tokens > max_tokens:
                break
            found.append(turns.take(subject, order)[0])
            taken += tokens
            self._queued -= 1
        self.tokens -= taken
        return found

    def remove(self, subject: str, item: Item, *, tokens: int = 0, urgent: bool = False) -> None:
        """Take an item out, put as said here; in constant time where it is the oldest of its subject."""
        turns = self._urgent if urgent else self._bulk
        queue = turns[subject]
        queue.remove((item, tokens))
        if not queue:
            del turns[subject]
        self._queued -= 1
        self.tokens -= tokens

    def trim(self, number: int) -> list[Item]:
        """Take out so many items: one by one the oldest of the subject that has most then, what is not urgent first.
        Takes time by the number of subjects."""
        counts = Counter({subject: len(queue) for subject, queue in self._urgent.items()})
        counts.update({subject: len(queue) for subject, queue in self._bulk.items()})
        heaviest = [(-count, subject) for subject, count in counts.items()]
        heapq.heapify(heaviest)
        found = []
        for _ in range(min(number, self._queued)):
            count, subject = heaviest[0]
            urgent = subject not in self._bulk
            item, tokens = (self._urgent if urgent else self._bulk)[subject][0]
            self.remove(subject, item, tokens=tokens, urgent=urgent)
            heapq.heapreplace(heaviest, (count + 1, subject))
            found.append(item)
        return found
