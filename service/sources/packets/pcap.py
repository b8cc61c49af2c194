"""The pcap file format (draft-ietf-opsawg-pcap) and its old variants: records to packet blocks."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tapline.service.sources.packets.capture_error import CaptureError
from tapline.service.sources.packets.container import ByteSource
from tapline.service.sources.packets.layouts import gather
from tapline.service.sources.packets.packet_rows import Int64Array, PacketBlock

BLOCK_BYTES = 1 << 21
BLOCK_PADDING = bytes(128)
MAX_CAPTURED_BYTES = 262_144
"""Longest packet that libpcap accepts; a longer one means that the file is damaged."""

_FILE_HEADER_BYTES = 24
_RECORD_BYTES = 16
_MODIFIED_RECORD_BYTES = 24
_MAGICS = {
    0xA1B2C3D4: (1_000, _RECORD_BYTES),
    0xA1B23C4D: (1, _RECORD_BYTES),
    0xA1B2CD34: (1_000, _MODIFIED_RECORD_BYTES),
}
_RECORD = ("seconds", "fraction", "captured", "wire")
_LINK_TYPE_MASK = 0x03FFFFFF


@dataclass(frozen=True, slots=True)
class _Layout:
    """How the records of one file are laid out."""

    order: str
    fraction_ns: int
    record_bytes: int
    swapped_lengths: bool
    snap_length: int
    link: int


def is_pcap(magic: bytes) -> bool:
    """Whether a file that begins with these four bytes is pcap."""
    return len(magic) >= 4 and any(struct.unpack(order + "I", magic[:4])[0] in _MAGICS for order in "<>")


class PcapReader:
    """Iterates over the packet blocks of one pcap file. `warning` says where the file was cut or damaged; `skipped`
    counts what was left out before that, which is nothing: a record alone says where the next one is."""

    def __init__(self, source: ByteSource, head: bytes) -> None:
        self.warning: str | None = None
        self.link_types: set[int] = set()
        self.skipped: Counter[str] = Counter()
        self._source = source
        self._packets = 0
        while len(head) < _FILE_HEADER_BYTES:
            data = source.read_some(_FILE_HEADER_BYTES - len(head))
            if not data:
                raise CaptureError("the capture ends inside its file header; no packet can be read")
            head += data
        self._layout = _parse_file_header(head)
        self._carry = head[_FILE_HEADER_BYTES:]
        self._position = _FILE_HEADER_BYTES
        self.link_types.add(self._layout.link)

    def __iter__(self) -> Iterator[PacketBlock]:
        while self.warning is None:
            fresh = self._source.read_some(BLOCK_BYTES)
            if not fresh:
                self._note_the_end()
                return
            data = b"".join((self._carry, fresh, BLOCK_PADDING))
            records, end = self._find_records(data)
            self._carry = data[end : -len(BLOCK_PADDING)]
            self._position += end
            if len(records):
                self._packets += len(records)
                yield self._block(data, records)

    def _find_records(self, data: bytes) -> tuple[Int64Array, int]:
        """Where the whole records in `data` start, and where the last of them ends."""
        header = self._layout.record_bytes
        captured_of = struct.Struct(f"{self._layout.order}{12 if self._layout.swapped_lengths else 8}xI").unpack_from
        limit = len(data) - len(BLOCK_PADDING)
        position, last = 0, limit - header
        starts: list[int] = []
        append = starts.append
        while position <= last:
            append(position)
            position += header + captured_of(data, position)[0]
        bounds = np.array([*starts, position], dtype=np.int64)
        captured = np.diff(bounds) - header
        too_long = np.flatnonzero(captured > MAX_CAPTURED_BYTES)
        whole = int(too_long[0]) if len(too_long) else len(starts) - (position > limit)
        if len(too_long):
            self.warning = (
                f"packet {self._packets + whole + 1} at byte {self._position + int(bounds[whole])} claims "
                f"{captured[whole]:,} captured bytes, more than {MAX_CAPTURED_BYTES:,}: the capture is damaged there, "
                "what came before was read"
            )
        return bounds[:whole], int(bounds[whole])

    def _block(self, data: bytes, records: Int64Array) -> PacketBlock:
        layout = self._layout
        raw = np.frombuffer(data, dtype=np.uint8)
        header = gather(raw, records, np.dtype([(name, layout.order + "u4") for name in _RECORD]))
        seconds, fraction, captured, wire = (header[name].astype(np.int64) for name in _RECORD)
        if layout.swapped_lengths:
            captured, wire = wire, captured
        if layout.snap_length:
            captured = np.minimum(captured, layout.snap_length)
        # libpcap reads the fraction as a signed number; damaged files have it out of range.
        fraction = fraction.astype(np.int32).astype(np.int64)
        time_us = seconds * 1_000_000 + (fraction if layout.fraction_ns == 1_000 else fraction // 1_000)
        return PacketBlock(
            data=data,
            start=records + layout.record_bytes,
            captured=captured,
            wire=wire,
            time_us=np.maximum(time_us, 0),
            link=np.full(len(records), layout.link, dtype=np.int64),
            nanos=fraction % 1_000 if layout.fraction_ns == 1 else np.zeros(len(records), dtype=np.int64),
        )

    def _note_the_end(self) -> None:
        if self._source.damage:
            self.warning = self._source.damage
        elif self._carry:
            self.warning = (
                f"the capture ends in the middle of packet {self._packets + 1} at byte "
                f"{self._position + len(self._carry)}; what came before was read"
            )


def _parse_file_header(head: bytes) -> _Layout:
    order = "<" if struct.unpack("<I", head[:4])[0] in _MAGICS else ">"
    magic, major, minor, _, _, snap_length, link = struct.unpack(order + "IHHiIII", head[:_FILE_HEADER_BYTES])
    fraction_ns, record_bytes = _MAGICS[magic]
    # Versions before 2.3 (and one vendor's 543) wrote the original length before the captured one.
    swapped = (major == 2 and minor < 3) or major == 543
    if snap_length > MAX_CAPTURED_BYTES:
        snap_length = 0
    return _Layout(order, fraction_ns, record_bytes, swapped, snap_length, link & _LINK_TYPE_MASK)
