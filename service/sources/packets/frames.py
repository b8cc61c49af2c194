"""One packet at a time, from its link layer to the packet rows it holds: every link layer, IPv6 extension headers,
fragments and tunnels. Slow and complete; `columns` decodes ordinary packets by the block and leaves the rest to this.

It owns the link headers of capture files; what comes between them and IP is `ethertypes`', 802.11 is `wireless`'. What
is dropped follows Zeek 8.0 (src/packet_analysis/protocol); what is read goes beyond it."""

from __future__ import annotations

import struct
from collections.abc import Callable

from tapline.service.sources.packets.ethertypes import ETHERNET_TYPES, MAX_LINKS, EtherTypes
from tapline.service.sources.packets.fragments import Reassembler
from tapline.service.sources.packets.ip import ETHERTYPE_LINKS, GRE_LINK, PPP_LINK, Frame, IpPackets
from tapline.service.sources.packets.packet_rows import PacketRow, ReadCounters
from tapline.service.sources.packets.wireless import IEEE802_11, Wireless

ETHERNET = 1
RAW_LINK_TYPES = frozenset({12, 14, 101, 228, 229})
LINUX_COOKED = 113
LINUX_COOKED_2 = 276

_BSD_LOOPBACK = 0
_LINUX_COOKED_LLC, _LINUX_COOKED_PPP = 0x0004, 0x0007
_LINUX_RADIOTAP = 803
_FDDI_LLC_BYTES, _FDDI_BYTES = 13, 21
_TOKEN_RING_BYTES = 14
_FAMILIES = frozenset({2, 10, 24, 28, 30})
"""AF_INET, and AF_INET6 as Linux, NetBSD and OpenBSD, FreeBSD, macOS number it."""
_NFLOG_FAMILIES = frozenset({2, 10})
_NFLOG_PAYLOAD = 9
_PKTAP_BYTES = 12


