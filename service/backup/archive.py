"""The file of a backup: a tar archive, compressed by zstd, whose last member is a table of all the others with their
hashes. One that is cut short, damaged or of something else is none."""

from __future__ import annotations

import hashlib
import os
import re
import tarfile
import time
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import IO, BinaryIO, Self

import msgspec
import zstandard

from tapline.installation import version

FORMAT = 1
TABLE = "backup.json"

_NAME = re.compile(r"(?!\.)[\w.-]{1,128}(/(?!\.)[\w.-]{1,128}){0,7}", re.ASCII)
_PIECE_BYTES = 1 << 20
_PACKED_BYTES = 1 << 10
"""Read at a time: what is made to unpack to most unpacks to 32 MiB of it (a block of 128 KiB for each four bytes)."""
_MAX_TABLE_BYTES = 256 << 20
_LEVEL = 3


class BackupError(ValueError):
    """A backup cannot be made or used; the message says why."""


class Member(msgspec.Struct, frozen=True):
    """A file of a backup."""

    size_bytes: int
    sha256: str


class Table(msgspec.Struct):
    """What is in a backup: files by their names, of which tapline, made when (UTC)."""

    made: str
    tapline: str
    files: dict[str, Member] = {}
    format: int = FORMAT

    def count(self, part: str) -> int:
        """How many things of a part there are: names directly below it."""
        return len({name.split("/")[1] for name in self.files if name.startswith(f"{part}/")})


class BackupWriter:
    """Writes a backup, which has its name only once it is whole and on disk; until then, and after an error, nothing
    of that name is touched."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._part = path.with_name(f".{path.name}.{os.getpid()}")
        self._stack = ExitStack()
        self.table = Table(time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), version())

    def __enter__(self) -> Self:
        try:
            self._file = self._stack.enter_context(_open_private(self._part))
            self._packed = self._stack.enter_context(
                zstandard.ZstdCompressor(_LEVEL, write_checksum=True).stream_writer(self._file, closefd=False)
            )
            self._tar = self._stack.enter_context(tarfile.open(fileobj=self._packed, mode="w|"))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        self._part.unlink(missing_ok=True)

    def add(self, name: str, path: Path) -> None:
        """Put in a file as long as it is now, under a name.

        Raises:
            FileNotFoundError: it is gone. OSError: it cannot be read, or the backup not written.
        """
        with path.open("rb") as file:
            size_bytes = os.fstat(file.fileno()).st_size
            source = _Hashed(file, size_bytes)
            self._put(name, size_bytes, source)
            self.table.files[name] = Member(size_bytes, source.sha256.hexdigest())

    def _put(self, name: str, size_bytes: int, source: _Hashed) -> None:
        if not _NAME.fullmatch(name):
            raise BackupError(f"{name[:80]!a}: the name of a file that a backup cannot hold")
        entry = tarfile.TarInfo(name)
        entry.size, entry.mode = size_bytes, 0o600
        self._tar.addfile(entry, source)  # type: ignore[arg-type]

    def finish(self) -> int:
        """Write the table, and give the file its name; how large it is, in bytes."""
        body = msgspec.json.encode(self.table)
        entry = tarfile.TarInfo(TABLE)
        entry.size, entry.mode = len(body), 0o600
        self._tar.addfile(entry, _Hashed(body, len(body)))  # type: ignore[arg-type]
        self._tar.close()
        self._packed.close()  # type: ignore[no-untyped-call]
        self._file.flush()
        os.fsync(self._file.fileno())
        size_bytes = os.fstat(self._file.fileno()).st_size
        self._part.replace(self.path)
        return size_bytes


class _Hashed:
    """Reads exactly so many bytes of a file or of bytes, and hashes them."""

    def __init__(self, source: BinaryIO | bytes, size_bytes: int) -> None:
        self._source = source
        self._left = size_bytes
        self.sha256 = hashlib.sha256()

    def read(self, size: int) -> bytes:
        """Up to `size` bytes; less than there should be is an error, and more is left."""
        size = min(size, self._left)
        if isinstance(self._source, bytes):
            data = self._source[-self._left :][:size] if size else b""
        else:
            data = self._source.read(size)
        if len(data) < size:
            raise BackupError("a file became shorter while it was read: try again")
        self._left -= len(data)
        self.sha256.update(data)
        return data


class _Unpacked:
    """Reads a file of one whole zstd frame, to its checksum, in bounded memory.

    `read` raises zstandard.ZstdError or EOFError where the frame is damaged, cut short, or not all of the file.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._frame = zstandard.ZstdDecompressor().decompressobj()
        self._data = bytearray()

    def read(self, size: int) -> bytes:
        """Up to `size` bytes, less at the end alone."""
        while len(self._data) < size and not self._frame.eof:
            packed = self._file.read(_PACKED_BYTES)
            if not packed:
                raise EOFError("cut short")
            self._data += self._frame.decompress(packed)
        if self._frame.eof and (self._frame.unused_data or self._file.read(1)):
            raise EOFError("something follows it")
        found = bytes(self._data[:size])
        del self._data[:size]
        return found


