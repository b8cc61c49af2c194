"""What waits in memory for an output: bounded, and what is dropped first is a stated order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

import msgspec

from tapline.service.sinks.output_url import RECORD_KINDS, RecordKind

RECORD_BYTES = 200
"""What a record takes in memory beside its line."""


class Record(msgspec.Struct, frozen=True, gc=False):
    """One record on its way: a JSON object in one line, without the line's end."""

    kind: RecordKind
    line: bytes

    @property
    def is_whole(self) -> bool:
        """Whether it is JSON: what was on a disk may have suffered."""
        try:
            msgspec.json.decode(self.line)
        except msgspec.DecodeError:
            return False
        return True


class Pending:
    """A record that is made when somebody first needs it, once for all outputs.

    `size_bytes` is about what waits in memory until then.
    """

    __slots__ = ("_make", "_record", "kind", "size_bytes")

    def __init__(self, kind: RecordKind, size_bytes: int, make: Callable[[], bytes]) -> None:
        self.kind = kind
        self.size_bytes = size_bytes
        self._make: Callable[[], bytes] | None = make
        self._record: Record | None = None

    @staticmethod
    def of(record: Record) -> Pending:
        """A record that is made already."""
        pending = Pending(record.kind, len(record.line) + RECORD_BYTES, lambda: record.line)
        pending._record, pending._make = record, None
        return pending

    @property
    def record(self) -> Record:
        """The record itself; whatever it was made of is let go."""
        found, make = self._record, self._make
        if found is None:
            assert make is not None
            found = self._record = Record(self.kind, make())
            self._make = None
        return found


class OutputQueue:
    """Records in the order in which they came, of each kind apart, at most `max_records` and `max_bytes`.

    Where there is no room the oldest flow is dropped, where there is no flow the oldest trace, and only then the oldest
    alert; what is of a lower rank than all that waits is not taken. Not for several threads at a time.
    """

    def __init__(self, max_records: int, max_bytes: int) -> None:
        self._max_records = max_records
        self._max_bytes = max_bytes
        self._waiting: dict[RecordKind, deque[Pending]] = {kind: deque() for kind in RECORD_KINDS}
        self._records = 0
        self._bytes = 0

    def __len__(self) -> int:
        return self._records

    @property
    def is_half_full(self) -> bool:
        """Whether more than half of the room is taken."""
        return 2 * self._records > self._max_records or 2 * self._bytes > self._max_bytes

    def put(self, pending: Pending) -> list[Pending]:
        """Take a record; what was dropped for it, itself perhaps."""
        self._waiting[pending.kind].append(pending)
        self._records += 1
        self._bytes += pending.size_bytes
        return self._make_room()

    def put_back(self, batch: Iterable[Pending]) -> list[Pending]:
        """Take records again that were taken out, before all others of their kind; what was dropped for them."""
        returned = list(batch)
        for pending in reversed(returned):
            self._waiting[pending.kind].appendleft(pending)
            self._records += 1
            self._bytes += pending.size_bytes
        return self._make_room()

    def take(self, max_records: int, max_bytes: int = 1 << 62) -> list[Pending]:
        """The next records, alerts first, then traces, then flows, the oldest of each first; the first of them always
        fits the limits."""
        taken: list[Pending] = []
        size = 0
        for kind in reversed(RECORD_KINDS):
            waiting = self._waiting[kind]
            while waiting and len(taken) < max_records and (not taken or size + waiting[0].size_bytes <= max_bytes):
                size += waiting[0].size_bytes
                taken.append(waiting.popleft())
        self._records -= len(taken)
        self._bytes -= size
        return taken

    def _make_room(self) -> list[Pending]:
        dropped: list[Pending] = []
        while self._records > self._max_records or self._bytes > self._max_bytes:
            waiting = next(self._waiting[kind] for kind in RECORD_KINDS if self._waiting[kind])
            dropped.append(waiting.popleft())
            self._records -= 1
            self._bytes -= dropped[-1].size_bytes
        return dropped
