"""802.11 frames, and the headers that capture tools put before them: radiotap, PPI, Prism and AVS.

Zeek 8.0 knows radiotap alone, and of the 802.11 header less; `Frame.beyond_zeek` says where."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace

from tapline.service.sources.packets.ethertypes import EtherTypes
from tapline.service.sources.packets.ip import Frame
from tapline.service.sources.packets.packet_rows import PacketRow

IEEE802_11 = 105

_DATA, _NO_DATA, _QOS = 0x08, 0x40, 0x80
_PROTECTED, _ORDER = 0x40, 0x80
_AGGREGATE = 0x80
_SUBFRAME_BYTES = 14
_FCS_BYTES = 4
_RADIOTAP_FCS, _RADIOTAP_PADDED = 0x10, 0x20
_MAX_PRESENCE_WORDS = 16
_PPI_BYTES = 8
_PPI_COMMON = 2
_AVS_MAGIC = 0x80211000
_SNAP = b"\xaa\xaa\x03"

LinkDecoder = Callable[[Frame, int, int, int], list[PacketRow]]


class Wireless:
    """Decodes 802.11 data frames; what is in them goes to `types`, other links in a PPI header to `link`."""

    def __init__(self, types: EtherTypes, link: LinkDecoder) -> None:
        self._types = types
        self._link = link

    def radiotap(self, frame: Frame, start: int, end: int) -> list[PacketRow]:
        """A radiotap header (radiotap.org), which says whether the frame is padded and has its checksum."""
        if end - start <= 8:
            return self._types.cut()
        length = int.from_bytes(frame.data[start + 2 : start + 4], "little")
        if not 8 <= length < end - start:
            return self._types.cut()
        flags = _radiotap_flags(frame.data[start : start + length])
        end = _without_fcs(frame, start + length, end, bool(flags & _RADIOTAP_FCS))
        return self.data(frame, start + length, end, bool(flags & _RADIOTAP_PADDED))

    def ppi(self, frame: Frame, start: int, end: int) -> list[PacketRow]:
        """A PPI header, little-endian by its specification, in the order of the capturing host by some writers."""
        for order in "<>":
            if end - start <= _PPI_BYTES:
                return self._types.cut()
            _, _, length, link = struct.unpack_from(order + "BBHI", frame.data, start)
            if _PPI_BYTES <= length < end - start and link < 1 << 16:
                frame.beyond_zeek = "a PPI header"
                has_fcs = link == IEEE802_11 and _ppi_has_fcs(frame.data[start : start + length], order)
                return self._link(frame, start + length, _without_fcs(frame, start + length, end, has_fcs), link)
        return self._types.cut()

    def prism(self, frame: Frame, start: int, end: int) -> list[PacketRow]:
        """A Prism header in either byte order, or an AVS header, which begins with a number of its own."""
        for order in "><":
            if end - start <= 8:
                return self._types.cut()
            code, length = struct.unpack_from(order + "II", frame.data, start)
            if (code & 0xFFFFF000 == _AVS_MAGIC or code < 1 << 16) and 8 <= length < end - start:
                frame.beyond_zeek = "a Prism or AVS header"
                return self.data(frame, start + length, end, False)
        return self._types.cut()

    def bare(self, frame: Frame, start: int, end: int) -> list[PacketRow]:
        """802.11 without anything before it."""
        return self.data(frame, start, end, False)

    def data(self, frame: Frame, start: int, end: int, padded: bool) -> list[PacketRow]:
        """A data frame (IEEE 802.11 9.3.2.1); `padded`: its header is filled up to a multiple of four bytes."""
        data = frame.data
        header = 24
        if end - start <= header:
            return self._types.cut()
        control, flags = data[start], data[start + 1]
        if control & 0x0C != _DATA or control & _NO_DATA:
            return self._types.not_ip()
        if flags & 3 == 3:
            header += 6
        aggregated = False
        if control & _QOS:
            if end - start <= header:
                return self._types.cut()
            aggregated = bool(data[start + header] & _AGGREGATE)
            header += 2
            if flags & _ORDER:
                frame.beyond_zeek = frame.beyond_zeek or "802.11 with HT control"
                header += 4
        if padded and header & 3:
            frame.beyond_zeek = frame.beyond_zeek or "a padded 802.11 header"
            header = header + 3 & ~3
        if end - start <= header:
            return self._types.cut()
        start += header
        if flags & _PROTECTED and (aggregated or data[start : start + 3] != _SNAP):
            return self._types.skip("encrypted 802.11")
        return self._aggregate(frame, start, end) if aggregated else self._types.llc(frame, start, end)

    def _aggregate(self, frame: Frame, start: int, end: int) -> list[PacketRow]:
        """The packets of an A-MSDU: each subframe but the last is filled up to four bytes, counted from its own start
        (IEEE 802.11 9.3.2.2.2). Zeek counts from the end of its header."""
        rows: list[PacketRow] = []
        as_zeek = True
        while end - start >= _SUBFRAME_BYTES:
            length = int.from_bytes(frame.data[start + 12 : start + 14])
            body = start + _SUBFRAME_BYTES
            part = replace(frame)
            if not as_zeek:
                part.beyond_zeek = part.beyond_zeek or "an A-MSDU by its standard padding"
            as_zeek = as_zeek and length % 4 == -(_SUBFRAME_BYTES + length) % 4
            rows += self._types.llc(part, body, min(end, body + length))
            start += _SUBFRAME_BYTES + length + 3 & ~3
        return rows


def _without_fcs(frame: Frame, start: int, end: int, has_fcs: bool) -> int:
    """Where the frame ends before its checksum, which is there unless the snap length cut it."""
    return max(start, end - _FCS_BYTES) if has_fcs and frame.end == frame.wire_end else end


def _radiotap_flags(header: bytes) -> int:
    """The flags field, after the presence words and the time, which is aligned; 0 where there is none."""
    position = 4
    for _ in range(_MAX_PRESENCE_WORDS):
        if position + 4 > len(header):
            return 0
        position += 4
        if not header[position - 1] & 0x80:
            break
    if header[4] & 1:
        position = (position + 7 & ~7) + 8
    return header[position] if header[4] & 2 and position < len(header) else 0


def _ppi_has_fcs(header: bytes, order: str) -> bool:
    """Whether a PPI header's field 802.11-Common says that the frame has its checksum."""
    position = _PPI_BYTES
    while position + 4 <= len(header):
        kind, length = struct.unpack_from(order + "HH", header, position)
        if kind == _PPI_COMMON and position + 14 <= len(header):
            (flags,) = struct.unpack_from(order + "H", header, position + 12)
            return bool(flags & 1)
        position += 4 + (length + 3 & ~3 if header[1] & 1 else length)
    return False