class FrameDecoder:
    """Decodes packets one by one. Holds the fragments that wait for each other, and counts what it skips."""

    def __init__(self, counters: ReadCounters, fragments: Reassembler | None = None) -> None:
        """`fragments`: what puts fragments together, one of its own where not given."""
        self._counters = counters
        self._ip = IpPackets(counters, self._link, fragments or Reassembler())
        self._types = types = EtherTypes(counters, self._ip)
        wireless = Wireless(types, self._link)
        self._links: dict[int, Callable[[Frame, int, int], list[PacketRow]]] = {
            _BSD_LOOPBACK: self._bsd_loopback,
            ETHERNET: types.ethernet,
            6: self._token_ring,
            PPP_LINK: types.hdlc,
            10: self._fddi,
            50: types.hdlc,
            51: types.pppoe,
            100: types.llc,
            104: types.hdlc,
            IEEE802_11: wireless.bare,
            108: self._bsd_loopback,
            109: self._encryption,
            LINUX_COOKED: self._linux_cooked,
            117: self._packet_filter_log,
            119: wireless.prism,
            122: self._fibre_channel,
            127: wireless.radiotap,
            138: self._firewire,
            149: self._packet_tap,
            163: wireless.prism,
            166: self._ppp_with_direction,
            192: wireless.ppi,
            204: self._ppp_with_direction,
            239: self._nflog,
            258: self._packet_tap,
            LINUX_COOKED_2: self._linux_cooked_2,
            GRE_LINK: self._ip.gre,
            **dict.fromkeys(RAW_LINK_TYPES, self._ip.decode),
        }

    def knows(self, link: int) -> bool:
        """Whether packets of this link type can be decoded."""
        return link in self._links

    def decode(self, frame: Frame, link: int) -> list[PacketRow]:
        """The packets of flows that a captured packet holds: none, one, or several (aggregated 802.11 frames)."""
        return self._link(frame, frame.start, frame.end, link)

    def finish(self) -> None:
        """The capture is over."""
        self._ip.finish()

    def inner(self, row: PacketRow, start: int, link: int, depth: int) -> list[PacketRow]:
        """The packets inside a tunnel datagram `row`, whose inner packet starts at `start` of the row's data."""
        end = row.offset + min(row.have, row.length)
        frame = Frame(
            data=row.data, time_us=row.time_us, start=start, end=end, wire_end=row.offset + row.length,
            link=row.link, outer=row.frame, outer_start=row.head_start, outer_end=row.frame_end,
            head_end=-1 if row.data is row.frame else row.head_end, depth=depth,
        )  # fmt: skip
        return self._link(frame, start, end, link)

    def _link(self, frame: Frame, start: int, end: int, link: int) -> list[PacketRow]:
        frame.links += 1
        if frame.links > MAX_LINKS:
            return self._types.skip("link headers nested too deep")
        if link >= ETHERTYPE_LINKS:
            return self._types.in_tunnel(frame, start, end, link - ETHERTYPE_LINKS)
        decode = self._links.get(link)
        return decode(frame, start, end) if decode else self._types.skip(f"link type {link}, which is not supported")

    def _token_ring(self, frame: Frame, start: int, end: int) -> list[PacketRow]:
        """IEEE 802.5, with or without a source route, which the first bit of the source address announces."""
        if end - start <= _TOKEN_RING_BYTES:
            return self._types.cut()
        frame.beyond_zeek = "a token ring header"
        has_route = frame.data[start + 8] & 0x80
        route = frame.data[start + _TOKEN_RING_BYTES] & 31 if has_route else 0
        return self._types.llc(frame, start + _TOKEN_RING_BYTES + route, end)

    def _fddi(self, frame: Frame, start: int, end: int) -> list[PacketRow]:
        if end - start <= _FDDI_BYTES:
            return self._types.cut()
        if frame.data[start + _FDDI_LLC_BYTES : start + _FDDI_LLC_BYTES + 2] == b"\xaa\xaa":
            return self._types.llc(frame, start + _FDDI_LLC_BYTES, end)
        return self._ip.decode(frame, start + _FDDI_BYTES, end)

    def _fibre_channel(self, frame: Frame, start: int, end: int) -> list[PacketRow]:
        """IP over Fibre Channel (RFC 2625): two addresses of eight bytes, then LLC."""
        frame.beyond_zeek = "a Fibre Channel header"
        return self._types.llc(frame, start + 16, end)

    def _firewire(self, frame: Frame, start: int, end: int) -> list[PacketRow]:
        """IP over IEEE 1394: two addresses of eight bytes, then an EtherType."""
        if end - start <= 18:
            return self._types.cut()
        return self._ethertype_at(frame, start + 16, start + 18, end, "FireWire")

    def _ethertype_at(self, frame: Frame, at: int, start: int, end: int, after: str) -> list[PacketRow]:
        return self._types.ethertype(frame, start, end, int.from_bytes(frame.data[at : at + 2]), after)

    def _bsd_loopback(self, frame: Frame, start: int, end: int) -> list[PacketRow]:
        """The address family, or an EtherType, in the byte order of the capturing host; or PPP in its place."""
        if end - start <= 4:
            return self._types.cut()
        field = frame.data[start : start + 4]
        if field[:2] == b"\xff\x03":
            frame.beyond_zeek = "PPP in a loopback header"
            return self._types.ppp(frame, start, end)
        for number in (int.from_bytes(field, "little"), int.from_bytes(field, "big")):
            if number in _FAMILIES:
                return self._family(frame, start + 4, end, number)
            if ETHERNET_TYPES <= number < 1 << 16:
                frame.beyond_zeek = "an EtherType in a loopback header"
                return self._types.ethertype(frame, start + 4, end, number, "a loopback header")
            frame.beyond_zeek = "a loopback header in big-endian order"
        return self._types.not_ip()

    def _family(self, frame: Frame, start: int, end: int, family: int) -> list[PacketRow]:
        if family not in _FAMILIES:
            return self._types.not_ip()
        if family == 10:
            frame.beyond_zeek = frame.beyond_zeek or "Linux's number of IPv6 in a loopback header"
        return self._ip.decode(frame, start, end)

    def _encryption(self, frame: Frame, start: int, end: int) -> list[PacketRow]:
        """OpenBSD's `enc`: address family in the order of the host, index and flags of the association."""
        if end - start <= 12:
            return self._types.cut()
        frame.beyond_zeek = "an `enc` header"
        family = frame.data[start : start + 4]
        return self._family(frame, start + 12, end, min(int.from_bytes(family, "little"), int.from_bytes(family)))

    def _packet_filter_log(self, frame: Frame, start: int, end: int) -> list[PacketRow]:
        """`pflog`: its length, filled up to four bytes, and the address family."""
        length = frame.data[start] + 3 & ~3
        if not 4 <= length < end - start:
            return self._types.cut()
        frame.beyond_zeek = "a `pflog` header"
        return self._family(frame, start + length, end, frame.data[start + 1])

    def _packet_tap(self, frame: Frame, start: int, end: int) -> list[PacketRow]:
        """macOS's PKTAP, in the order of the host: its length, the kind of what follows, its link type."""
        for order in "<>":
            if end - start <= _PKTAP_BYTES:
                return self._types.cut()
            length, _, link = struct.unpack_from(order + "III", frame.data, start)
            if _PKTAP_BYTES <= length < end - start:
                frame.beyond_zeek = "a PKTAP header"
                return self._link(frame, start + length, end, link)
        return self._types.cut()

    def _ppp_with_direction(self, frame: Frame, start: int, end: int) -> list[PacketRow]:
        """PPP with a byte that says sent or received, before the address or in its place."""
        frame.beyond_zeek = "PPP with a direction"
        if frame.data[start + 1 : min(end, start + 2)] == b"\x03":
            return self._types.ppp(frame, start + 2, end)
        return self._types.hdlc(frame, start + 1, end)

    def _linux_cooked(self, frame: Frame, start: int, end: int) -> list[PacketRow]:
        return self._cooked(frame, start, end, 16, 14, 2)

    def _linux_cooked_2(self, frame: Frame, start: int, end: int) -> list[PacketRow]:
        return self._cooked(frame, start, end, 20, 0, 8)

    def _cooked(self, frame: Frame, start: int, end: int, header: int, at: int, device_at: int) -> list[PacketRow]:
        if end - start <= header:
            return self._types.cut()
        kind = int.from_bytes(frame.data[start + at : start + at + 2])
        device = int.from_bytes(frame.data[start + device_at : start + device_at + 2])
        start += header
        if kind >= ETHERNET_TYPES:
            return self._types.ethertype(frame, start, end, kind, "Linux cooked")
        frame.beyond_zeek = "Linux cooked without an EtherType"
        if device == _LINUX_RADIOTAP:
            return self._link(frame, start, end, 127)
        if kind == _LINUX_COOKED_PPP:
            return self._types.hdlc(frame, start, end)
        return self._types.llc(frame, start, end) if kind == _LINUX_COOKED_LLC else self._types.not_ip()

    def _nflog(self, frame: Frame, start: int, end: int) -> list[PacketRow]:
        """Attributes in the byte order of the capturing host up to the payload."""
        if end - start <= 4:
            return self._types.cut()
        family, version = frame.data[start], frame.data[start + 1]
        if version or family not in _NFLOG_FAMILIES:
            return self._types.not_ip()
        for order in "<>":
            payload = _nflog_payload(frame.data, start + 4, end, order)
            if payload:
                return self._ip.decode(frame, payload, end)
        return self._types.cut()


def _nflog_payload(data: bytes, start: int, end: int, order: str) -> int:
    """Where the payload begins, read in this byte order; 0 if the attributes do not lead to one."""
    while end - start > 4:
        length, kind = struct.unpack_from(order + "HH", data, start)
        if kind == _NFLOG_PAYLOAD:
            return start + 4
        if length < 4:
            return 0
        start += length + 3 & ~3
    return 0
