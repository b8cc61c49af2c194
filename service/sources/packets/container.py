"""The bytes of a capture in order, decompressed as they are read and counted. It knows nothing of packets."""

from __future__ import annotations

import os
import stat
import zlib
from pathlib import Path
from typing import BinaryIO, Protocol

import zstandard

from tapline.service.sources.packets.capture_error import CaptureError, CaptureTooLargeError

_GZIP_MAGIC = b"\x1f\x8b"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_GZIP_WBITS = 31
_ZSTD_WINDOW_LIMIT_BYTES = 1 << 26
_STORED_CHUNK_BYTES = 1 << 16
_SALVAGE_STEP_BYTES = 64
_ZSTD_STEP_BYTES = 1 << 16


class _Decoder(Protocol):
    def decode(self, limit: int) -> bytes:
        """At most `limit` bytes; empty at the end."""


class _DamagedError(Exception):
    """Compressed data that ends early or does not decode."""


class ByteSource:
    """A capture's bytes from a path or a binary stream, plain, gzip or zstd by their first bytes.

    `stored_bytes` counts what was consumed as stored, `total_bytes` is the stored size where it is known, and `damage`
    is a sentence once compressed data turned out to be cut or damaged (what came before was returned).
    """

    def __init__(self, source: Path | BinaryIO, max_bytes: int | None) -> None:
        self.stored_bytes = 0
        self.total_bytes: int | None = None
        self.damage: str | None = None
        self._max_bytes = max_bytes
        self._given_bytes = 0
        self._owned = isinstance(source, Path)
        self._stream = _open(source) if isinstance(source, Path) else source
        self.total_bytes = _stored_size(self._stream)
        self._ahead = b""
        try:
            self._fill_ahead(4)
            self._decoder = self._choose_decoder()
        except BaseException:
            self.close()
            raise

    def read_some(self, limit: int) -> bytes:
        """Up to `limit` bytes, what is there without waiting for more; empty at the end.

        Raises:
            CaptureTooLargeError: more than `max_bytes` in all.
        """
        try:
            data = self._decoder.decode(limit)
        except _DamagedError as error:
            self.damage = str(error)
            return b""
        self._given_bytes += len(data)
        if self._max_bytes is not None and self._given_bytes > self._max_bytes:
            raise CaptureTooLargeError(
                f"the capture holds more than the allowed {self._max_bytes:,} bytes after decompression; "
                "split it or raise the limit"
            )
        return data

    def close(self) -> None:
        """Close the file if it was opened here."""
        if self._owned:
            self._stream.close()

    def stored(self, limit: int) -> bytes:
        """Up to `limit` bytes as stored, not decompressed; empty at the end."""
        if self._ahead:
            data, self._ahead = self._ahead[:limit], self._ahead[limit:]
            return data
        try:
            data = self._stream.read1(limit) if hasattr(self._stream, "read1") else self._stream.read(limit)
        except OSError as error:
            raise CaptureError(f"the capture cannot be read: {error.strerror or 'input error'}") from None
        self.stored_bytes += len(data)
        return data

    def _fill_ahead(self, size: int) -> None:
        while len(self._ahead) < size:
            ahead, self._ahead = self._ahead, b""
            data = self.stored(_STORED_CHUNK_BYTES)
            self._ahead = ahead + data
            if not data:
                return

    def _choose_decoder(self) -> _Decoder:
        if not self._ahead:
            raise CaptureError("the capture is empty; expected a pcap or pcapng file")
        if self._ahead.startswith(_GZIP_MAGIC):
            return _Gzip(self)
        if self._ahead.startswith(_ZSTD_MAGIC):
            return _Zstd(self)
        return _Plain(self)


class _Plain:
    def __init__(self, source: ByteSource) -> None:
        self._source = source

    def decode(self, limit: int) -> bytes:
        return self._source.stored(limit)


class _Gzip:
    """Streaming gzip with several members; `zlib` never holds more than one output chunk, so a bomb stays small."""

    def __init__(self, source: ByteSource) -> None:
        self._source = source
        self._inflate = zlib.decompressobj(_GZIP_WBITS)
        self._pending = b""
        self._damaged = False

    def decode(self, limit: int) -> bytes:
        while not self._damaged:
            if self._inflate.eof and not self._next_member():
                return b""
            if not self._pending:
                self._pending = self._source.stored(_STORED_CHUNK_BYTES)
            ended = not self._pending
            before = self._inflate.copy()
            try:
                data = self._inflate.decompress(self._pending, limit)
            except zlib.error:
                self._damaged = True
                data = _salvage(before, self._pending, limit)
            self._pending = self._inflate.unconsumed_tail
            if data:
                return data
            if ended and not self._inflate.eof:
                raise _DamagedError("the gzip data ends early; what came before was read")
        raise _DamagedError("the gzip data is damaged; what came before the damage was read")

    def _next_member(self) -> bool:
        rest = self._inflate.unused_data
        while len(rest) < len(_GZIP_MAGIC):
            data = self._source.stored(_STORED_CHUNK_BYTES)
            if not data:
                return False
            rest += data
        if not rest.startswith(_GZIP_MAGIC):
            return False  # zero padding or foreign bytes after the last member
        self._inflate = zlib.decompressobj(_GZIP_WBITS)
        self._pending = rest
        return True


def _salvage(inflate: zlib._Decompress, stored: bytes, limit: int) -> bytes:
    """What decompresses before the damage: zlib gives nothing for a call in which it meets it."""
    data = bytearray()
    for start in range(0, len(stored), _SALVAGE_STEP_BYTES):
        try:
            data += inflate.decompress(stored[start : start + _SALVAGE_STEP_BYTES], limit)
        except zlib.error:
            break
        if len(data) >= limit:
            break
    return bytes(data)


class _StoredReader:
    """The `read` that zstandard asks for."""

    def __init__(self, source: ByteSource) -> None:
        self._source = source

    def read(self, size: int = -1) -> bytes:
        return self._source.stored(size if size > 0 else _STORED_CHUNK_BYTES)


class _Zstd:
    def __init__(self, source: ByteSource) -> None:
        decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_LIMIT_BYTES)
        stored = _StoredReader(source)
        self._given = self._damaged = False
        self._reader = decompressor.stream_reader(stored, read_across_frames=True)  # type: ignore[arg-type]

    def decode(self, limit: int) -> bytes:
        parts: list[bytes] = []
        size = 0
        while size < limit and not self._damaged:
            try:
                part = self._reader.read(min(limit - size, _ZSTD_STEP_BYTES))
            except zstandard.ZstdError:
                self._damaged = True
                break
            if not part:
                break
            parts.append(part)
            size += len(part)
        if not parts and self._damaged:
            raise _DamagedError("the zstd data is damaged; what came before the damage was read")
        if not parts and not self._given:
            raise _DamagedError("the zstd data ends early")
        self._given = True
        return b"".join(parts)


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise CaptureError(f"cannot open {path.name}: {error.strerror or 'input error'}") from None


def _stored_size(stream: BinaryIO) -> int | None:
    try:
        status = os.fstat(stream.fileno())
    except (OSError, AttributeError):
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None
