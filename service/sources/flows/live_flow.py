"""The state of flows that are still live, bounded per flow, and what a flow becomes when it ends."""

from __future__ import annotations

import socket
import struct
from array import array
from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import cast

import msgspec

from tapline.models.flow import MAX_PAYLOAD_LENGTHS, Flow, HeadsKind
from tapline.models.packed_packets import packed_heads, packed_lengths
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
_ENDPOINTS = {14: struct.Struct(">4sH4sHxx").unpack, 38: struct.Struct(">16sH16sHxx").unpack}
"""By the length of a key: the address and port of its first end, and of its second."""
_PROTOCOLS = {number: str(number) for number in range(256)} | {TCP: "tcp", UDP: "udp", ICMP: "icmp", ICMP6: "icmp"}
_UID = struct.Struct(">QQ")
_STILL_OPEN = {(SYN_SENT, INACTIVE): "S0", (ESTABLISHED, ESTABLISHED): "S1"}
_ENDED_OR_SILENT = (INACTIVE, RESET)
_DNS_SILENCE_US = 9_000_000
_BASE62 = bytes(b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"[i % 62] for i in range(256))


class LiveFlow(msgspec.Struct, gc=False):
    """A live flow of any protocol.

    * `key`: as in `PacketRow`; `sides` are its endpoints, `orig` is the index of the originator.
    * `timer_us`: when its silence is looked at next. Later than `last_us` and `timeout_us` make it where the clock has
      stepped back: as in Zeek, that ends no flow before its time.
    * `look_us`: when it is looked at next whether it has ended; `queued_us`: for when the table has it in its queue, -1
      if not yet; `replaced_at`: the place in its block of the SYN that ended it, -1 without one.
    * `later_us`: when it is looked at after `look_us`, a heap from the first on.
    * `number`: flows count from 1 in order of their starts; until that is known, the place of its first packet in its
      block; `previous_us`: the last packet whose head was kept.
    * `gaps_us`, `head_sizes`, `heads`: of the packet heads, one behind the other as `PackedHeads` has them.
    * `lengths`: signed payload lengths, positive from the originator; `room` and `head_room`: how much more fits.
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
    gaps_us: array[int]
    head_sizes: array[int]
    link: int = 0
    timer_us: int = 0
    look_us: int = 0
    queued_us: int = -1
    replaced_at: int = -1
    room: int = MAX_PAYLOAD_LENGTHS
    heads: bytes = b""
    inspect: int = 0
    recheck_us: int = 0
    not_a_tunnel: bool = False
    later_us: Sequence[int] = ()

    @property
    def protocol(self) -> int:
        """The IP protocol number."""
        return self.key[-2]

    def ports(self) -> tuple[int, int]:
        """The ports of the first and of the second endpoint of the key."""
        _, first, _, second = _ENDPOINTS[len(self.key)](self.key)
        return first, second

    def address(self, side: int) -> bytes:
        """The packed address of one end."""
        return cast("bytes", _ENDPOINTS[len(self.key)](self.key)[2 * side])

    def flip(self) -> None:
        """Exchanges originator and responder."""
        self.orig = 1 - self.orig
        self.lengths = array("i", [-length for length in self.lengths])

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
        key, start_us, orig_side = self.key, self.start_us, self.orig
        first_h, first_p, second_h, second_p = _ENDPOINTS[len(key)](key)
        if orig_side:
            resp, orig = self.sides
            resp_h, resp_p, orig_h, orig_p = first_h, first_p, second_h, second_p
        else:
            orig, resp = self.sides
            orig_h, orig_p, resp_h, resp_p = first_h, first_p, second_h, second_p
        if len(orig_h) == 16 and orig_h.startswith(_MAPPED) and resp_h.startswith(_MAPPED):
            # as Zeek writes IPv4 addresses mapped into IPv6
            orig_h, resp_h = orig_h[12:], resp_h[12:]
        # By position, in the order of its fields, which is faster than by name.
        return Flow(
            self.uid(), start_us, max(0, self.last_us - start_us),
            _address_text(orig_h), orig_p, _address_text(resp_h), resp_p, _PROTOCOLS[key[-2]],
            orig.payloads, resp.payloads, packed_lengths(self.lengths), orig.content, resp.content,
            orig.packets, resp.packets, orig.ip_bytes, resp.ip_bytes,
            self.link if self.head_sizes else 0, heads_kind,
            packed_heads(self.gaps_us, self.head_sizes, self.heads), "", self.conn_state(),
        )  # fmt: skip

    def uid(self) -> str:
        """Its name, which another reading of the same capture gives it, too."""
        seed = self.key + _UID.pack(self.start_us, self.number)
        return "T" + blake2b(seed, digest_size=17).digest().translate(_BASE62).decode()


class TcpFlow(LiveFlow, gc=False):
    """A live TCP flow. `steady`: both ends are past the handshake, nothing is missing and nothing closed. `held`: how
    many parts of its data the table has counted that wait for what precedes them.

    The `..._due_us` are 0 when unset: `delete` ends the flow, `attempt` does if it is still an unanswered SYN, `check`
    does if it is closed on one side and dead on the other.
    """

    sides: tuple[TcpSide, TcpSide]
    held: int = 0
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
        LiveFlow.flip(self)
        self.saw_orig, self.saw_resp = self.saw_resp, self.saw_orig
        self.partial = False

    def forget_holes(self) -> None:
        """Does without the data that waits for what precedes it, and without any later."""
        for side in self.sides:
            if side.holes:
                side.forget_holes()

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
        if orig.closed or resp.closed:
            return (orig.closed and resp.closed) or orig.state in _ENDED_OR_SILENT or resp.state in _ENDED_OR_SILENT
        return orig.state == resp.state == INACTIVE

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
        return _STILL_OPEN.get((orig.state, resp.state), "OTH")


@lru_cache(maxsize=4096)
def _address_text(address: bytes) -> str:
    return socket.inet_ntop(socket.AF_INET if len(address) == 4 else socket.AF_INET6, address)
