"""What rules remember: records by key, of which the longest unused are forgotten, and counts over a sliding time."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

STEPS = 32
"""Parts of the time of a count: all that is in the time counts, and what is older by at most one part may."""

_T = TypeVar("_T")


class Remembered(Generic[_T]):
    """At most `limit` records by key; where one more comes, the one longest unused goes, and `forgotten` is told."""

    def __init__(self, limit: int, forgotten: Callable[[], None]) -> None:
        self._limit = limit
        self._forgotten = forgotten
        self._kept: OrderedDict[Hashable, _T] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: Hashable) -> _T | None:
        """The record of a key, which counts as a use, or None."""
        found = self._kept.get(key)
        if found is not None:
            self._kept.move_to_end(key)
        return found

    def put(self, key: Hashable, record: _T) -> None:
        """Remember a record."""
        self._kept[key] = record
        self._kept.move_to_end(key)
        if len(self._kept) > self._limit:
            self._kept.popitem(last=False)
            self._forgotten()

    def pop(self, key: Hashable) -> _T | None:
        """Forget the record of a key, and give it, or None."""
        return self._kept.pop(key, None)


class SlidingCount:
    """Matches within a time, and the unknown ones among them, in `STEPS` parts of it: its size is the same whatever is
    counted. Times that come a little out of order count as the newest; one that is a whole time back begins anew."""

    __slots__ = ("_newest_us", "_step_us", "_steps", "matches", "unknown")

    def __init__(self, seconds: float) -> None:
        self._step_us = max(1, round(seconds * 1e6 / STEPS))
        self._steps: deque[list[int]] = deque()  # [number of the step, matches, unknown]
        self._newest_us = 0
        self.matches = 0
        self.unknown = 0

    @property
    def start_us(self) -> int:
        """When the oldest step that counts began."""
        return self._steps[0][0] * self._step_us if self._steps else self._newest_us

    def add(self, time_us: int, matches: int, unknown: int) -> None:
        """Count at a time; `matches` and `unknown` may be 0 or less to put right what was counted before."""
        if self._steps and time_us < self._newest_us - STEPS * self._step_us:
            self.clear()
            self._newest_us = 0
        self._newest_us = max(self._newest_us, time_us)
        number = self._newest_us // self._step_us
        while self._steps and self._steps[0][0] < number - STEPS:
            _, old_matches, old_unknown = self._steps.popleft()
            self.matches -= old_matches
            self.unknown -= old_unknown
        if not self._steps or self._steps[-1][0] != number:
            self._steps.append([number, 0, 0])
        self._steps[-1][1] += matches
        self._steps[-1][2] += unknown
        self.matches += matches
        self.unknown += unknown

    def clear(self) -> None:
        """Begin anew."""
        self._steps.clear()
        self.matches = self.unknown = 0
