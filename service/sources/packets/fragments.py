"""Reassembly of IP fragments: the first copy of a byte wins, a datagram waits five minutes, memory is bounded."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass, field

TIMEOUT_US = 300_000_000
MAX_DATAGRAMS = 2_048
MAX_BYTES = 16 << 20
_PART_BYTES = 128

Key = tuple[bytes, bytes, int, int]
"""Source, target, identification, and for IPv4 the protocol (RFC 791 3.2); -1 for IPv6 (RFC 8200 4.5)."""


@dataclass(slots=True)
class Fragment:
    """One fragment: `key` names its datagram; `header` is the IP header, `more` that others follow."""

    key: Key
    header: bytes
    offset: int
    more: bool
    payload: bytes
    next_header: int


@dataclass(slots=True)
class Datagram:
    """A datagram's header and its payload so far: where its parts start, sorted, and the parts, which do not overlap.

    The first `joining` of them follow each other from the start without a hole, up to `front`. `shares_identification`:
    one of another protocol waited under the same one when it came.
    """

    header: bytes
    started_us: int
    next_header: int
    shares_identification: bool = False
    fragments: int = 0
    size: int = 0
    stored: int = 0
    front: int = 0
    joining: int = 0
    starts: list[int] = field(default_factory=list)
    parts: list[bytes] = field(default_factory=list)

    def add(self, fragment: Fragment) -> None:
        """Takes what is new of a fragment."""
        self.fragments += 1
        payload, base = fragment.payload, fragment.offset
        upper = base + len(payload)
        if base == 0:
            self.next_header = fragment.next_header
        if not fragment.more or (self.size and upper > self.size):
            self.size = max(self.size, upper)
        position = max(base, self.front)
        place = bisect_right(self.starts, position, self.joining)
        if place > self.joining:
            position = max(position, self._end(place - 1))
        while position < upper:
            following = self.starts[place] if place < len(self.starts) else upper
            if position < following:
                part = payload[position - base : min(following, upper) - base]
                self.starts.insert(place, position)
                self.parts.insert(place, part)
                self.stored += len(part)
                place += 1
            if following >= upper:
                break
            position = self._end(place)
            place += 1
        while self.joining < len(self.starts) and self.starts[self.joining] == self.front:
            self.front += len(self.parts[self.joining])
            self.joining += 1

    def _end(self, place: int) -> int:
        return self.starts[place] + len(self.parts[place])

    def cost(self) -> int:
        """About how many bytes of memory this takes."""
        return self.stored + _PART_BYTES * len(self.parts)

    def is_whole(self) -> bool:
        """Whether the end is known and reached without a hole."""
        return 0 < self.size <= self.front

    def joined(self) -> bytes:
        """The payload up to the first hole."""
        return b"".join(self.parts[: self.joining])


class Reassembler:
    """The datagrams that wait for fragments. `dropped` counts those given up for lack of room, `expired` the fragments
    of those that waited too long.

    Its clock is the latest time seen, so that one that steps back does not end what waits.
    """

    def __init__(self) -> None:
        self.dropped = self.expired = 0
        self._datagrams: dict[Key, Datagram] = {}
        self._identified: Counter[tuple[bytes, bytes, int]] = Counter()
        self._cost = 0
        self._clock_us = 0

    def add(self, fragment: Fragment, now_us: int) -> Datagram | None:
        """Takes a fragment and returns its datagram if it is whole now; call its `joined` for the payload."""
        self._clock_us = max(self._clock_us, now_us)
        self._expire()
        datagram = self._datagrams.get(fragment.key)
        if datagram is None:
            others = self._identified[fragment.key[:3]]
            datagram = Datagram(fragment.header, self._clock_us, fragment.next_header, others > 0)
            self._datagrams[fragment.key] = datagram
            self._identified[fragment.key[:3]] += 1
        before = datagram.cost()
        datagram.add(fragment)
        self._cost += datagram.cost() - before
        if datagram.is_whole():
            self._remove(fragment.key)
            return datagram
        while len(self._datagrams) > MAX_DATAGRAMS or self._cost > MAX_BYTES:
            self._remove(next(iter(self._datagrams)))
            self.dropped += 1
        return None

    def _remove(self, key: Key) -> None:
        self._cost -= self._datagrams.pop(key).cost()
        self._identified[key[:3]] -= 1
        if not self._identified[key[:3]]:
            del self._identified[key[:3]]

    def _expire(self) -> None:
        while self._datagrams:
            key = next(iter(self._datagrams))
            if self._datagrams[key].started_us + TIMEOUT_US > self._clock_us:
                return
            self.expired += self._datagrams[key].fragments
            self._remove(key)

    def waiting(self) -> int:
        """Fragments of datagrams that are not whole yet."""
        return sum(datagram.fragments for datagram in self._datagrams.values())


def rebuild_ipv4(header: bytes, payload: bytes) -> bytes:
    """The packet whose fragments had this header, and this payload."""
    length = len(header) + len(payload) & 0xFFFF
    return header[:2] + length.to_bytes(2) + header[4:6] + bytes(2) + header[8:] + payload
