"""The pcapng file format (draft-ietf-opsawg-pcapng): sections, interfaces and packet blocks of both byte orders."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from tapline.models.flow import MAX_COUNT
from tapline.service.sources.packets.capture_error import CaptureError
from tapline.service.sources.packets.container import ByteSource
from tapline.service.sources.packets.packet_rows import PacketBlock
from tapline.service.sources.packets.pcap import BLOCK_BYTES, BLOCK_PADDING, MAX_CAPTURED_BYTES

MAGIC = b"\x0a\x0d\x0d\x0a"

_SECTION = 0x0A0D0D0A
_INTERFACE = 1
_OBSOLETE_PACKET = 2
_SIMPLE_PACKET = 3
_ENHANCED_PACKET = 6
_LEAST_BYTES = {_INTERFACE: 8, _OBSOLETE_PACKET: 20, _SIMPLE_PACKET: 4, _ENHANCED_PACKET: 20}
_BYTE_ORDER_MAGIC = 0x1A2B3C4D
_MAX_BLOCK_BYTES = 1 << 24
_MAX_INTERFACES = 4096
_NO_LINK = 0xFFFF
_OPTION_TSRESOL = 9
_OPTION_TSOFFSET = 14


@dataclass(slots=True)
class _Interface:
    link: int
    snap_length: int
    units_per_second: int = 1_000_000
    offset_us: int = 0

    def time_us(self, units: int) -> int:
        if self.units_per_second == 1_000_000:
            return units + self.offset_us
        return units * 1_000_000 // self.units_per_second + self.offset_us

    def nanos(self, units: int) -> int:
        """The nanoseconds below the microsecond."""
        if self.units_per_second == 1_000_000:
            return 0
        return units * 1_000_000_000 // self.units_per_second % 1_000


@dataclass(slots=True)
class _Columns:
    """The packets of one block, as lists that become a `PacketBlock`."""

    start: list[int] = field(default_factory=list)
    captured: list[int] = field(default_factory=list)
    wire: list[int] = field(default_factory=list)
    time_us: list[int] = field(default_factory=list)
    link: list[int] = field(default_factory=list)
    nanos: list[int] = field(default_factory=list)

    def block(self, data: bytes) -> PacketBlock:
        columns = (self.start, self.captured, self.wire, self.time_us, self.link, self.nanos)
        return PacketBlock(data, *(np.array(column, dtype=np.int64) for column in columns))


class PcapngReader:
    """Iterates over the packet blocks of one pcapng file. `warning` says where the file was cut or damaged, `skipped`
    counts what was left out of it."""

    def __init__(self, source: ByteSource, head: bytes) -> None:
        self.warning: str | None = None
        self.link_types: set[int] = set()
        self._source = source
        self._carry = head
        self._position = 0
        self._order = "<"
        self._interfaces: list[_Interface] = []
        self._packets = 0
        self._last_time_us = self._last_nanos = 0
        self._seen_section = False
        self._to_pass = 0  # bytes of a block that is not held in memory, as none of its kind is needed
        self._first_skipped: str | None = None
        self.skipped: Counter[str] = Counter()

    def __iter__(self) -> Iterator[PacketBlock]:
        while self.warning is None:
            fresh = self._source.read_some(BLOCK_BYTES)
            if not fresh:
                self._note_the_end()
                return
            passed = min(len(fresh), self._to_pass)
            self._to_pass -= passed
            self._position += passed
            data = b"".join((self._carry, fresh[passed:], BLOCK_PADDING))
            columns = _Columns()
            end = self._read_blocks(data, columns)
            self._carry = data[end : -len(BLOCK_PADDING)]
            self._position += end
            if columns.start:
                yield columns.block(data)

    def _read_blocks(self, data: bytes, columns: _Columns) -> int:
        """Reads the whole blocks in `data` into `columns` and returns where the last of them ends."""
        position, limit = 0, len(data) - len(BLOCK_PADDING)
        while position + 12 <= limit:
            kind, length = struct.unpack_from(self._order + "II", data, position)
            if kind == _SECTION:
                length = self._start_section(data, position)
            elif not self._seen_section:
                raise CaptureError("expected a pcapng section header at the start of the capture; it is damaged")
            if length > _MAX_BLOCK_BYTES and length % 4 == 0 and kind not in (_SECTION, *_LEAST_BYTES):
                self._to_pass = position + length - limit  # more than is ever held at once
                return limit
            if length < 12 or length % 4 or length > _MAX_BLOCK_BYTES:
                self._damaged(position, f"a block claims {length:,} bytes")
                break
            if position + length > limit:
                break
            wrong = self._read_block(kind, data, position + 8, position + length - 4, columns)
            if wrong:
                if struct.unpack_from(self._order + "I", data, position + length - 4)[0] != length:
                    self._damaged(position, wrong)
                    break
                self._skip(position, wrong)
            position += length
        return position

    def _start_section(self, data: bytes, position: int) -> int:
        for order in "<>":
            if struct.unpack_from(order + "I", data, position + 8)[0] == _BYTE_ORDER_MAGIC:
                self._order = order
                self._interfaces = []
                self._seen_section = True
                return int(struct.unpack_from(order + "I", data, position + 4)[0])
        if not self._seen_section:
            raise CaptureError("the capture's pcapng section header has no byte-order mark; it is damaged")
        return 0

    def _read_block(self, kind: int, data: bytes, start: int, end: int, columns: _Columns) -> str | None:
        """Takes one block whose body is `data[start:end]`; says what is wrong with it, or None."""
        if end - start < _LEAST_BYTES.get(kind, 0):
            if kind == _INTERFACE:  # the interfaces after it keep their numbers
                self._interfaces.append(_Interface(_NO_LINK, 0))
            return "a block is shorter than its kind allows"
        if kind == _SIMPLE_PACKET and not self._interfaces:
            return f"packet {self._packets + 1} names an interface that is not described"
        if kind == _ENHANCED_PACKET:
            which, high, low, captured, wire = struct.unpack_from(self._order + "5I", data, start)
            return self._add(columns, which, high << 32 | low, captured, wire, start + 20, end)
        if kind == _OBSOLETE_PACKET:
            which, _, high, low, captured, wire = struct.unpack_from(self._order + "HH4I", data, start)
            return self._add(columns, which, high << 32 | low, captured, wire, start + 20, end)
        if kind == _SIMPLE_PACKET:
            (wire,) = struct.unpack_from(self._order + "I", data, start)
            there = end - start - 4
            return self._add(columns, 0, None, min(wire or there, self._simple_limit(), there), wire, start + 4, end)
        return self._add_interface(data, start, end) if kind == _INTERFACE else None

    def _simple_limit(self) -> int:
        return self._interfaces[0].snap_length or MAX_CAPTURED_BYTES

    def _skip(self, position: int, what: str) -> None:
        """Notes a block that was left out, the first of them by name."""
        self.skipped["a damaged block of the capture"] += 1
        self._first_skipped = self._first_skipped or (
            f"{what} at byte {self._position + position}: the capture is damaged there, the rest was read"
        )

    def _add(
        self, columns: _Columns, which: int, units: int | None, captured: int, wire: int, start: int, end: int
    ) -> str | None:
        if which >= len(self._interfaces):
            return f"packet {self._packets + 1} names an interface that is not described"
        if captured > end - start or captured > MAX_CAPTURED_BYTES:
            return f"packet {self._packets + 1} claims {captured:,} captured bytes"
        interface = self._interfaces[which]
        if units is not None:
            self._last_time_us = min(max(0, interface.time_us(units)), MAX_COUNT)
            self._last_nanos = interface.nanos(units)
        self._packets += 1
        columns.start.append(start)
        columns.captured.append(min(captured, interface.snap_length) if interface.snap_length else captured)
        columns.wire.append(wire)
        columns.time_us.append(self._last_time_us)
        columns.link.append(interface.link)
        columns.nanos.append(self._last_nanos)
        return None

    def _add_interface(self, data: bytes, start: int, end: int) -> str | None:
        if len(self._interfaces) >= _MAX_INTERFACES:
            return f"more than {_MAX_INTERFACES:,} interfaces"
        link, _, snap_length = struct.unpack_from(self._order + "HHI", data, start)
        interface = _Interface(link, snap_length if snap_length <= MAX_CAPTURED_BYTES else 0)
        position = start + 8
        while position + 4 <= end:
            code, length = struct.unpack_from(self._order + "HH", data, position)
            value = data[position + 4 : min(position + 4 + length, end)]
            if code == 0:
                break
            if code == _OPTION_TSRESOL and len(value) >= 1:
                interface.units_per_second = (2 if value[0] & 0x80 else 10) ** (value[0] & 0x7F)
            elif code == _OPTION_TSOFFSET and len(value) >= 8:
                interface.offset_us = struct.unpack(self._order + "q", value[:8])[0] * 1_000_000
            position += 4 + (length + 3 & ~3)
        self._interfaces.append(interface)
        self.link_types.add(link)
        return None

    def _damaged(self, position: int, what: str) -> None:
        self.warning = (
            f"{what} at byte {self._position + position}: the capture is damaged there, what came before was read"
        )

    def _note_the_end(self) -> None:
        if self._source.damage:
            self.warning = self._source.damage
        elif not self._seen_section:
            raise CaptureError("the capture ends inside its section header; no packet can be read")
        elif self._carry or self._to_pass:
            self.warning = (
                f"the capture ends in the middle of packet {self._packets + 1} at byte "
                f"{self._position + len(self._carry)}; what came before was read"
            )
        else:
            self.warning = self._first_skipped
