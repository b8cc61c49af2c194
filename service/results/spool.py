"""Bytes kept for later, the first in memory and the rest on disk: what comes at the end of a result waits here."""

from __future__ import annotations

import errno
import io
import os
import tempfile
from collections.abc import Iterator

_MEMORY_BYTES = 4 << 20
_PIECE_BYTES = 1 << 20


class Spool:
    """Bytes kept for later: the first `_MEMORY_BYTES` in memory, what follows on disk."""

    def __init__(self) -> None:
        self._memory: list[bytes] = []
        self._memory_left = _MEMORY_BYTES
        self._file: io.FileIO | None = None
        self._file_bytes = 0

    def add(self, data: bytes) -> None:
        """Keep all of it, or none.

        Raises:
            OSError: there is no room on disk.
        """
        if self._file is None and len(data) <= self._memory_left:
            self._memory.append(data)
            self._memory_left -= len(data)
            return
        if self._file is None:
            self._file = tempfile.TemporaryFile(buffering=0)
        self._file.seek(self._file_bytes)
        if self._file.write(data) < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._file_bytes += len(data)

    def pieces(self) -> Iterator[bytes]:
        """All that was kept, in order; several may ask at a time."""
        yield from self._memory
        at = 0
        while self._file is not None and at < self._file_bytes:
            piece = os.pread(self._file.fileno(), min(self._file_bytes - at, _PIECE_BYTES), at)
            at += len(piece)
            yield piece

    def close(self) -> None:
        """Forget it."""
        self._memory.clear()
        if self._file is not None:
            self._file.close()
