"""The state of flows that are still live, bounded per flow, and what a flow becomes when it ends."""

from __future__ import annotations

import socket
from array import array
from bisect import insort
from hashlib import blake2b

import msgspec

from models.flow import (
    HEAD_TOKEN_COST,
    HEADS_TOKEN_BUDGET,
    MAX_CONTENT_BYTES,
    MAX_PAYLOAD_LENGTHS,
    Flow,
    HeadsKind,
    PacketHead,
)
from service.sources.packets import ICMP, ICMP6, TCP, UDP

INACTIVE, SYN_SENT, SYN_ACK_SENT, PARTIAL, ESTABLISHED, CLOSED, RESET = range(7)
HANDSHAKE_STATES = frozenset({INACTIVE, SYN_SENT, SYN_ACK_SENT})
STEADY_STATES = frozenset({ESTABLISHED, PARTIAL})

INTERACTIVE_TIMEOUT_US = 3_600_000_000
"""How long an interactive TCP flow may be silent."""

DNS_RECHECK_US = 10_000_000
"""How often a DNS flow over UDP is looked at."""

DEAD_US = 5_000_001
"""A TCP flow that is closed on one side and has nothing on the other ends after more than five seconds."""

_DNS_SILENCE_US = 9_000_000
_MASK = 0xFFFFFFFF
_HALF_SPACE = 1 << 31
_MAX_HOLES = 512
_UNACKED_WINDOW_BYTES = 16_384
_BASE62 = bytes(b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"[i % 62] for i in range(256))


class Side(msgspec.Struct, gc=False):
    """One end of a flow: what it sent. `room`: content bytes that still fit.

    Without garbage collection, as all records of a live flow: they make no cycles, and there are many.
    """

    packets: int = 0
    ip_bytes: int = 0
    payloads: int = 0
    content: bytes = b""
    room: int = MAX_CONTENT_BYTES


class Hole(msgspec.Struct, gc=False, order=True):
    """Data that came before what precedes it: `data` is as much of it as the content may need."""

    start: int
    end: int
    data: bytes


class TcpSide(Side, gc=False):
    """One end of a TCP flow. Sequence numbers count from the SYN (0), whether it was seen or not.

    `start`: the 32-bit number of the SYN; `last`: one past the highest sent; `acked`: acknowledged by the peer; `next`:
    delivered in order up to here, or given up; `trim`: what is below is forgotten; `stored`: end of the highest data
    taken; `holes`: data beyond a hole; `fin_end`: one past the FIN.
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
    holes: list[Hole] = msgspec.field(default_factory=list)

    def restart(self, start: int, last: int) -> None:
        """Sequence numbers count from `start` (32 bits) from now on."""
        self.start, self.last, self.acked = start, last, 0

    def relative(self, number: int, near: int) -> int:
        """A 32-bit sequence number counted from the start; `near` is where the stream stands, for long flows."""
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
        if begin <= self.next:
            if upper > self.next:
                skip += self.next - begin
                if self.room:
                    self._keep(data[offset + skip : offset + min(length, skip + self.room)])
                self.next = upper
                if self.holes:
                    self._deliver_holes()
            return
        kept = data[offset + skip : offset + min(length, skip + self.room)] if self.room else b""
        self._insert_hole(begin, upper, kept)
        if self.nothing_acked() and self.holes and self.holes[-1].end - self.next > _UNACKED_WINDOW_BYTES:
            self.holes.clear()
            self.skipping = True

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
        if self.content:
            self.room = 0

    def _keep(self, data: bytes) -> None:
        self.content += data
        self.room -= len(data)

    def _deliver_holes(self) -> None:
        holes = self.holes
        while holes and holes[0].start <= self.next:
            hole = holes.pop(0)
            if hole.start == self.next:
                if self.room:
                    self._keep(hole.data[: self.room])
                self.next = hole.end
            # data that a gap was passed over is not delivered

    def _insert_hole(self, seq: int, upper: int, data: bytes) -> None:
        """Keeps what of a segment past a hole is new."""
        base = seq
        for other in list(self.holes):
            if other.end <= seq:
                continue
            if other.start >= upper:
                break
            if seq < other.start:
                insort(self.holes, Hole(seq, other.start, data[seq - base : other.start - base]))
            seq = other.end
        if seq < upper and len(self.holes) < _MAX_HOLES:
            insort(self.holes, Hole(seq, upper, data[seq - base : upper - base]))


class LiveFlow(msgspec.Struct, gc=False):
    """A live flow of any protocol.

    * `key`: as in `PacketRow`; `sides` are its endpoints, `orig` is the index of the originator.
    * `number`: flows count from 1 in order of their starts; `previous_us`: the last packet whose head was kept.
    * `lengths`: signed payload lengths, positive from side 0; `room` and `head_room`: how much more fits.
    * `inspect`: what its datagrams are looked at as (`inspect`), 0 for nothing; `recheck_us`: for DNS, when its silence
      is looked at next.
    """

    key: bytes
    number: int
    start_us: int
    last_us: int
    previous_us: int
    orig: int
    timeout_us: int
    head_room: int
    sides: tuple[Side, Side]
    lengths: array[int]
    link: int = 0
    room: int = MAX_PAYLOAD_LENGTHS
    heads: list[tuple[int, bytes]] = msgspec.field(default_factory=list)
    inspect: int = 0
    recheck_us: int = 0
    not_a_tunnel: bool = False

    @property
    def protocol(self) -> int:
        """The IP protocol number."""
        return self.key[-2]

    def ports(self) -> tuple[int, int]:
        """The ports of the first and of the second endpoint of the key."""
        width = (len(self.key) - 2) // 2
        return int.from_bytes(self.key[width - 2 : width]), int.from_bytes(self.key[2 * width - 2 : 2 * width])

    def address(self, side: int) -> bytes:
        """The packed address of one end."""
        width = (len(self.key) - 2) // 2
        return self.key[side * width : side * width + width - 2]

    def flip(self) -> None:
        """Exchanges originator and responder."""
        self.orig = 1 - self.orig

    def add_head(self, time_us: int, frame: bytes, start: int, end: int) -> None:
        """Keeps a packet's first bytes while they fit."""
        room = self.head_room - HEAD_TOKEN_COST
        if end - start > room:
            end = start + room
        gap_us = time_us - self.previous_us
        self.previous_us = time_us
        self.heads.append((gap_us if gap_us > 0 else 0, frame[start:end]))
        room -= end - start
        self.head_room = room if room > HEAD_TOKEN_COST else 0

    def due_us(self, now_us: int) -> int:
        """When the flow ends if no packet comes. DNS over UDP is looked at every ten seconds and ends if silent."""
        due = self.last_us + self.timeout_us
        if not self.recheck_us:
            return due
        if now_us >= self.recheck_us:
            if now_us - self.last_us >= _DNS_SILENCE_US:
                return now_us
            self.recheck_us = now_us + DNS_RECHECK_US
        return min(due, self.recheck_us)

    def conn_state(self) -> str:
        """Zeek's name for how the flow went."""
        orig, resp = self.sides[self.orig], self.sides[1 - self.orig]
        if self.protocol != UDP:
            return "OTH"
        if orig.packets:
            return "SF" if resp.packets else "S0"
        return "SHR" if resp.packets else "OTH"

    def finish(self, heads_kind: HeadsKind) -> Flow:
        """The flow record."""
        orig_side = self.orig
        orig, resp = self.sides[orig_side], self.sides[1 - orig_side]
        ports = self.ports()
        lengths = self.lengths.tolist()
        return Flow(
            uid=self._uid(),
            start_us=self.start_us,
            duration_us=max(0, self.last_us - self.start_us),
            orig_h=_address_text(self.address(orig_side)),
            orig_p=ports[orig_side],
            resp_h=_address_text(self.address(1 - orig_side)),
            resp_p=ports[1 - orig_side],
            proto=_protocol_text(self.protocol),
            up=orig.payloads,
            down=resp.payloads,
            payload_lengths=[-n for n in lengths] if orig_side else lengths,
            orig_bytes=orig.content,
            resp_bytes=resp.content,
            orig_pkts=orig.packets,
            resp_pkts=resp.packets,
            orig_ip_bytes=orig.ip_bytes,
            resp_ip_bytes=resp.ip_bytes,
            link_type=self.link if self.heads else 0,
            heads_kind=heads_kind,
            heads=[PacketHead(gap, data) for gap, data in self.heads],
            conn_state=self.conn_state(),
        )

    def _uid(self) -> str:
        seed = self.key + self.start_us.to_bytes(8) + self.number.to_bytes(8)
        return "T" + blake2b(seed, digest_size=17).digest().translate(_BASE62).decode()


class TcpFlow(LiveFlow, gc=False):
    """A live TCP flow. `steady`: both ends are past the handshake, nothing is missing and nothing closed.

    The `..._due_us` are 0 when unset: `delete` ends the flow, `attempt` does if it is still an unanswered SYN, `check`
    does if it is closed on one side and dead on the other.
    """

    sides: tuple[TcpSide, TcpSide]  # type: ignore[assignment]
    active: bool = True
    steady: bool = False
    partial: bool = False
    close_deferred: bool = False
    due_changed: bool = False
    began_with_syn_ack: bool = False
    saw_orig: bool = False
    saw_resp: bool = False
    attempt_due_us: int = 0
    delete_due_us: int = 0
    check_due_us: int = 0

    def ends(self) -> tuple[TcpSide, TcpSide]:
        """Originator and responder."""
        return self.sides[self.orig], self.sides[1 - self.orig]

    def flip(self) -> None:
        """Exchanges originator and responder."""
        self.orig = 1 - self.orig
        self.saw_orig, self.saw_resp = self.saw_resp, self.saw_orig
        self.partial = False

    def service_port(self) -> int:
        """The responder's port."""
        return self.ports()[1 - self.orig]

    def extends_silence(self, now_us: int) -> bool:
        """Zeek lets what it recognises as SSH or FTP be silent for an hour; sets that timeout and says whether it did."""
        if self.timeout_us >= INTERACTIVE_TIMEOUT_US or self.last_us + self.timeout_us > now_us:
            return False
        orig, resp = self.ends()
        ssh = orig.content[:4].upper() == b"SSH-" and resp.content[:4].upper() == b"SSH-"
        ftp = resp.content[:3] in (b"220", b"120") and orig.content[:5].upper() == b"USER "
        if ssh or ftp:
            self.timeout_us = INTERACTIVE_TIMEOUT_US
        return ssh or ftp

    def due_us(self, now_us: int) -> int:
        """When the flow ends if no packet comes."""
        due = self.last_us + self.timeout_us
        if self.delete_due_us:
            return min(due, self.delete_due_us)
        orig, resp = self.ends()
        if self.attempt_due_us and self.active and orig.state in (SYN_SENT, SYN_ACK_SENT) and resp.state == INACTIVE:
            due = min(due, self.attempt_due_us)
        if self.active and self._looks_dead(orig, resp):
            due = min(due, max(self.check_due_us, self.last_us + DEAD_US))
        return due

    def _looks_dead(self, orig: TcpSide, resp: TcpSide) -> bool:
        states = {orig.state, resp.state}
        if states == {INACTIVE}:
            return True
        return (orig.closed or resp.closed) and (
            (orig.closed and resp.closed) or RESET in states or INACTIVE in states
        )

    def conn_state(self) -> str:
        """Zeek's name for how the flow went, from the last states of both ends."""
        orig, resp = self.ends()
        quiet_orig, quiet_resp = orig.state in (INACTIVE, PARTIAL), resp.state in (INACTIVE, PARTIAL)
        if resp.state == RESET:
            if orig.state in (SYN_SENT, SYN_ACK_SENT) or (orig.state == RESET and not orig.payloads + resp.payloads):
                return "REJ"
            return "RSTRH" if quiet_orig else "RSTR"
        if orig.state == RESET:
            if quiet_resp:
                return "RSTOS0" if orig.previous == SYN_SENT else "OTH"
            return "RSTO"
        if orig.state == CLOSED:
            return "SF" if resp.state == CLOSED else "SH" if quiet_resp else "S2"
        if resp.state == CLOSED:
            return "SHR" if quiet_orig else "S3"
        return {(SYN_SENT, INACTIVE): "S0", (ESTABLISHED, ESTABLISHED): "S1"}.get((orig.state, resp.state), "OTH")


def _address_text(packed: bytes) -> str:
    if len(packed) == 4:
        return socket.inet_ntop(socket.AF_INET, packed)
    if packed.startswith(b"\0\0\0\0\0\0\0\0\0\0\xff\xff"):
        return socket.inet_ntop(socket.AF_INET, packed[12:])
    return socket.inet_ntop(socket.AF_INET6, packed)


def _protocol_text(number: int) -> str:
    if number == TCP:
        return "tcp"
    if number == UDP:
        return "udp"
    return "icmp" if number in (ICMP, ICMP6) else str(number)
