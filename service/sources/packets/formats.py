"""Tells the capture file formats apart."""

from __future__ import annotations

from tapline.service.sources.packets.capture_error import CaptureError
from tapline.service.sources.packets.container import ByteSource
from tapline.service.sources.packets.pcap import PcapReader, is_pcap
from tapline.service.sources.packets.pcapng import MAGIC as PCAPNG_MAGIC
from tapline.service.sources.packets.pcapng import PcapngReader

MAGIC_BYTES = 4


def is_plain_capture(head: bytes) -> bool:
    """Whether a file that begins with these bytes is a capture, not compressed."""
    return is_pcap(head) or head[:MAGIC_BYTES] == PCAPNG_MAGIC


def open_blocks(source: ByteSource) -> PcapReader | PcapngReader:
    """The reader of the packet blocks of a capture.

    Raises:
        CaptureError: it is no capture.
    """
    head = b""
    while len(head) < MAGIC_BYTES:
        data = source.read_some(MAGIC_BYTES - len(head))
        if not data:
            break
        head += data
    if is_pcap(head):
        return PcapReader(source, head)
    if head == PCAPNG_MAGIC:
        return PcapngReader(source, head)
    if source.damage:
        raise CaptureError(f"expected a pcap or pcapng file: {source.damage}")
    raise CaptureError("expected a pcap or pcapng file, plain or compressed with gzip or zstd; this is neither")
