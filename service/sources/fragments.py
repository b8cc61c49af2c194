"""Reassembly of IP fragments: the first copy of a byte wins, a datagram waits five minutes, memory is bounded."""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass, field

TIMEOUT_US = 300_000_000
MAX_DATAGRAMS = 2_048
MAX_BYTES = 16 << 20
_PART_BYTES = 128


@dataclass(slots=True)
class Fragment:
    """One fragment: `key` names its datagram; `header` is the IP header, `more` that others follow."""

    key: tuple[bytes, bytes, int]
    header: bytes
    offset: int
    more: bool
    payload: bytes
    next_header: int


@dataclass(slots=True)
class Datagram:
    """A datagram's header and its payload so far, as sorted parts (offset, bytes) that do not overlap."""

    header: bytes
    started_us: int
    next_header: int
    size: int = 0
    stored: int = 0
    parts: list[tuple[int, bytes]] = field(default_factory=list)

    def add(self, fragment: Fragment) -> None:
        """Takes what is new of a fragment."""
        upper = fragment.offset + len(fragment.payload)
        if fragment.offset == 0:
            self.next_header = fragment.next_header
        if not fragment.more or (self.size and upper > self.size):
            self.size = max(self.size, upper)
        if not fragment.payload:
            return
        if not self.parts or fragment.offset >= self.parts[-1][0] + len(self.parts[-1][1]):
            self.parts.append((fragment.offset, fragment.payload))
            self.stored += len(fragment.payload)
            return
        position, payload, base = fragment.offset, fragment.payload, fragment.offset
        new: list[tuple[int, bytes]] = []
        for start, data in self.parts:
            if start + len(data) <= position:
                continue
            if start >= upper:
                break
            if position < start:
                new.append((position, payload[position - base : start - base]))
            position = start + len(data)
        if position < upper:
            new.append((position, payload[position - base :]))
        for part in new:
            insort(self.parts, part)
            self.stored += len(part[1])

    def cost(self) -> int:
        """About how many bytes of memory this takes."""
        return self.stored + _PART_BYTES * len(self.parts)

    def joined(self) -> bytes | None:
        """The payload from its start, once the end is known and reached without a hole."""
        if not self.size or not self.parts or self.parts[0][0]:
            return None
        if self.stored < self.size:
            return None
        end = 0
        joined = bytearray()
        for start, data in self.parts:
            if start > end:
                break
            joined += data
            end = start + len(data)
        return bytes(joined) if end >= self.size else None


class Reassembler:
    """The datagrams that wait for fragments. `dropped` counts those given up for lack of room."""

    def __init__(self) -> None:
        self.dropped = 0
        self._datagrams: dict[tuple[bytes, bytes, int], Datagram] = {}
        self._cost = 0

    def add(self, fragment: Fragment, now_us: int) -> Datagram | None:
        """Takes a fragment and returns its datagram if it is whole now; call its `joined` for the payload."""
        self._expire(now_us)
        datagram = self._datagrams.get(fragment.key)
        if datagram is None:
            datagram = self._datagrams[fragment.key] = Datagram(fragment.header, now_us, fragment.next_header)
        before = datagram.cost()
        datagram.add(fragment)
        self._cost += datagram.cost() - before
        if 0 < datagram.size <= datagram.stored and datagram.joined() is not None:
            self._remove(fragment.key)
            return datagram
        while len(self._datagrams) > MAX_DATAGRAMS or self._cost > MAX_BYTES:
            self._remove(next(iter(self._datagrams)))
            self.dropped += 1
        return None

    def _remove(self, key: tuple[bytes, bytes, int]) -> None:
        self._cost -= self._datagrams.pop(key).cost()

    def _expire(self, now_us: int) -> None:
        while self._datagrams:
            key = next(iter(self._datagrams))
            if self._datagrams[key].started_us + TIMEOUT_US > now_us:
                return
            self._remove(key)