def unpack(path: Path, folder: Path) -> Table:
    """Write the files of a backup below an empty folder, each checked by its hash, for this user alone.

    Raises:
        BackupError: it is not a whole backup. OSError: it cannot be read, or the files not written.
    """
    found: dict[str, Member] = {}
    table: Table | None = None
    try:
        with path.open("rb") as file, tarfile.open(fileobj=(whole := _Unpacked(file)), mode="r|") as tar:  # type: ignore[call-overload]
            for entry in tar:
                source = tar.extractfile(entry) if entry.isreg() else None
                if source is None or table is not None:
                    raise BackupError(f"{path} is not a backup of tapline: it holds what none does")
                if entry.name == TABLE:
                    table = _read_table(path, entry, source)
                elif not _NAME.fullmatch(entry.name) or entry.name in found:
                    raise BackupError(f"{path} is not a backup of tapline: it holds what none does")
                else:
                    found[entry.name] = _write(source, folder / entry.name)
            while whole.read(_PIECE_BYTES):  # up to the checksum behind all of it
                pass
    except (tarfile.TarError, zstandard.ZstdError, EOFError) as error:
        raise BackupError(f"{path} is not a whole backup of tapline: {str(error)[:80] or 'cut short'}") from None
    if table is None:
        raise BackupError(f"{path} is not a whole backup of tapline: it is cut short")
    if table.files != found:
        raise BackupError(f"{path} is damaged: files in it are not what its table says")
    return table


def _read_table(path: Path, entry: tarfile.TarInfo, source: IO[bytes]) -> Table:
    if entry.size > _MAX_TABLE_BYTES:
        raise BackupError(f"{path} is not a backup of tapline: its table is too large")
    try:
        table = msgspec.json.decode(source.read(), type=Table)
    except msgspec.DecodeError:
        raise BackupError(f"{path} is damaged: its table cannot be read") from None
    if table.format != FORMAT:
        raise BackupError(
            f"{path} is a backup of format {table.format}, and this tapline reads {FORMAT}: use tapline {table.tapline}"
        )
    return table


def _write(source: IO[bytes], path: Path) -> Member:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    sha256 = hashlib.sha256()
    size_bytes = 0
    with _open_private(path) as file:
        for data in iter(lambda: source.read(_PIECE_BYTES), b""):
            file.write(data)
            sha256.update(data)
            size_bytes += len(data)
        file.flush()
        os.fsync(file.fileno())
    return Member(size_bytes, sha256.hexdigest())


def _open_private(path: Path) -> BinaryIO:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb")


def sync_folders(folders: Iterable[Path]) -> None:
    """See that what was renamed in folders stays so."""
    for folder in folders:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
