"""The files of a state directory: records with checksums, a journal of lines, and the lock that one service holds.

What stands in them is `state`'s business. A damaged part is told apart from a whole one here, reading is bounded, and
what cannot be written now is tried again the next time.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

MAX_RECORD_BYTES = 64 << 20
MAX_LINE_BYTES = 4096
MAX_JOURNAL_BYTES = 64 << 20
"""What is read of a journal, its newest part: one that could not be emptied for long costs no more than that."""

_HEAD = struct.Struct(">II")
_LINE = b"%08x %s\n"


class DamageError(ValueError):
    """A file is not whole from here on; the message says how."""


def open_private(path: Path, how: int) -> BinaryIO:
    """Open a file to write, which nobody else may read: it names hosts."""
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | how, 0o600), "wb", buffering=0)


def framed(body: bytes) -> bytes:
    """A record with its length and its checksum (CRC-32) before it."""
    return _HEAD.pack(len(body), zlib.crc32(body)) + body


def read_framed(file: BinaryIO) -> bytes:
    """The next record.

    Raises:
        DamageError: it is cut, too long, or not what was written.
    """
    head = file.read(_HEAD.size)
    if len(head) < _HEAD.size:
        raise DamageError("it is not whole")
    size, checksum = _HEAD.unpack(head)
    if size > MAX_RECORD_BYTES:
        raise DamageError("it is damaged")
    body = file.read(size)
    if len(body) < size:
        raise DamageError("it is not whole")
    if zlib.crc32(body) != checksum:
        raise DamageError("it is damaged")
    return body


class DirectoryLock:
    """Held for as long as a service keeps its state in a directory; the system frees it with the process."""

    def __init__(self, directory: Path) -> None:
        """Raises: BlockingIOError where another holds it, OSError where the directory cannot be written."""
        self._file = open_private(directory / "lock", 0)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise

    def close(self) -> None:
        """Let another have it."""
        self._file.close()


class Journal:
    """Lines that are each whole or passed over. A line is on its way to the disk when `append` returns."""

    def __init__(self, path: Path) -> None:
        """`path`: of the journal; what was rotated is beside it, with `.old` behind the name."""
        self._path = path
        self._old = path.with_name(f"{path.name}.old")
        self._file: BinaryIO | None = None
        self._is_tail_whole = False

    def append(self, text: bytes) -> None:
        """Add a line; after a failure the next one tries anew.

        Raises:
            OSError: it cannot be written now.
        """
        line = _LINE % (zlib.crc32(text), text)
        try:
            file = self._open()
            if not self._is_tail_whole:  # what was cut short ends here
                line = b"\n" + line
            self._is_tail_whole = False
            self._is_tail_whole = file.write(line) == len(line)
        except OSError:
            self.close()
            raise
        if not self._is_tail_whole:
            raise OSError("cut short")

    def rotate(self) -> None:
        """Begin an empty journal; what is in this one is kept beside it until `forget_old`.

        Raises:
            OSError: that cannot be written; nothing is lost.
        """
        self.close()
        if not self._path.exists():
            return
        if not self._old.exists():
            self._path.rename(self._old)
            return
        with self._path.open("rb") as source, open_private(self._old, os.O_APPEND) as target:
            shutil.copyfileobj(source, target)
        self._path.unlink()

    def forget_old(self) -> None:
        """What was in the journal before `rotate` is needed no more."""
        self._old.unlink(missing_ok=True)

    def lines(self) -> Iterator[bytes | None]:
        """The whole lines, the oldest first; None for a damaged one.

        Raises:
            OSError: it cannot be read.
        """
        for path in (self._old, self._path):
            if path.exists():
                with path.open("rb") as file:
                    yield from _lines(file)

    def close(self) -> None:
        """Close the file; `append` opens it again."""
        if self._file is not None:
            self._file.close()
        self._file, self._is_tail_whole = None, False

    def _open(self) -> BinaryIO:
        if self._file is None:
            self._file = open_private(self._path, os.O_APPEND)
            self._is_tail_whole = self._file.tell() == 0 and self._path.stat().st_size == 0
        return self._file


def _lines(file: BinaryIO) -> Iterator[bytes | None]:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - MAX_JOURNAL_BYTES))
    if file.tell():
        file.readline(MAX_LINE_BYTES)
    left = MAX_JOURNAL_BYTES
    while left > 0 and (line := file.readline(MAX_LINE_BYTES)):
        left -= len(line)
        if line == b"\n":
            continue
        checksum, _, text = line.rstrip(b"\n").partition(b" ")
        yield text if line.endswith(b"\n") and checksum == b"%08x" % zlib.crc32(text) else None
