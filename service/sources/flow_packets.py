"""The packets of one flow, found by reading its capture again as it was read when the flow was: tunnels, fragments and
flows that meet at the same endpoints later are told apart because the same code tells them apart."""

from __future__ import annotations

import struct
from array import array
from collections import defaultdict
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from tapline.service.sources.capture import CaptureReader, ReadOptions
from tapline.service.sources.flows.flow_table import FlowTable, InnerPackets
from tapline.service.sources.flows.live_flow import LiveFlow
from tapline.service.sources.packets.capture_error import CaptureError
from tapline.service.sources.packets.columns import BlockDecoder
from tapline.service.sources.packets.container import ByteSource
from tapline.service.sources.packets.formats import open_blocks
from tapline.service.sources.packets.fragments import Datagram, Fragment, Key, Reassembler
from tapline.service.sources.packets.frames import FrameDecoder
from tapline.service.sources.packets.ip import Frame
from tapline.service.sources.packets.packet_columns import PacketColumns
from tapline.service.sources.packets.packet_rows import Int64Array, PacketBlock, PacketRow, ReadCounters

_PCAP_NANO_MAGIC = 0xA1B23C4D
_SNAP_LENGTH = 262_144
_LAST_SECOND = 0xFFFFFFFF
_PIECE_BYTES = 1 << 18


class _Place:
    """Where the reading is: packets count from 0; `parts` are, by packet of the block, those whose fragments it
    completes."""

    def __init__(self) -> None:
        self.block: PacketBlock | None = None
        self.packets_before = 0
        self.current = -1
        self.parts: defaultdict[int, list[int]] = defaultdict(list)

    def enter(self, block: PacketBlock) -> None:
        """Go on with another block."""
        if self.block is not None:
            self.packets_before += len(self.block.start)
        self.block = block
        self.parts.clear()

    def packet(self, start: int) -> int:
        """The number of the packet whose link layer begins at `start` of the block."""
        assert self.block is not None
        return self.packets_before + int(np.searchsorted(self.block.start, start))

    def behind(self, start: int) -> list[int]:
        """The numbers of the packets that a row comes from, by where the last of them begins."""
        number = self.packet(start)
        return [*self.parts.get(number, ()), number]


class _Blocks(BlockDecoder):
    def __init__(self, frames: FrameDecoder, counters: ReadCounters, place: _Place) -> None:
        super().__init__(frames, counters)
        self._place = place

    def packets(self, block: PacketBlock) -> PacketColumns:
        self._place.enter(block)
        return super().packets(block)


class _Frames(FrameDecoder):
    def __init__(self, counters: ReadCounters, place: _Place) -> None:
        super().__init__(counters, _Fragments(place))
        self._place = place

    def decode(self, frame: Frame, link: int) -> list[PacketRow]:
        self._place.current = self._place.packet(frame.outer_start)
        return super().decode(frame, link)

    def inner(self, row: PacketRow, start: int, link: int, depth: int) -> list[PacketRow]:
        self._place.current = self._place.packet(row.head_start)
        return super().inner(row, start, link, depth)


class _Fragments(Reassembler):
    """Remembers which packets the fragments of a datagram came in."""

    def __init__(self, place: _Place) -> None:
        super().__init__()
        self._place = place
        self._packets: dict[Key, list[int]] = {}

    def add(self, fragment: Fragment, now_us: int) -> Datagram | None:
        packets = self._packets.get(fragment.key, [])
        datagram = super().add(fragment, now_us)  # it may give up what waited, this datagram included
        if datagram is not None:
            self._place.parts[self._place.current] += packets
        elif fragment.key in self._datagrams:
            self._packets.setdefault(fragment.key, []).extend(
                (*self._place.parts.get(self._place.current, ()), self._place.current)
            )
        return datagram

    def _remove(self, key: Key) -> None:
        super()._remove(key)
        self._packets.pop(key, None)


class _Table(FlowTable):
    """Notes which packets belong to the flow with one uid; `ended` once no more can."""

    def __init__(
        self, counters: ReadCounters, inner_packets: InnerPackets, place: _Place, uid: str, start_us: int
    ) -> None:
        super().__init__("none", counters, inner_packets)
        self.packets = array("q")
        self.ended = False
        self._place = place
        self._uid = uid
        self._start_us = start_us
        self._wanted: LiveFlow | None = None

    def _processed_alone(self, packets: PacketColumns) -> Int64Array:
        return np.arange(len(packets))

    def _process_alone(self, row: PacketRow) -> None:
        super()._process_alone(row)
        flow = self._flows.get(row[1])
        if flow is None:
            return
        if self._wanted is None and flow.start_us == self._start_us and flow.uid() == self._uid:
            self._wanted = flow
        if flow is self._wanted:
            self.packets.extend(self._place.behind(row[13]))

    def _end(self, flow: LiveFlow) -> None:
        self.ended = self.ended or flow is self._wanted
        super()._end(flow)


