"""One packet at a time, from its link layer to the packet rows it holds: every link layer, IPv6 extension headers,
fragments and tunnels. Slow and complete; `columns` decodes ordinary packets by the block and leaves the rest to this.

What is accepted and what is dropped follows Zeek 8.0 (src/packet_analysis/protocol)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from service.sources.ip import GRE_LINK, MAX_TUNNEL_DEPTH, Frame, IpPackets
from service.sources.packets import PacketRow, ReadCounters

ETHERNET = 1
IEEE802_11 = 105
RAW_LINK_TYPES = frozenset({12, 14, 101, 228, 229})
LINUX_COOKED = 113
LINUX_COOKED_2 = 276

_IP_ETHERTYPES = frozenset({0x0800, 0x86DD})
_ARP_ETHERTYPES = frozenset({0x0806, 0x8035})
_VLAN_ETHERTYPES = frozenset({0x8100, 0x88A8, 0x9100})
_FABRIC_PATH = 0x8903
_MPLS, _PBB, _PPPOE, _VNTAG = 0x8847, 0x88E7, 0x8864, 0x8926
_PPP_IP = frozenset({0x0021, 0x0057})
_PPP_MPLS = 0x0281
_BSD_FAMILIES = frozenset({2, 24, 28, 30})
_NFLOG_FAMILIES = frozenset({2, 10})
_NFLOG_PAYLOAD = 9
_MAX_TAGS = 32


class FrameDecoder:
    """Decodes packets one by one. Holds the fragments that wait for each other, and counts what it skips."""

    def __init__(self, counters: ReadCounters) -> None:
        self._counters = counters
        self._ip = IpPackets(counters, self._link)
        self._links: dict[int, Callable[[Frame, int, int], list[PacketRow]]] = {
            0: self._bsd_loopback,
            ETHERNET: self._ethernet,
            9: self._ppp,
            10: self._fddi,
            50: self._ppp_serial,
            51: self._pppoe,
            IEEE802_11: self._ieee802_11,
            108: self._bsd_loopback,
            LINUX_COOKED: self._linux_cooked,
            127: self._radiotap,
            239: self._nflog,
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
        return self._links.get(link, self._not_ip)(frame, start, end)

    def _skip(self, reason: str) -> list[PacketRow]:
        self._counters.skipped[reason] += 1
        return []

    def _cut(self) -> list[PacketRow]:
        return self._skip("link layer cut")

    def _not_ip(self, frame: Frame, start: int, end: int) -> list[PacketRow]:
        return self._skip("not IP")

    def _ethernet(self, frame: Frame, start: int, end: int) -> list[PacketRow]:
        if end - start <= 16:
            return self._cut()
        data = frame.data
        ethertype = data[start + 12] << 8 | data[start + 13]
        if ethertype == _FABRIC_PATH:
            if end - start <= 30:
                return self._cut()
            start += 16
            ethertype = data[start + 12] << 8 | data[start + 13]
        start += 14
        if ethertype <= 1500:
            if end - start < ethertype:
                return self._cut()
            return self._length_field(frame, start, end)
        return self._ethertype(frame, start, end, ethertype)

    def _ethertype(self, frame: Frame, start: int, end: int, ethertype: int) -> list[PacketRow]:
        """Follows tags and labels down to IP. `start` is what comes after the type."""
        allowed_tags = _VLAN_ETHERTYPES
        for _ in range(_MAX_TAGS):
            if ethertype in _IP_ETHERTYPES:
                return self._ip.decode(frame, start, end)
            if ethertype in allowed_tags:
                if end - start <= 4:
                    return self._cut()
                ethertype = int.from_bytes(frame.data[start + 2 : start + 4])
                start += 4
                allowed_tags = frozenset({0x8100})
                if ethertype <= 1500:
                    return self._length_field(frame, start, end)
            elif ethertype == _VNTAG:
                if end - start <= 6:
                    return self._cut()
                ethertype = int.from_bytes(frame.data[start + 4 : start + 6])
                start += 6
                if ethertype not in _VLAN_ETHERTYPES:
                    break
                allowed_tags = _VLAN_ETHERTYPES
            elif ethertype == _MPLS:
                return self._mpls(frame, start, end)
            elif ethertype == _PPPOE:
                return self._pppoe(frame, start, end)
            elif ethertype == _PBB:
                if end - start <= 18 or frame.depth > MAX_TUNNEL_DEPTH:
                    return self._cut()
                return self._ethernet(replace(frame, depth=frame.depth + 1), start + 4, end)
            else:
                break
        return self._not_ip(frame, start, end)

    def _length_field(self, frame: Frame, start: int, end: int) -> list[PacketRow]:
        """IEEE 802.3: of what has a length instead of a type, only SNAP with the Ethernet organisation holds IP."""
        data = frame.data
        if data[start : start + 2] != b"\xaa\xaa" or end - start < 3:
            return self._not_ip(frame, start, end)
        header = start + (3 if data[start + 2] & 3 == 3 else 4)
        if end < header + 5:
            return self._cut()
        if data[header : header + 3] != bytes(3) or int.from_bytes(data[header + 3 : header + 5]) not in _IP_ETHERTYPES:
            return self._not_ip(frame, start, end)
        return self._ip.decode(frame, header + 5, end)

    def _mpls(self, frame: Frame, start: int, end: int) -> list[PacketRow]:
        last = 0
        while not last:
            if end - start <= 4:
                return self._cut()
            last = frame.data[start + 2] & 1
            start += 4
        return self._ip.decode(frame, start, end)

    def _pppoe(self, frame: Frame, start: int, end: int) -> list[PacketRow]:
        if end - start <= 8:
            return self._cut()
        length = int.from_bytes(frame.data[start + 4 : start + 6])
        end = min(end, start + 8 + max(0, length - 2))
        return self._ppp_protocol(frame, start + 8, end, int.from_bytes(frame.data[start + 6 : start + 8]), False)

    def _ppp(self, frame: Frame, start: int, end: int) -> list[PacketRow]:
        if end - start <= 4:
            return self._cut()
        if frame.data[start : start + 2] == b"\xff\x03":
            start += 2
        return self._ppp_protocol(frame, start + 2, end, int.from_bytes(frame.data[start : start + 2]), True)

    def _ppp_serial(self, frame: Frame, start: int, end: int) -> list[PacketRow]:
        if end - start <= 4:
            return self._cut()
        return self._ppp_protocol(frame, start + 4, end, int.from_bytes(frame.data[start + 2 : start + 4]), True)

    def _ppp_protocol(self, frame: Frame, start: int, end: int, protocol: int, labels: bool) -> list[PacketRow]:
        if protocol in _PPP_IP:
            return self._ip.decode(frame, start, end)
        if labels and protocol == _PPP_MPLS:
            return self._mpls(frame, start, end)
        return self._not_ip(frame, start, end)

    def _fddi(self, frame: Frame, start: int, end: int) -> list[PacketRow]:
        if end - start <= 21:
            return self._cut()
        return self._ip.decode(frame, start + 21, end)

    def _bsd_loopback(self, frame: Frame, start: int, end: int) -> list[PacketRow]:
        """The address family is in the byte order of the capturing host."""
        if end - start <= 4:
            return self._cut()
        family = frame.data[start : start + 4]
        if int.from_bytes(family, "little") in _BSD_FAMILIES or int.from_bytes(family, "big") in _BSD_FAMILIES:
            return self._ip.decode(frame, start + 4, end)
        return self._not_ip(frame, start, end)

    def _linux_cooked(self, frame: Frame, start: int, end: int) -> list[PacketRow]:
        return self._cooked(frame, start, end, 16, 14)

    def _linux_cooked_2(self, frame: Frame, start: int, end: int) -> list[PacketRow]:
        return self._cooked(frame, start, end, 20, 0)

    def _cooked(self, frame: Frame, start: int, end: int, header: int, at: int) -> list[PacketRow]:
        if end - start <= header:
            return self._cut()
        if int.from_bytes(frame.data[start + at : start + at + 2]) in _IP_ETHERTYPES:
            return self._ip.decode(frame, start + header, end)
        return self._not_ip(frame, start, end)

    def _nflog(self, frame: Frame, start: int, end: int) -> list[PacketRow]:
        """Attributes in the byte order of the capturing host (little, on what captures these) up to the payload."""
        if end - start <= 4:
            return self._cut()
        family, version = frame.data[start], frame.data[start + 1]
        if version or family not in _NFLOG_FAMILIES:
            return self._not_ip(frame, start, end)
        start += 4
        while end - start > 4:
            length = int.from_bytes(frame.data[start : start + 2], "little")
            if int.from_bytes(frame.data[start + 2 : start + 4], "little") == _NFLOG_PAYLOAD:
                return self._ip.decode(frame, start + 4, end)
            if length < 4:
                break
            start += length + 3 & ~3
        return self._cut()

    def _radiotap(self, frame: Frame, start: int, end: int) -> list[PacketRow]:
        if end - start <= 4:
            return self._cut()
        length = int.from_bytes(frame.data[start + 2 : start + 4], "little")
        if length >= end - start:
            return self._cut()
        return self._ieee802_11(frame, start + length, end)

    def _ieee802_11(self, frame: Frame, start: int, end: int) -> list[PacketRow]:
        data = frame.data
        header = 24
        if end - start <= header:
            return self._cut()
        control, directions = data[start], data[start + 1]
        if not control & 0x08 or control & 0x40:
            return self._not_ip(frame, start, end)
        if directions & 3 == 3:
            header += 6
        if end - start <= header:
            return self._cut()
        aggregated = False
        if control & 0x80:
            aggregated = bool(data[start + header] & 0x80)
            if directions & 0x40:
                return self._skip("encrypted 802.11")
            header += 2
        if end - start <= header:
            return self._cut()
        start += header
        return self._aggregate(frame, start, end) if aggregated else self._llc(frame, start, end)

    def _aggregate(self, frame: Frame, start: int, end: int) -> list[PacketRow]:
        rows: list[PacketRow] = []
        while end - start >= 14:
            length = int.from_bytes(frame.data[start + 12 : start + 14])
            start += 14
            if end - start < length:
                break
            rows += self._llc(frame, start, start + length)
            start += length
            if end - start >= length % 4:
                start += length % 4
        return rows

    def _llc(self, frame: Frame, start: int, end: int) -> list[PacketRow]:
        if end - start < 8 or frame.data[start : start + 6] != b"\xaa\xaa\x03\0\0\0":
            return self._not_ip(frame, start, end)
        if int.from_bytes(frame.data[start + 6 : start + 8]) not in _IP_ETHERTYPES:
            return self._not_ip(frame, start, end)
        return self._ip.decode(frame, start + 8, end)
