"""One IP packet at a time, to the packet rows it holds: extension headers, fragments, GRE and IP in IP. It leaves link
layers to `frames`, which it calls back for Ethernet and 802.11 inside GRE.

What is accepted and what is dropped follows Zeek 8.0 (src/packet_analysis/protocol/ip, src/IP.cc, src/Frag.cc)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from tapline.models.flow import MAX_PAYLOAD_LENGTH
from tapline.service.sources.packets.fragments import Fragment, Reassembler, rebuild_ipv4
from tapline.service.sources.packets.icmp import COUNTERPARTS_V4, COUNTERPARTS_V6, ONE_WAY
from tapline.service.sources.packets.ipv6 import UNFRAGMENTABLE_END, Ipv6Headers, rebuild_ipv6
from tapline.service.sources.packets.packet_rows import (
    ICMP,
    ICMP6,
    NO_TCP_HEADER,
    TCP,
    TCP_BAD_HEADER,
    TCP_OFFLOADED,
    UDP,
    UDP_TUNNEL,
    PacketRow,
    ReadCounters,
)

MAX_TUNNEL_DEPTH = 4
RAW_IP_LINK = 101
PPP_LINK = 9
GRE_LINK = -1
"""Stands for a link type where a GRE header comes first."""
ETHERTYPE_LINKS = 1 << 32
"""Plus an EtherType, stands for a link type where what that type says comes first."""

_IP_IN_IP, _IPV6_IN_IP, _GRE, _NO_NEXT, _ESP, _MOBILITY = 4, 41, 47, 59, 50, 135
NOT_TRANSPORT = (_IP_IN_IP, _IPV6_IN_IP, _GRE, _NO_NEXT)
_ETHERNET_LINK, _IEEE802_11_LINK = 1, 105
_GRE_ETHERNET, _GRE_ERSPAN, _GRE_ERSPAN_3, _GRE_PPTP = 0x6558, 0x88BE, 0x22EB, 0x880B
_GRE_LEAST_TYPE = 0x0600
_MAX_NESTED_FRAGMENTS = 4


@dataclass(slots=True)
class Frame:
    """A captured packet on its way through the layers, `data[start:end]`; on the wire it went on to `wire_end`.

    Heads are cut from `outer`, the packet outside any tunnel, up to the transport header, or up to `head_end` where
    that is not -1 (after reassembly, when `data` is not `outer`). `depth` counts tunnels, `links` link headers;
    `beyond_zeek` names the first thing in it that Zeek 8.0 does not read, if there is one.
    """

    data: bytes
    time_us: int
    start: int
    end: int
    wire_end: int
    link: int
    outer: bytes
    outer_start: int
    outer_end: int
    head_end: int = -1
    depth: int = 0
    links: int = 0
    beyond_zeek: str = ""


@dataclass(slots=True)
class _Header:
    """What of an IP header matters. `total` is the IP length; with `length_unknown`, as segmentation offload leaves it,
    the frame says how long the packet is, and `total` is 0 in IPv4, as in conn.log."""

    version: int
    length: int
    total: int
    protocol: int
    source: bytes
    target: bytes
    length_unknown: bool = False
    jumbo: bool = False
    is_fragment: bool = False
    offset: int = 0
    more: bool = False
    identifier: int = 0
    last_header: int = 0


_LEAST_BYTES = {TCP: 20, UDP: 8, ICMP: 8, ICMP6: 8}

LinkDecoder = Callable[[Frame, int, int, int], list[PacketRow]]


class IpPackets:
    """Decodes IP packets; holds the fragments that wait for each other."""

    def __init__(self, counters: ReadCounters, link: LinkDecoder, fragments: Reassembler) -> None:
        self._counters = counters
        self._link = link
        self._fragments = fragments

    def finish(self) -> None:
        """The capture is over: counts the fragments that waited in vain."""
        missing = self._fragments.expired + self._fragments.waiting()
        if missing:
            self._counters.skipped["fragments without the rest of their datagram"] += missing

    def decode(self, frame: Frame, start: int, end: int) -> list[PacketRow]:
        """The rows of the IP packet in `data[start:end]`, which may be followed by padding."""
        header = _parse(frame.data, start, end)
        if header is None:
            return self._skip("IP header cut or of another version")
        wire_end = frame.wire_end if end == frame.end else end
        if header.length_unknown and header.version == 6:
            header.total = wire_end - start
            frame.beyond_zeek = frame.beyond_zeek or "IPv6 with a length of 0"
        if header.jumbo:
            frame.beyond_zeek = frame.beyond_zeek or "an IPv6 jumbogram"
        total = header.total or wire_end - start
        if start + total > frame.wire_end:
            return self._skip("IP packet longer than its frame")
        minimum = 20 if header.version == 4 else 40
        if not minimum <= header.length <= min(total, end - start):
            return self._skip("bad IP header")
        if header.is_fragment:
            if end - start >= total:
                return self._reassemble(frame, header, start, start + total, 1)
            if header.offset:
                return self._skip("fragment cut by the snap length")
        return self._payload(frame, header, start, end, start + total)

    def _skip(self, reason: str) -> list[PacketRow]:
        self._counters.skipped[reason] += 1
        return []

    def _reassemble(self, frame: Frame, header: _Header, start: int, end: int, nested: int) -> list[PacketRow]:
        """The rows of the datagram that the fragment in `data[start:end]` completes; it may be a fragment again."""
        body = start + header.length
        packet = self._whole(frame, header, start, end)
        if packet is None:
            return []
        head_end = frame.head_end if frame.head_end >= 0 else body
        size = len(packet)
        whole = replace(frame, data=packet, start=0, end=size, wire_end=size, head_end=head_end)
        rebuilt = _parse(packet, 0, size)
        if rebuilt is None or not 20 <= rebuilt.length <= rebuilt.total <= size:
            return self._skip("bad IP header")
        if not rebuilt.is_fragment:
            return self._payload(whole, rebuilt, 0, rebuilt.total, rebuilt.total)
        if nested == _MAX_NESTED_FRAGMENTS:
            return self._skip("fragments nested too deep")
        return self._reassemble(whole, rebuilt, 0, rebuilt.total, nested + 1)

    def _whole(self, frame: Frame, header: _Header, start: int, end: int) -> bytes | None:
        """The packet that a fragment completes. One that is a whole packet waits for no other (RFC 6946)."""
        kept = header.length if header.version == 4 else header.length - UNFRAGMENTABLE_END
        fragment = Fragment(
            key=(header.source, header.target, header.identifier, header.protocol if header.version == 4 else -1),
            header=frame.data[start : start + kept],
            offset=header.offset,
            more=header.more,
            payload=frame.data[start + header.length : end],
            next_header=header.protocol,
        )
        if not fragment.offset and not fragment.more:
            return rebuild_ipv6(fragment.header, fragment.next_header, fragment.payload)
        dropped = self._fragments.dropped
        datagram = self._fragments.add(fragment, frame.time_us)
        if self._fragments.dropped > dropped:
            self._counters.skipped["fragments dropped for lack of room"] += self._fragments.dropped - dropped
        if datagram is None:
            return None
        if datagram.shares_identification:
            frame.beyond_zeek = frame.beyond_zeek or "fragments of one identification and several protocols"
        if header.version == 4:
            return rebuild_ipv4(datagram.header, datagram.joined())
        return rebuild_ipv6(datagram.header, datagram.next_header, datagram.joined())

    def _payload(self, frame: Frame, header: _Header, start: int, end: int, wire_end: int) -> list[PacketRow]:
        """What the IP packet carries; on the wire it went to `wire_end`."""
        protocol = header.protocol
        if header.version == 6 and header.last_header in (_ESP, _MOBILITY):
            return self._skip("IPv6 packet without a readable transport")
        if protocol == _NO_NEXT:
            return self._skip("IPv6 packet without a readable transport")
        body = start + header.length
        if protocol not in (_IP_IN_IP, _IPV6_IN_IP, _GRE):
            return self._transport(frame, header, body, end, wire_end)
        if end < wire_end or (end > wire_end and protocol != _GRE):
            frame.beyond_zeek = frame.beyond_zeek or "a tunnel in a cut or padded frame"
        inside = replace(frame, start=body, end=min(end, wire_end), wire_end=wire_end)
        if protocol == _GRE:
            return self.gre(inside, body, inside.end)
        return self._inner_ip(inside, protocol)

    def _inner_ip(self, frame: Frame, protocol: int) -> list[PacketRow]:
        """An IP packet that must fill what it is in exactly."""
        header = _parse(frame.data, frame.start, frame.end)
        size = frame.wire_end - frame.start
        if header is None or header.version != (4 if protocol == _IP_IN_IP else 6):
            return self._skip("bad IP packet in a tunnel")
        if header.total != size and not header.length_unknown:
            return self._skip("bad IP packet in a tunnel")
        return self._deeper(frame, frame.start, frame.end, RAW_IP_LINK)

    def _deeper(self, frame: Frame, start: int, end: int, link: int) -> list[PacketRow]:
        if frame.depth >= MAX_TUNNEL_DEPTH:
            return self._skip("tunnels nested too deep")
        return self._link(replace(frame, start=start, end=end, depth=frame.depth + 1), start, end, link)

    def gre(self, frame: Frame, start: int, end: int) -> list[PacketRow]:
        """Generic routing encapsulation (RFC 2784, 2890, PPTP of RFC 2637, ERSPAN, Aruba)."""
        data, available = frame.data, end - start
        if available < 4:
            return self._skip("bad GRE header")
        flags, kind = int.from_bytes(data[start : start + 2]), int.from_bytes(data[start + 2 : start + 4])
        version = flags & 7
        length = 4 + 4 * sum(bool(flags & bit) for bit in (0x8000, 0x2000, 0x1000, 0x0080))
        if version > 1 or flags & 0x4078 or (version == 1 and kind != _GRE_PPTP):
            return self._skip("bad GRE header")
        if version == 1:
            return self._deeper(frame, start + length, end, PPP_LINK)
        link = RAW_IP_LINK
        if kind in (_GRE_ETHERNET, _GRE_ERSPAN, _GRE_ERSPAN_3):
            link = _ETHERNET_LINK
            length += _erspan_bytes(data, start + length, flags, kind)
            if available <= length + 14:
                return self._skip("bad GRE header")
        elif kind == 0x9000 or kind & 0x820F == 0x8200:  # Aruba's access points
            link = _IEEE802_11_LINK
        elif kind not in (0x0800, 0x86DD) and kind >= _GRE_LEAST_TYPE:
            link = ETHERTYPE_LINKS + kind
        return self._deeper(frame, start + length, end, link)

    def _transport(self, frame: Frame, header: _Header, body: int, end: int, wire_end: int) -> list[PacketRow]:
        data, protocol, available = frame.data, header.protocol, end - body
        payload = min(wire_end - body, MAX_PAYLOAD_LENGTH)
        minimum = _LEAST_BYTES.get(protocol, 0)
        # With a payload of 0 the header is padding, and yet tells the flow.
        if (payload and payload < minimum) or available < minimum:
            return self._skip("transport header cut")
        kind, size, flags, seq, ack = protocol, minimum, 0, 0, 0
        if protocol == UDP:
            kind = UDP_TUNNEL
        elif protocol == TCP:
            size = (data[body + 12] >> 4) * 4
            flags = data[body + 13]
            seq, ack = int.from_bytes(data[body + 4 : body + 8]), int.from_bytes(data[body + 8 : body + 12])
        have = min(available, payload) - size
        if protocol == TCP and size < minimum:
            kind, have = TCP_BAD_HEADER, NO_TCP_HEADER
        elif have < 0:
            kind, have = TCP_BAD_HEADER if protocol == TCP else kind, 0
        elif protocol == TCP and (header.length_unknown or header.jumbo):
            kind = TCP_OFFLOADED
        key, side = _key(header, data, body)
        head = min(max(size, minimum), available, max(payload, minimum))
        head_end = frame.head_end if frame.head_end >= 0 else min(body + head, frame.outer_end)
        if frame.beyond_zeek:
            self._counters.beyond_zeek[frame.beyond_zeek] += 1
        row = PacketRow(
            frame.time_us, key, side, kind, max(0, payload - size), header.total, have, flags, seq, ack,
            data, body + size, frame.outer, frame.outer_start, head_end, frame.outer_end, frame.link,
        )  # fmt: skip
        return [row]


def _erspan_bytes(data: bytes, start: int, flags: int, kind: int) -> int:
    """Bytes of the ERSPAN header before the mirrored Ethernet frame: none, type II or type III."""
    if kind == _GRE_ERSPAN:
        return 8 if flags & 0x1000 else 0
    if kind == _GRE_ERSPAN_3:
        has_platform_header = len(data) > start + 11 and data[start + 11] & 1
        return 20 if has_platform_header else 12
    return 0


def _key(header: _Header, data: bytes, body: int) -> tuple[bytes, int]:
    """The flow key and the side that the packet comes from."""
    protocol = header.protocol
    ordered = True
    if protocol in (TCP, UDP):
        source_port, target_port = data[body : body + 2], data[body + 2 : body + 4]
    elif protocol in (ICMP, ICMP6):
        counterparts = COUNTERPARTS_V4 if protocol == ICMP else COUNTERPARTS_V6
        counterpart = int(counterparts[data[body]])
        ordered = counterpart != ONE_WAY
        source_port = bytes((0, data[body]))
        target_port = bytes((0, counterpart if ordered else data[body + 1]))
    else:
        source_port = target_port = bytes(2)
    source, target = header.source + source_port, header.target + target_port
    side = 1 if ordered and source > target else 0
    low, high = (target, source) if side else (source, target)
    return low + high + bytes((protocol, header.version)), side


def _parse(data: bytes, start: int, end: int) -> _Header | None:
    """The IP header at `start`, or None if its fixed part is cut or its version is neither 4 nor 6."""
    if end - start < 20:
        return None
    version = data[start] >> 4
    if version == 4:
        fragment = int.from_bytes(data[start + 6 : start + 8])
        total = int.from_bytes(data[start + 2 : start + 4])
        return _Header(
            version=4,
            length=(data[start] & 15) * 4,
            total=total,
            length_unknown=not total,
            protocol=data[start + 9],
            source=data[start + 12 : start + 16],
            target=data[start + 16 : start + 20],
            is_fragment=bool(fragment & 0x3FFF),
            offset=(fragment & 0x1FFF) * 8,
            more=bool(fragment & 0x2000),
            identifier=int.from_bytes(data[start + 4 : start + 6]),
        )
    if version != 6 or end - start < 40:
        return None
    chain = Ipv6Headers(data, start, end)
    payload = int.from_bytes(data[start + 4 : start + 6])
    return _Header(
        version=6,
        length=chain.length,
        total=(payload or chain.jumbo_bytes) + 40,
        jumbo=not payload and chain.jumbo_bytes > 0,
        length_unknown=not (payload or chain.jumbo_bytes) and chain.protocol in _LEAST_BYTES,
        protocol=chain.protocol,
        source=chain.source,
        target=chain.target,
        is_fragment=chain.is_fragment,
        offset=chain.offset,
        more=chain.more,
        identifier=chain.identifier,
        last_header=chain.last_header,
    )
