"""The state of flows that are still live, bounded per flow, and what a flow becomes when it ends."""

from __future__ import annotations

import socket
import struct
from array import array
from functools import lru_cache
from hashlib import blake2b

import msgspec

from tapline.models.flow import HEAD_TOKEN_COST, MAX_PAYLOAD_LENGTHS, Flow, HeadsKind
from tapline.models.packed_packets import PackedHeads, pack_lengths
from tapline.service.sources.flows.sides import (
    CLOSED,
    ESTABLISHED,
    INACTIVE,
    PARTIAL,
    RESET,
    SYN_ACK_SENT,
    SYN_SENT,
    Side,
    TcpSide,
)
from tapline.service.sources.packets.packet_rows import ICMP, ICMP6, TCP, UDP

INTERACTIVE_TIMEOUT_US = 3_600_000_000
"""How long an interactive TCP flow may be silent."""

DNS_RECHECK_US = 10_000_000
"""How often a DNS flow over UDP is looked at."""

DEAD_US = 5_000_001
"""A TCP flow that is closed on one side and has nothing on the other ends after more than five seconds."""

_MAPPED = bytes(10) + b"\xff\xff"
_GAP = struct.Struct("<Q")
_SIZE = struct.Struct("<H")
_DNS_SILENCE_US = 9_000_000
_BASE62 = bytes(b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"[i % 62] for i in range(256))


class LiveFlow(msgspec.Struct, gc=False):
    """A live flow of any protocol.

    * `key`: as in `PacketRow`; `sides` are its endpoints, `orig` is the index of the originator.
    * `timer_us`: when its silence is looked at next. Later than `last_us` and `timeout_us` make it where the clock has
      stepped back: as in Zeek, that ends no flow before its time.
    * `number`: flows count from 1 in order of their starts; `previous_us`: the last packet whose head was kept.
    * `gaps_us`, `head_sizes`, `heads`: of the packet heads, one behind the other as `PackedHeads` has them.
    * `lengths`: signed payload lengths, positive from side 0; `room` and `head_room`: how much more fits.
    * `inspect`: what its datagrams are looked at as (`roles`), 0 for nothing; `recheck_us`: for DNS, when its silence
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
    timer_us: int = 0
    room: int = MAX_PAYLOAD_LENGTHS
    gaps_us: bytes = b""
    head_sizes: bytes = b""
    heads: bytes = b""
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
        size = end - start
        self.gaps_us += _GAP.pack(gap_us if gap_us > 0 else 0)
        self.head_sizes += _SIZE.pack(size)
        self.heads += frame[start:end]
        room -= size
        self.head_room = room if room >= HEAD_TOKEN_COST else 0

    def set_timeout(self, timeout_us: int, last_us: int) -> None:
        """Gives the flow another timeout, counted from its last packet."""
        if timeout_us != self.timeout_us:
            self.timeout_us, self.timer_us = timeout_us, last_us + timeout_us

    def due_us(self, now_us: int) -> int:
        """When the flow ends if no packet comes. DNS over UDP is looked at every ten seconds and ends if silent."""
        due = max(self.last_us + self.timeout_us, self.timer_us)
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
        orig_h, resp_h = _address_texts(self.address(orig_side), self.address(1 - orig_side))
        return Flow(
            uid=self.uid(),
            start_us=self.start_us,
            duration_us=max(0, self.last_us - self.start_us),
            orig_h=orig_h,
            orig_p=ports[orig_side],
            resp_h=resp_h,
            resp_p=ports[1 - orig_side],
            proto=_protocol_text(self.protocol),
            up=orig.payloads,
            down=resp.payloads,
            payload_lengths=pack_lengths([-n for n in self.lengths] if orig_side else self.lengths),
            orig_bytes=orig.content,
            resp_bytes=resp.content,
            orig_pkts=orig.packets,
            resp_pkts=resp.packets,
            orig_ip_bytes=orig.ip_bytes,
            resp_ip_bytes=resp.ip_bytes,
            link_type=self.link if self.gaps_us else 0,
            heads_kind=heads_kind,
            heads=PackedHeads(len(self.gaps_us) // _GAP.size, self.gaps_us + self.head_sizes + self.heads),
            conn_state=self.conn_state(),
        )

    def uid(self) -> str:
        """Its name, which another reading of the same capture gives it, too."""
        seed = self.key + self.start_us.to_bytes(8) + self.number.to_bytes(8)
        return "T" + blake2b(seed, digest_size=17).digest().translate(_BASE62).decode()


class TcpFlow(LiveFlow, gc=False):
    """A live TCP flow. `steady`: both ends are past the handshake, nothing is missing and nothing closed.

    The `..._due_us` are 0 when unset: `delete` ends the flow, `attempt` does if it is still an unanswered SYN, `check`
    does if it is closed on one side and dead on the other.
    """

    sides: tuple[TcpSide, TcpSide]
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

    def forget_holes(self) -> int:
        """Does without the data that waits for what precedes it, and without any later; how many parts that was."""
        count = 0
        for side in self.sides:
            if side.holes:
                count += len(side.holes)
                side.holes.clear()
                side.skipping = True
        return count

    def service_port(self) -> int:
        """The responder's port."""
        return self.ports()[1 - self.orig]

    def extends_silence(self, now_us: int) -> bool:
        """Sets the hour of silence that Zeek gives to what it recognises as SSH or FTP; says whether it did."""
        if self.timeout_us >= INTERACTIVE_TIMEOUT_US or self.last_us + self.timeout_us > now_us:
            return False
        orig, resp = self.ends()
        ssh = orig.content[:4].upper() == b"SSH-" and resp.content[:4].upper() == b"SSH-"
        ftp = resp.content[:3] in (b"220", b"120") and orig.content[:5].upper() == b"USER "
        if ssh or ftp:
            self.set_timeout(INTERACTIVE_TIMEOUT_US, self.last_us)
        return ssh or ftp

    def due_us(self, now_us: int) -> int:
        """When the flow ends if no packet comes."""
        due = max(self.last_us + self.timeout_us, self.timer_us)
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
        return (orig.closed or resp.closed) and ((orig.closed and resp.closed) or RESET in states or INACTIVE in states)

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
                return "OTH" if orig.said_more else "RSTOS0"
            return "RSTO"
        if orig.state == CLOSED:
            return "SF" if resp.state == CLOSED else "SH" if quiet_resp else "S2"
        if resp.state == CLOSED:
            return "SHR" if quiet_orig else "S3"
        return {(SYN_SENT, INACTIVE): "S0", (ESTABLISHED, ESTABLISHED): "S1"}.get((orig.state, resp.state), "OTH")


def _address_texts(orig: bytes, resp: bytes) -> tuple[str, str]:
    """The addresses as Zeek writes them: IPv4 mapped into IPv6 as IPv4, where the other end is IPv4 too."""
    if len(orig) == 16 and orig.startswith(_MAPPED) and resp.startswith(_MAPPED):
        orig, resp = orig[12:], resp[12:]
    return _address_text(orig), _address_text(resp)


@lru_cache(maxsize=4096)
def _address_text(address: bytes) -> str:
    return socket.inet_ntop(socket.AF_INET if len(address) == 4 else socket.AF_INET6, address)


def _protocol_text(number: int) -> str:
    if number == TCP:
        return "tcp"
    if number == UDP:
        return "udp"
    return "icmp" if number in (ICMP, ICMP6) else str(number)
