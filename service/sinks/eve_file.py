"""The output `eve`: a file of JSON lines that others read while it grows, and that is put aside by size and time."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import os
import stat
import time
from collections.abc import Sequence
from pathlib import Path

from tapline.service.process.files import write_all
from tapline.service.sinks.output_queue import Record
from tapline.service.sinks.output_url import EveOutput, OutputError
from tapline.service.sinks.put_aside import PutAside
from tapline.service.sinks.sender import AwayError, reason_of

FILE_MODE = 0o640
FOLDER_MODE = 0o750
"""Who ships the file reads it as a member of its group, whatever the umask of the service."""

_TAIL_BYTES = 1 << 20
_PASSING = frozenset({errno.EAGAIN, errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE})
"""Another process that still writes the file, and a full disk: no reason to refuse a start."""


class EveFile:
    """Appends to a file, whole lines only; as of `sender.Sender`.

    Somebody else may rotate the file: one that was moved or removed is opened anew, at the latest on `reopen`, and one
    that was cut is written on from its new end.
    """

    batch_records = 1000
    batch_bytes = 1 << 20
    gather_seconds = 0.25

    def __init__(self, output: EveOutput) -> None:
        """
        Raises:
            OutputError: the file cannot be written, for a reason that does not pass by itself.
        """
        self._path = Path(output.path).absolute()
        self._max_bytes = output.rotate_mb << 20
        self._period_seconds = output.rotate_hours * 3600
        self._aside = PutAside(self._path, output.keep, output.compress)
        self._file: io.FileIO | None = None
        self._period = 0
        try:
            self._open()
        except OSError as error:
            if error.errno not in _PASSING:
                raise OutputError(
                    f"{output.shown} cannot be written: {reason_of(error)}: name another, or let this user write it"
                ) from None

    def probe(self) -> None:
        """Open the file, where it is not.

        Raises:
            AwayError: it cannot be opened.
        """
        try:
            self._current()
        except OSError as error:
            raise AwayError(f"{self._path} cannot be written: {reason_of(error)}") from None

    def send(self, records: Sequence[Record]) -> Sequence[Record]:
        """Write records; where the disk is full, none of them.

        Raises:
            AwayError: they could not be written.
        """
        data = b"".join([record.line + b"\n" for record in records])
        try:
            file = self._ready(len(data))
            size = os.fstat(file.fileno()).st_size
            try:
                write_all(file, data)
            except OSError:
                with contextlib.suppress(OSError):
                    file.truncate(size)
                raise
        except OSError as error:
            self.reopen()
            raise AwayError(f"{self._path} cannot be written: {reason_of(error)}") from None
        return ()

    def reopen(self) -> None:
        """Open the file anew before the next record."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def close(self) -> None:
        """Close the file, and let go of compressing."""
        self.reopen()
        self._aside.close()

    def _ready(self, more_bytes: int) -> io.FileIO:
        """The file to write so much to."""
        file = self._current()
        size = os.fstat(file.fileno()).st_size
        too_large = self._max_bytes and size + more_bytes > self._max_bytes
        too_old = self._period_seconds and self._period_of(time.time()) != self._period
        if size and (too_large or too_old):
            self.reopen()
            self._aside.put_aside()
            file = self._open()
        elif too_old:
            self._period = self._period_of(time.time())
        return file

    def _current(self) -> io.FileIO:
        if self._file is not None and self._is_gone(self._file):
            self.reopen()
        return self._file or self._open()

    def _open(self) -> io.FileIO:
        _make_folder(self._path.parent)
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISREG(self._path.stat().st_mode):
                raise OSError("it is not a regular file")
        file = io.FileIO(self._path, "a+b", opener=_open_or_make)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _cut_torn_line(file)
            found = os.fstat(file.fileno())
        except BlockingIOError:
            file.close()
            raise OSError(errno.EAGAIN, "another process writes it") from None
        except BaseException:
            file.close()
            raise
        self._period = self._period_of(found.st_mtime if found.st_size else time.time())
        self._file = file
        return file

    def _period_of(self, seconds: float) -> int:
        return int(seconds // self._period_seconds) if self._period_seconds else 0

    def _is_gone(self, file: io.FileIO) -> bool:
        """Whether another file, or none, is where ours was."""
        try:
            found = self._path.stat()
        except FileNotFoundError:
            return True
        ours = os.fstat(file.fileno())
        return (found.st_dev, found.st_ino) != (ours.st_dev, ours.st_ino)


def _make_folder(path: Path) -> None:
    """Make a folder and those above it; one that is there stays as it is."""
    if path.is_dir():
        return
    _make_folder(path.parent)
    with contextlib.suppress(FileExistsError):
        path.mkdir()
        path.chmod(FOLDER_MODE)


def _open_or_make(path: str, flags: int) -> int:
    """Open a file with the mode that it has, or make it with ours."""
    try:
        made = os.open(path, flags | os.O_CREAT | os.O_EXCL, FILE_MODE)
    except FileExistsError:
        return os.open(path, flags, FILE_MODE)
    os.fchmod(made, FILE_MODE)
    return made


def _cut_torn_line(file: io.FileIO) -> None:
    """Cut off what a process that was killed left of its last line: it was never counted as written."""
    size = os.fstat(file.fileno()).st_size
    start = max(0, size - _TAIL_BYTES)
    tail = os.pread(file.fileno(), size - start, start)
    if tail and not tail.endswith(b"\n"):
        end = tail.rfind(b"\n")
        if end < 0 and start:
            raise OSError("its last line has no end within 1 MiB: expected a file of JSON lines")
        file.truncate(start + end + 1)
