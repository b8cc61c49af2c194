"""Whether more live flows come than are computed, and how many may wait then: judged by what came and what was taken.

A burst is no overload. Where clearly less comes than is taken, what waits will be gone soon, however long it is. So
only a queue that has stood for `BURST` deadlines without that, or for one and was full, is one; it is over when for a
deadline nothing had to be shed. Meanwhile no more may wait than is computed in a part of a deadline, so that what is
let in is fresh, and the rest costs next to nothing, because it goes as it comes.
"""

from __future__ import annotations

import sys
from collections import deque
from dataclasses import dataclass

BURST = 4
"""A queue stands after so many deadlines."""

DRAINING_SHARE = 0.75
"""A queue drains where less than so large a share of what is taken comes anew."""

ROOM_SHARE = 1 / 8
"""Under overload as many may wait as are computed in so large a share of a deadline; where that is less than
`ROOM_BATCHES`, as many as those, because engines must never wait, but no more than in `LARGEST_SHARE` of it."""

ROOM_BATCHES = 2
LARGEST_SHARE = 1 / 2
SMALLEST_ROOM = 32


@dataclass(frozen=True, slots=True)
class _Mark:
    """How many had come, and been taken, at a time."""

    at: float
    arrived: int
    taken: int


class Overload:
    """Judges one queue by the last deadline of it. `arrived` is counted by whoever puts something there, and
    `was_full` told since it was empty; `room`: so many may wait, under overload."""

    def __init__(self, deadline_seconds: float) -> None:
        self.arrived = 0
        self.room = sys.maxsize
        self.was_full = False
        self._deadline_seconds = deadline_seconds
        self._taken = 0
        self._marks: deque[_Mark] = deque()
        self._until = -1.0

    def is_on(self, now: float) -> bool:
        """Whether there is one."""
        return now <= self._until

    def shed(self, now: float) -> None:
        """Something was shed because of it: it goes on, or begins."""
        self._until = now + self._deadline_seconds

    def stands(self, now: float, busy_since: float) -> bool:
        """Whether what waits, and has done so without a gap since `busy_since`, is more than a burst."""
        if self.is_on(now):
            return True
        if now - busy_since <= (1 if self.was_full else BURST) * self._deadline_seconds:
            return False
        since = self._marks[0] if self._marks else _Mark(now, 0, 0)
        return self.arrived - since.arrived >= DRAINING_SHARE * (self._taken - since.taken)

    def took(self, now: float, number: int, asked: int) -> None:
        """So many were taken, of as many as were `asked` for."""
        marks = self._marks
        while len(marks) > 1 and marks[1].at <= now - self._deadline_seconds:
            marks.popleft()
        self._taken += number
        marks.append(_Mark(now, self.arrived, self._taken))
        passed = now - marks[0].at
        computed = self._deadline_seconds * (self._taken - marks[0].taken) / passed if passed else 0.0  # in a deadline
        batches = min(ROOM_BATCHES * asked, LARGEST_SHARE * computed)
        self.room = int(max(ROOM_SHARE * computed, batches, SMALLEST_ROOM))
