"""What stands between a link header and IP, whatever the link: EtherTypes with their tags and shims, MPLS, LLC, SNAP,
PPP with its compressed headers, and Ethernet, which all of them may carry. Every link layer and tunnel comes here.

Zeek 8.0 follows fewer of them; `Frame.beyond_zeek` says so (src/packet_analysis/protocol)."""

from __future__ import annotations

from tapline.service.sources.packets.ip import Frame, IpPackets
from tapline.service.sources.packets.packet_rows import PacketRow, ReadCounters

MAX_LINKS = 16
"""Link headers that may be inside each other; tags and labels in a row count as one."""

ETHERNET_TYPES = 0x0600
"""EtherTypes begin here (IEEE 802.3 3.2.6); what is below is a length."""

_MAX_TAGS = 32
_IP = frozenset({0x0800, 0x86DD})
_VLAN = frozenset({0x8100, 0x88A8, 0x9100})
_FABRIC_PATH = 0x8903
_MPLS = frozenset({0x8847, 0x8848})
_PBB, _PPPOE, _VNTAG, _BRIDGED, _MACSEC, _NSH, _TRILL = 0x88E7, 0x8864, 0x8926, 0x6558, 0x88E5, 0x894F, 0x22F3
_PPP_ETHERTYPE = 0x880B
_WCCP = 0x883E
_SHIMS = {
    **dict.fromkeys((0x8100, 0x88A8, 0x9100, 0x9200, 0x9300), 2),  # VLAN tags, IEEE 802.1Q and the older ones
    **dict.fromkeys((_VNTAG, 0x892F, 0xF1C1), 4),  # VN-Tag, HSR (IEC 62439-3), R-TAG (IEEE 802.1CB)
    **dict.fromkeys((0x893F, 0x8909, 0x8988), 6),  # E-TAG (IEEE 802.1BR), Cisco's metadata and time tags
}
"""By EtherType: bytes of a shim before the EtherType of what follows it."""

_ARP = frozenset({0x0806, 0x8035})
_KNOWN = frozenset({*_IP, *_ARP, *_MPLS, *_SHIMS, _PBB, _PPPOE, _BRIDGED, _MACSEC, _NSH, _TRILL, _PPP_ETHERTYPE, _WCCP})

LEAD_ON = _KNOWN - _ARP | {_FABRIC_PATH}
"""EtherTypes behind which there may be IP."""

_ZEEK_FOLLOWS = {
    "Ethernet": _IP | _VLAN | {0x8847, _PBB, _PPPOE, _VNTAG},
    "a VLAN tag": _IP | {0x8100, 0x8847, _PBB, _PPPOE, _VNTAG},
    "a VN-Tag": _VLAN,
    "SNAP": _IP,
    "Linux cooked": _IP,
    "a tunnel's header": _IP | {_BRIDGED},
}
_NSH_NEXT = {1: 0x0800, 2: 0x86DD, 3: _BRIDGED, 5: 0x8847}
_PPP_IP = frozenset({0x0021, 0x0057})
_PPP_MPLS = frozenset({0x0281, 0x0283})
_SNAP_ORGANISATIONS = (bytes(3), b"\0\0\xf8")