class _Reader(CaptureReader):
    """Reads a capture up to the end of one flow."""

    def __init__(self, source: BinaryIO, max_bytes: int | None, uid: str, start_us: int) -> None:
        super().__init__(source, ReadOptions("none", max_bytes))
        place = _Place()
        self._frames = _Frames(self._counters, place)
        self._blocks = _Blocks(self._frames, self._counters, place)
        self.table = self._table = _Table(self._counters, self._inner_packets, place, uid, start_us)

    def packets_of_flow(self) -> Int64Array:
        """The numbers of the flow's packets, in the capture's order.

        Raises:
            CaptureError: the capture cannot be read, or holds no such flow.
        """
        for _ in self:
            if self.table.ended:
                break
        if not self.table.packets:
            raise CaptureError("the capture holds no such flow any more")
        return np.unique(np.frombuffer(self.table.packets, dtype=np.int64))


def flow_packets(file: BinaryIO, uid: str, start_us: int, max_bytes: int | None = None) -> Iterator[bytes]:
    """The packets of a flow as a capture file, in pieces: their bytes, lengths and times as they were captured.

    It is pcap with nanoseconds; pcapng where the packets have several link types, which pcap cannot hold. `file` is
    read twice from its start. `uid` and `start_us` are those that the flow got when the capture was read.

    Raises:
        CaptureError: the capture cannot be read, or holds no such flow.
    """
    file.seek(0)
    packets = _Reader(file, max_bytes, uid, start_us).packets_of_flow()
    links = _links(file, packets)
    writer = _Pcap(links[0]) if len(links) == 1 else _Pcapng(links)
    piece = bytearray(writer.head)
    for block, chosen in _chosen(file, packets):
        for record in writer.records(block, chosen):
            piece += record
            if len(piece) >= _PIECE_BYTES:
                yield bytes(piece)
                piece.clear()
    yield bytes(piece)


def _links(file: BinaryIO, packets: Int64Array) -> list[int]:
    """The link types of packets."""
    found: set[int] = set()
    for block, chosen in _chosen(file, packets):
        found.update(block.link[chosen].tolist())
    return sorted(found)


def _chosen(file: BinaryIO, packets: Int64Array) -> Iterator[tuple[PacketBlock, Int64Array]]:
    """Blocks from the start of a capture, and the places in them of the packets of these numbers."""
    file.seek(0)
    before = done = 0
    for block in open_blocks(ByteSource(file, max_bytes=None)):
        after = before + len(block.start)
        upto = int(np.searchsorted(packets, after))
        if upto > done:
            yield block, packets[done:upto] - before
        before, done = after, upto
        if done == len(packets):
            return


class _Pcap:
    """Records of a pcap file (draft-ietf-opsawg-pcap)."""

    def __init__(self, link: int) -> None:
        self.head = struct.pack("<IHHiIII", _PCAP_NANO_MAGIC, 2, 4, 0, 0, _SNAP_LENGTH, link)

    def records(self, block: PacketBlock, chosen: Int64Array) -> Iterator[bytes]:
        """The records of the chosen packets."""
        for at in chosen.tolist():
            start, captured = int(block.start[at]), int(block.captured[at])
            seconds, micros = divmod(int(block.time_us[at]), 1_000_000)
            nanos = micros * 1_000 + int(block.nanos[at])
            yield struct.pack("<IIII", min(seconds, _LAST_SECOND), nanos, captured, int(block.wire[at]))
            yield block.data[start : start + captured]


class _Pcapng:
    """Blocks of a pcapng file (draft-ietf-opsawg-pcapng): one interface for each link type, times in nanoseconds."""

    def __init__(self, links: list[int]) -> None:
        self._interfaces = {link: number for number, link in enumerate(links)}
        resolution = struct.pack("<HHB3xHH", 9, 1, 9, 0, 0)
        self.head = _block(0x0A0D0D0A, struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1))
        for link in links:
            self.head += _block(1, struct.pack("<HHI", link, 0, _SNAP_LENGTH) + resolution)

    def records(self, block: PacketBlock, chosen: Int64Array) -> Iterator[bytes]:
        """The blocks of the chosen packets."""
        for at in chosen.tolist():
            start, captured = int(block.start[at]), int(block.captured[at])
            time_ns = int(block.time_us[at]) * 1_000 + int(block.nanos[at])
            head = struct.pack(
                "<IIIII", self._interfaces[int(block.link[at])], time_ns >> 32 & _LAST_SECOND, time_ns & _LAST_SECOND,
                captured, int(block.wire[at]),
            )  # fmt: skip
            yield _block(6, head + block.data[start : start + captured] + bytes(-captured % 4))


def _block(kind: int, body: bytes) -> bytes:
    length = len(body) + 12
    return struct.pack("<II", kind, length) + body + struct.pack("<I", length)
