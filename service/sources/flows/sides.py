"""What one end of a flow sent: counts, the first content bytes, and for TCP the stream put in order as Zeek does."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import cast

import msgspec

from tapline.models.flow import MAX_CONTENT_BYTES

INACTIVE, SYN_SENT, SYN_ACK_SENT, PARTIAL, ESTABLISHED, CLOSED, RESET = range(7)
HANDSHAKE_STATES = frozenset({INACTIVE, SYN_SENT, SYN_ACK_SENT})
STEADY_STATES = frozenset({ESTABLISHED, PARTIAL})

_MASK = 0xFFFFFFFF
_HALF_SPACE = 1 << 31
_MAX_HOLES = 512
_UNACKED_WINDOW_BYTES = 16_384


class Side(msgspec.Struct, gc=False):
    """One end of a flow: what it sent. `room`: content bytes that still fit.

    Without garbage collection, as all records of a live flow: they make no cycles, and there are many.
    """

    packets: int = 0
    ip_bytes: int = 0
    payloads: int = 0
    content: bytes = b""
    room: int = MAX_CONTENT_BYTES


class Hole(msgspec.Struct, gc=False):
    """Data that came before what precedes it: `data` is as much of it as the content may need."""

    start: int
    end: int
    data: bytes


def _start_of(hole: Hole) -> int:
    return hole.start


class TcpSide(Side, gc=False):
    """One end of a TCP flow. Sequence numbers count from the SYN (0), whether it was seen or not.

    `start`: the 32-bit number of the SYN; `last`: one past the highest sent; `acked`: acknowledged by the peer; `next`:
    delivered in order up to here, or given up; `trim`: what is below is forgotten; `stored`: end of the highest data
    taken; `holes`: data beyond a hole, a list from the first on; `fin_end`: one past the FIN. `said_more`: its packets
    before a reset were not just a first SYN and data.
    """

    state: int = INACTIVE
    previous: int = INACTIVE
    start: int = 0
    last: int = 0
    acked: int = 0
    next: int = 1
    trim: int = 1
    stored: int = 1
    fins: int = 0
    fin_end: int = 0
    closed: bool = False
    ended: bool = False
    skipping: bool = False
    said_more: bool = False
    holes: Sequence[Hole] = ()

    def restart(self, start: int, last: int) -> None:
        """Sequence numbers count from `start` (32 bits) from now on."""
        self.start, self.last, self.acked = start, last, 0

    def relative(self, number: int, near: int) -> int:
        """A 32-bit sequence number counted from the start; `near` is where the stream stands, for long flows."""
        distance = number - self.start
        if 0 <= distance < _HALF_SPACE and near < _HALF_SPACE - 1:
            return distance
        if near < _HALF_SPACE - 1:
            return ((number - self.start + _HALF_SPACE) & _MASK) - _HALF_SPACE
        return near + ((number - self.start - near + _HALF_SPACE) & _MASK) - _HALF_SPACE

    def nothing_acked(self) -> bool:
        """Whether none of this end's data was acknowledged yet."""
        return self.acked <= 1

    def has_unacknowledged_blocks(self) -> bool:
        """Whether data was taken that is not acknowledged and not given up waiting for."""
        if self.stored <= self.trim:
            return False
        given_up = self.nothing_acked() and max(self.last, self.acked) - 1 > _UNACKED_WINDOW_BYTES and not self.holes
        return not given_up

    def take(self, seq: int, length: int, data: bytes, offset: int) -> None:
        """Takes a wholly captured segment at `seq`, `data[offset:offset + length]`. The first copy of a byte wins; data
        past a hole waits for it."""
        upper = seq + length
        if self.skipping or upper <= self.acked or upper <= self.trim:
            return
        begin = max(seq, self.acked, self.trim)
        skip = begin - seq
        if upper > self.stored:
            self.stored = upper
        if upper <= self.next:
            return
        if begin < self.next:
            skip += self.next - begin
            begin = self.next
        kept = data[offset + skip : offset + min(length, skip + self.room)] if self.room else b""
        if begin == self.next and not self.holes:
            if self.room:
                self._keep(kept)
            self.next = upper
            return
        self._insert_hole(begin, upper, kept)
        self._deliver_holes()
        if self.nothing_acked() and self.holes and self.holes[-1].end - self.next > _UNACKED_WINDOW_BYTES:
            self.forget_holes()

    def acknowledge(self, upto: int, partial: bool) -> None:
        """The peer has everything below `upto`; what is missing of it will not come and leaves a gap."""
        if self.fins and upto >= self.fin_end:
            upto = self.fin_end - 1
        if upto <= self.trim:
            return
        if upto > self.next and not (upto <= 2 and partial):
            self._give_up(upto)
        self.trim = upto
        if self.holes:
            self._deliver_holes()

    def forget_holes(self) -> None:
        """Does without the data that waits for what precedes it, and without any later."""
        self.holes = ()
        self.skipping = True

    def _give_up(self, upto: int) -> None:
        while self.holes and self.holes[0].start < upto:
            if self.holes[0].start > self.next:
                self._gap()
                self.next = self.holes[0].start
            self._deliver_holes()
        if upto > self.next:
            self._gap()
            self.next = upto

    def _gap(self) -> None:
        """Content ends at a gap; one before any content only means that it starts later."""
        if self.content:
            self.room = 0

    def _keep(self, data: bytes) -> None:
        self.content += data
        self.room -= len(data)

    def _deliver_holes(self) -> None:
        holes = cast("list[Hole]", self.holes)
        while holes and holes[0].start <= self.next:
            hole = holes.pop(0)
            if hole.start == self.next:
                if self.room:
                    self._keep(hole.data[: self.room])
                self.next = hole.end
            # data that a gap was passed over is not delivered

    def _insert_hole(self, seq: int, upper: int, data: bytes) -> None:
        """Keeps what of a segment past a hole is new."""
        base, holes = seq, cast("list[Hole]", self.holes or [])
        self.holes = holes
        place = bisect_right(holes, seq, key=_start_of)
        if place:
            seq = max(seq, holes[place - 1].end)
        while place < len(holes) and holes[place].start < upper:
            other = holes[place]
            if seq < other.start:
                holes.insert(place, Hole(seq, other.start, data[seq - base : other.start - base]))
                place += 1
            seq = other.end
            place += 1
        if seq < upper and (len(self.holes) < _MAX_HOLES or seq == self.next):
            holes.insert(place, Hole(seq, upper, data[seq - base : upper - base]))