class EtherTypes:
    """Follows headers down to IP packets; counts what it cannot."""

    def __init__(self, counters: ReadCounters, ip: IpPackets) -> None:
        self._counters = counters
        self._ip = ip

    def skip(self, reason: str) -> list[PacketRow]:
        """Counts a packet that belongs to no flow."""
        self._counters.skipped[reason] += 1
        return []

    def cut(self) -> list[PacketRow]:
        """Counts a packet whose link header is not all there."""
        return self.skip("link layer cut")

    def not_ip(self) -> list[PacketRow]:
        """Counts a packet of another protocol."""
        return self.skip("not IP")

    def ethernet(self, frame: Frame, start: int, end: int) -> list[PacketRow]:
        """An Ethernet frame from its addresses on."""
        if end - start <= 16:
            return self.cut()
        data = frame.data
        ethertype = int.from_bytes(data[start + 12 : start + 14])
        if ethertype == _FABRIC_PATH:
            if end - start <= 30:
                return self.cut()
            start += 16
            ethertype = int.from_bytes(data[start + 12 : start + 14])
        return self.ethertype(frame, start + 14, end, ethertype, "Ethernet")

    def ethertype(self, frame: Frame, start: int, end: int, ethertype: int, after: str) -> list[PacketRow]:
        """Follows tags and labels down to IP. `start` is what comes after the type, which itself comes `after`."""
        frame.links += 1
        if frame.links > MAX_LINKS:
            return self.skip("link headers nested too deep")
        for _ in range(_MAX_TAGS):
            if ethertype not in _ZEEK_FOLLOWS.get(after, ()) and ethertype >= ETHERNET_TYPES:
                frame.beyond_zeek = frame.beyond_zeek or f"EtherType {ethertype:04X} after {after}"
            if ethertype in _IP:
                return self._ip.decode(frame, start, end)
            size = _SHIMS.get(ethertype)
            if ethertype == _MACSEC and end - start > 6:
                if frame.data[start] & 0x0C:
                    return self.skip("encrypted MACsec")
                size = 14 if frame.data[start] & 0x20 else 6
            if size is None:
                break
            if end - start <= size + 2:
                return self.cut()
            after = "a VLAN tag" if size == 2 else "a VN-Tag" if ethertype == _VNTAG else "a tag"
            ethertype = int.from_bytes(frame.data[start + size : start + size + 2])
            start += size + 2
        if ethertype < ETHERNET_TYPES:
            return self._length(frame, start, end, ethertype)
        return self._carrier(frame, start, end, ethertype)

    def in_tunnel(self, frame: Frame, start: int, end: int, ethertype: int) -> list[PacketRow]:
        """What an EtherType in a tunnel's header announces; of one that is not known, IP (Zeek's default)."""
        if ethertype in _KNOWN:
            return self.ethertype(frame, start, end, ethertype, "a tunnel's header")
        return self._ip.decode(frame, start, end)

    def _carrier(self, frame: Frame, start: int, end: int, ethertype: int) -> list[PacketRow]:
        """EtherTypes of protocols that carry others."""
        data = frame.data
        if ethertype in _MPLS:
            return self.mpls(frame, start, end)
        if ethertype == _PPPOE:
            return self.pppoe(frame, start, end)
        if ethertype == _PPP_ETHERTYPE:
            return self.ppp(frame, start, end)
        if ethertype == _PBB:
            return self.ethernet(frame, start + 4, end)
        if ethertype == _BRIDGED:
            return self.ethernet(frame, start, end)
        if ethertype == _WCCP:  # version 2 has a redirect header of four bytes where version 1 has IP
            return self._ip.decode(frame, start if data[start] >> 4 == 4 else start + 4, end)
        if ethertype == _TRILL and end - start > 6:  # RFC 6325 3.1
            options = int.from_bytes(data[start : start + 2]) >> 6 & 31
            return self.ethernet(frame, start + 6 + 4 * options, end)
        if ethertype == _NSH and end - start > 8:  # RFC 8300 2.2
            following = _NSH_NEXT.get(data[start + 3], 0)
            return self.ethertype(frame, start + 4 * (data[start + 1] & 63), end, following, "NSH")
        return self.not_ip()

    def _length(self, frame: Frame, start: int, end: int, length: int) -> list[PacketRow]:
        """IEEE 802.3: a length instead of a type, LLC after it. What follows the length is padding."""
        if length > 1500:
            return self.not_ip()
        if end - start < length:
            return self.cut() if end == frame.wire_end else self.llc(frame, start, end)
        return self.llc(frame, start, start + length if length > 3 else end)

    def llc(self, frame: Frame, start: int, end: int) -> list[PacketRow]:
        """IEEE 802.2: SNAP with an EtherType in it, or IP by its own number (RFC 948)."""
        data = frame.data
        if end - start < 3:
            return self.cut()
        header = start + (3 if data[start + 2] & 3 == 3 else 4)
        if data[start : start + 2] == b"\x06\x06":
            frame.beyond_zeek = frame.beyond_zeek or "IP in LLC without SNAP"
            return self._ip.decode(frame, header, end)
        if data[start : start + 2] != b"\xaa\xaa":
            return self.not_ip()
        if end < header + 5:
            return self.cut()
        ethertype = int.from_bytes(data[header + 3 : header + 5])
        if data[header : header + 3] not in _SNAP_ORGANISATIONS or ethertype < ETHERNET_TYPES:
            return self.not_ip()
        return self.ethertype(frame, header + 5, end, ethertype, "SNAP")

    def mpls(self, frame: Frame, start: int, end: int) -> list[PacketRow]:
        """Labels (RFC 3032), then IP, or Ethernet behind a control word of zeros (RFC 4448 4.6)."""
        last = 0
        while not last:
            if end - start <= 4:
                return self.cut()
            last = frame.data[start + 2] & 1
            start += 4
        if frame.data[start] >> 4:
            return self._ip.decode(frame, start, end)
        frame.beyond_zeek = frame.beyond_zeek or "Ethernet in MPLS"
        return self.ethernet(frame, start + 4, end)

    def pppoe(self, frame: Frame, start: int, end: int) -> list[PacketRow]:
        """A PPPoE session's packet (RFC 2516 4)."""
        if end - start <= 8:
            return self.cut()
        length = int.from_bytes(frame.data[start + 4 : start + 6])
        return self.ppp(frame, start + 6, min(end, start + 6 + max(2, length)))

    def ppp(self, frame: Frame, start: int, end: int) -> list[PacketRow]:
        """A PPP frame, its address and control fields and the first byte of its protocol there or left out (RFC 1661
        6.5, RFC 1662 3.2)."""
        data = frame.data
        if data[start : min(end, start + 2)] == b"\xff\x03":
            start += 2
        if end - start < 2:
            return self.cut()
        if data[start] & 1:
            frame.beyond_zeek = frame.beyond_zeek or "a compressed PPP protocol field"
            return self._ppp_protocol(frame, start + 1, end, data[start])
        return self._ppp_protocol(frame, start + 2, end, int.from_bytes(data[start : start + 2]))

    def hdlc(self, frame: Frame, start: int, end: int) -> list[PacketRow]:
        """PPP on a serial line, or Cisco's HDLC, which has an EtherType after its address (RFC 1547 4.3.1)."""
        if end - start <= 4:
            return self.cut()
        if frame.data[start] not in (0x0F, 0x8F):
            return self.ppp(frame, start, end)
        kind = int.from_bytes(frame.data[start + 2 : start + 4])
        if kind in _PPP_IP or kind in _PPP_MPLS:
            return self._ppp_protocol(frame, start + 4, end, kind)
        return self.ethertype(frame, start + 4, end, kind, "Cisco HDLC")

    def _ppp_protocol(self, frame: Frame, start: int, end: int, protocol: int) -> list[PacketRow]:
        if protocol in _PPP_IP:
            return self._ip.decode(frame, start, end)
        if protocol in _PPP_MPLS:
            return self.mpls(frame, start, end)
        return self.not_ip()
