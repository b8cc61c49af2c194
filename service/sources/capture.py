"""The built-in capture reader: a capture file or stream in, the flows that Zeek would see in it out. It puts the parts
together (container, file format, decoding, flow table) and owns what a caller sees of them."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from tapline.models.flow import Flow, HeadsKind
from tapline.service.sources.flows.flow_table import FlowTable
from tapline.service.sources.flows.live_flow import LiveFlow
from tapline.service.sources.packets.capture_error import CaptureError, CaptureTooLargeError
from tapline.service.sources.packets.columns import BlockDecoder
from tapline.service.sources.packets.container import ByteSource
from tapline.service.sources.packets.formats import open_blocks
from tapline.service.sources.packets.frames import FrameDecoder
from tapline.service.sources.packets.packet_rows import PacketBlock, PacketRow, ReadCounters
from tapline.service.sources.packets.pcap import PcapReader
from tapline.service.sources.packets.pcapng import PcapngReader
from tapline.service.sources.packets.tunnels import NotThisTunnelError, find_inner

__all__ = ["CaptureError", "CaptureReader", "CaptureTooLargeError", "ReadOptions", "check_capture", "read_capture"]


@dataclass(frozen=True)
class ReadOptions:
    """How to read a capture.

    * `heads`: what to keep of the first packets of a flow (`models.flow.Flow`).
    * `max_bytes`: refuse captures with more bytes than this after decompression.
    """

    heads: HeadsKind = "header"
    max_bytes: int | None = None


class CaptureReader:
    """Iterates once over the flows of a capture, each when it ends on the capture's own clock, in bounded memory.

    Formats: pcap (all byte orders and time resolutions) and pcapng, plain, gzip or zstd, told by their first bytes;
    `source` is a path or a binary stream, which need not be seekable and is not closed.

    While it runs and after: `packets` read; `bytes_read` of `bytes_total` (None where unknown) as stored, for a
    progress bar; `skipped`, packets without a flow by reason; `warning`, a sentence where the capture is cut or
    damaged (what came before is read).

    Raises:
        CaptureError: the source cannot be opened, is no capture, or has no link type that can be decoded.
        CaptureTooLargeError: it exceeds `ReadOptions.max_bytes`.
    """

    def __init__(self, source: Path | BinaryIO, options: ReadOptions = ReadOptions()) -> None:
        self.warning: str | None = None
        self._foreign: int | None = None
        self._foreign_packets = 0
        self._counters = ReadCounters()
        self._frames = FrameDecoder(self._counters)
        self._blocks = BlockDecoder(self._frames, self._counters)
        self._table = FlowTable(options.heads, self._counters, self._inner_packets)
        self._source = ByteSource(source, options.max_bytes)

    @property
    def packets(self) -> int:
        """Packets read so far."""
        return self._counters.packets

    @property
    def bytes_read(self) -> int:
        """Bytes consumed so far, as stored."""
        return self._source.stored_bytes

    @property
    def bytes_total(self) -> int | None:
        """The stored size, where it is known."""
        return self._source.total_bytes

    @property
    def beyond_zeek(self) -> dict[str, int]:
        """Packets of flows that Zeek 8.0 leaves out, by reason."""
        return dict(self._counters.beyond_zeek)

    @property
    def skipped(self) -> dict[str, int]:
        """Packets that belong to no flow, by reason."""
        return dict(self._counters.skipped)

    def __iter__(self) -> Iterator[Flow]:
        try:
            blocks = open_blocks(self._source)
            for block in blocks:
                self._refuse_foreign_links(block, blocks)
                self._counters.packets += len(block.start)
                with _no_collection():
                    self._table.process_block(self._blocks.packets(block), block.time_us)
                yield from self._table.take()
            self._frames.finish()
            self._table.finish()
            yield from self._table.take()
            self._counters.skipped.update(blocks.skipped)
            if self._foreign is not None and self._foreign_packets == self._counters.packets:
                raise CaptureError(_unsupported(self._foreign))
            self.warning = blocks.warning
        finally:
            self._source.close()

    def _refuse_foreign_links(self, block: PacketBlock, blocks: PcapReader | PcapngReader) -> None:
        """Counts packets of link types that cannot be decoded, as one interface of a pcapng file may have.

        Raises:
            CaptureError: the whole file has one such link type.
        """
        foreign = [link for link in blocks.link_types if not self._frames.knows(link)]
        if foreign:
            if isinstance(blocks, PcapReader):
                raise CaptureError(_unsupported(foreign[0]))
            self._foreign = min(foreign)
            self._foreign_packets += int(np.isin(block.link, foreign).sum())

    def close(self) -> None:
        """Closes the file that a path named; reading to the end does it too."""
        self._source.close()

    def _inner_packets(self, row: PacketRow, flow: LiveFlow, depth: int) -> list[PacketRow]:
        """The packets inside a UDP datagram, if it is a tunnel's."""
        if flow.not_a_tunnel:
            return []
        payload = row.data[row.offset : row.offset + min(row.have, row.length)]
        try:
            inner = find_inner(payload, row.length, flow.ports()[1 - flow.orig])
        except NotThisTunnelError:
            flow.not_a_tunnel = True
            return []
        if inner is None:
            return []
        return self._frames.inner(row, row.offset + inner.start, inner.link, depth)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keeps the garbage collector from looking again and again through records that make no cycles."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _unsupported(link: int) -> str:
    return (
        f"link type {link} is not supported; capture on an Ethernet, Wi-Fi, PPP, loopback, Linux cooked or raw IP "
        "interface"
    )


def read_capture(source: Path | BinaryIO, options: ReadOptions = ReadOptions()) -> Iterator[Flow]:
    """The flows of a capture; see `CaptureReader`, which also has counters."""
    return iter(CaptureReader(source, options))


def check_capture(path: Path) -> None:
    """See whether a file begins as a capture does; pipes and devices, which can be read once only, are left alone.

    Raises:
        CaptureError: it cannot be opened, is empty, or is no capture.
    """
    if path.is_fifo() or path.is_char_device():
        return
    try:
        file = path.open("rb")
    except OSError as error:
        raise CaptureError(f"cannot read it: {error.strerror}") from None
    with file:
        open_blocks(ByteSource(file, max_bytes=None))
