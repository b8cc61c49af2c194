"""The capture that `POST /v1/jobs` takes: piece by piece as it comes, as the whole body or as a part of a form, so that
its size is bound by the disk alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import PurePath

from fastapi import Request
from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header

from tapline.service.api.errors import ApiError

FILE_PART = b"file"
MAX_HEADER_BYTES = 8192
MAX_PARTS = 16
_NO_FILE = "send the capture as the part `file`, or as the whole body"


class FilePart:
    """The part `file` of a form, which is fed to it piece by piece; other parts are passed over."""

    def __init__(self, boundary: bytes) -> None:
        self.name = ""
        self.found = False
        self._inside = False
        self._parts = self._header_bytes = 0
        self._field, self._value = b"", b""
        self._out: list[bytes] = []
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_part_data": self._data,
                "on_part_end": self._end,
                "on_header_field": self._header_field,
                "on_header_value": self._header_value,
                "on_header_end": self._header_end,
            },
        )

    def feed(self, data: bytes) -> list[bytes]:
        """What of the file is in the next piece of the body.

        Raises:
            ApiError: 400 it is no form, or one of too many parts.
        """
        try:
            self._parser.write(data)
        except MultipartParseError:
            raise ApiError(400, "bad_multipart", "expected a form as multipart/form-data; it is damaged") from None
        found, self._out = self._out, []
        return found

    def end(self) -> None:
        """The body is over.

        Raises:
            ApiError: 400 it was cut, or there was no such part.
        """
        try:
            self._parser.finalize()
        except MultipartParseError:
            raise ApiError(400, "bad_multipart", "the form ends early") from None
        if self._inside:
            raise ApiError(400, "bad_multipart", "the form ends early")
        if not self.found:
            raise ApiError(400, "no_file", _NO_FILE)

    def _begin(self) -> None:
        self._parts += 1
        self._header_bytes = 0
        if self._parts > MAX_PARTS:
            raise ApiError(400, "bad_multipart", f"expected a form of at most {MAX_PARTS} parts")

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._count(end - start)
        self._field += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._count(end - start)
        self._value += data[start:end]

    def _count(self, size: int) -> None:
        self._header_bytes += size
        if self._header_bytes > MAX_HEADER_BYTES:
            raise ApiError(400, "bad_multipart", "the headers of a part are too long")

    def _header_end(self) -> None:
        field, value = self._field.lower(), self._value
        self._field, self._value = b"", b""
        if field != b"content-disposition":
            return
        _, options = parse_options_header(value)
        if options.get(b"name") == FILE_PART and not self.found:
            self.found = self._inside = True
            self.name = PurePath(options.get(b"filename", b"").decode("utf-8", "replace")).name

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._inside:
            self._out.append(data[start:end])

    def _end(self) -> None:
        self._inside = False


class SentCapture:
    """The capture of a request; `name` is known once `begin` has returned."""

    def __init__(self, request: Request) -> None:
        self.name = ""
        self._stream = aiter(request.stream())
        self._waiting: list[bytes] = []
        self._form: FilePart | None = None
        kind, options = parse_options_header(request.headers.get("content-type", ""))
        if kind == b"multipart/form-data":
            boundary = options.get(b"boundary", b"")
            if not 0 < len(boundary) <= 70:  # RFC 2046 5.1.1
                raise ApiError(400, "bad_multipart", "expected a boundary of 1 to 70 characters")
            self._form = FilePart(boundary)

    async def begin(self) -> None:
        """Read up to where the capture begins.

        Raises:
            ApiError: 400 there is none.
        """
        while self._form is not None and not self._form.found:
            piece = await anext(self._stream, None)
            if piece is None:
                self._form.end()
                return
            self._waiting += self._form.feed(piece)
        self.name = self._form.name if self._form is not None else ""

    async def chunks(self) -> AsyncIterator[bytes]:
        """Its bytes.

        Raises:
            ApiError: 400 the form is damaged or cut.
        """
        for piece in self._waiting:
            yield piece
        self._waiting = []
        async for piece in self._stream:
            if self._form is None:
                yield piece
                continue
            for part in self._form.feed(piece):
                yield part
            await asyncio.sleep(0)
        if self._form is not None:
            self._form.end()
