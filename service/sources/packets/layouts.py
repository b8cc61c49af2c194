"""The fixed layouts of IP and transport headers as numpy records, and how to take them out of a block's bytes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tapline.service.sources.packets.packet_rows import Int64Array

Bytes = npt.NDArray[np.uint8]
Records = npt.NDArray[np.void]

IPV4 = np.dtype(
    {
        "names": ["length", "total", "fragment", "protocol", "source", "target", "source_bytes", "target_bytes"],
        "formats": ["u1", ">u2", ">u2", "u1", ">u4", ">u4", "4u1", "4u1"],
        "offsets": [0, 2, 6, 9, 12, 16, 12, 16],
        "itemsize": 20,
    }
)
IPV6 = np.dtype(
    {
        "names": ["payload", "protocol", "source", "target", "source_bytes", "target_bytes"],
        "formats": [">u2", "u1", "2>u8", "2>u8", "16u1", "16u1"],
        "offsets": [4, 6, 8, 24, 8, 24],
        "itemsize": 40,
    }
)
TRANSPORT = np.dtype(
    {
        "names": ["source", "target", "seq", "ack", "size", "flags", "type", "code"],
        "formats": [">u2", ">u2", ">u4", ">u4", "u1", "u1", "u1", "u1"],
        "offsets": [0, 2, 4, 8, 12, 13, 0, 1],
        "itemsize": 20,
    }
)


def gather(raw: Bytes, at: Int64Array, layout: np.dtype[np.void]) -> Records:
    """The records of one layout at the offsets `at`. Shape (len(at),)."""
    size = layout.itemsize
    everywhere = np.ndarray(len(raw) - size + 1, f"V{size}", raw, strides=(1,))  # without fields each is copied whole
    return everywhere[at].view(layout)


def pick(records: Records, places: Int64Array) -> Records:
    """Some of the records."""
    return records.view(f"V{records.dtype.itemsize}")[places].view(records.dtype)


def be16(raw: Bytes, at: Int64Array) -> Int64Array:
    """The big-endian numbers of two bytes at the offsets `at`."""
    return raw[at].astype(np.int64) << 8 | raw[at + 1]


def be32(raw: Bytes, at: Int64Array) -> Int64Array:
    """The same, of four bytes."""
    return be16(raw, at) << 16 | be16(raw, at + 2)
