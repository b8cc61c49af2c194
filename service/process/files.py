"""Files on a disk that may be full."""

from __future__ import annotations

from typing import BinaryIO


def write_all(file: BinaryIO, data: bytes) -> None:
    """Write all of it to a file without a buffer, which says at once when the disk is full.

    Raises:
        OSError: it is.
    """
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]
