"""`POST /v1/classify/pcap`: takes a capture in while its size is watched, and streams its verdicts out."""

from __future__ import annotations

import asyncio
import contextlib
import io
import tempfile
from collections.abc import AsyncGenerator, Iterator
from pathlib import PurePath
from typing import BinaryIO, cast

import msgspec
from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException

from tapline.service.api.choice import Choice
from tapline.service.api.desk import Desk
from tapline.service.api.errors import ApiError, disk_as_api_error, overload_as_api_error
from tapline.service.api.wanted import resources
from tapline.service.classifying import BadCaptureError, Classifying, OpenCapture, ReadLimits, open_capture
from tapline.service.inference.batcher import Batcher
from tapline.service.inference.waiting import VerdictError
from tapline.service.process.files import write_all
from tapline.service.results.sharing import SharedWriter
from tapline.service.results.writers import JsonWriter, NdjsonWriter
from tapline.service.runtime import Service

NDJSON = "application/x-ndjson"
FILE_PART = "file"
MAX_NAME = 128
WRITE_BYTES = 1 << 20


async def classify_upload(
    request: Request, service: Service, batcher: Batcher, desk: Desk, wanted: Choice
) -> StreamingResponse:
    """Receive the capture, start reading it, and answer with what is `wanted` once its first flows or its fault are
    known.

    What it holds (a place for captures, files, a process) is given back when the request ends, however it ends.

    Raises:
        ApiError: 400 no file, 413 too large, 422 not a capture, 503 too many at a time, 507 no room for it on disk.
    """
    stack = resources(request)
    with overload_as_api_error():
        stack.enter_context(service.upload_slot())
    with disk_as_api_error():
        file, name = await _receive(request, stack)
    settings = service.settings
    size_bytes = file.seek(0, io.SEEK_END)
    file.seek(0)
    service.metrics.upload_bytes.inc(size_bytes)
    if not size_bytes:
        raise ApiError(422, "bad_capture", "the capture is empty")
    limits = ReadLimits(settings.max_capture_mb << 20, settings.parse_memory_mb << 20, settings.parse_timeout_seconds)
    try:
        capture = await stack.enter_async_context(open_capture(file, batcher, limits))
    except OSError as error:
        raise ApiError(503, "busy", f"no process can be started to read it: {error.strerror}", retry=True) from None
    except BadCaptureError as error:
        raise ApiError(422, "bad_capture", str(error)) from None
    as_ndjson = NDJSON in request.headers.get("accept", "")
    answer = _Answer(service, batcher, desk, capture, name, as_ndjson=as_ndjson, wanted=wanted)
    stack.callback(answer.close)
    chunks = await stack.enter_async_context(contextlib.aclosing(answer.chunks()))
    return StreamingResponse(chunks, media_type=NDJSON if as_ndjson else "application/json")


async def _receive(request: Request, stack: contextlib.AsyncExitStack) -> tuple[BinaryIO, str]:
    """The capture as a file on disk, and its name: a multipart part `file`, or the whole body.

    Raises:
        ApiError: 400 no such part.
        OSError: it cannot be kept on disk.
    """
    if request.headers.get("content-type", "").startswith("multipart/form-data"):
        try:
            form = await stack.enter_async_context(request.form(max_files=1, max_fields=8))
        except MultiPartException as error:
            raise ApiError(400, "bad_multipart", error.message) from None
        part = form.get(FILE_PART)
        if not isinstance(part, UploadFile):
            raise ApiError(400, "no_file", f"send the capture as the part `{FILE_PART}`, or as the whole body")
        spooled = cast("tempfile.SpooledTemporaryFile[bytes]", part.file)
        await asyncio.to_thread(spooled.rollover)  # the worker reads a real file descriptor
        return cast(BinaryIO, spooled), PurePath(part.filename or "capture").name[:MAX_NAME]
    file = stack.enter_context(tempfile.TemporaryFile(buffering=0))
    waiting = bytearray()
    async for chunk in request.stream():
        waiting += chunk
        if len(waiting) >= WRITE_BYTES:
            await asyncio.to_thread(write_all, file, bytes(waiting))
            waiting.clear()
    await asyncio.to_thread(write_all, file, bytes(waiting))
    return cast(BinaryIO, file), "capture"


class _Answer:
    """Builds the body, some flows at a time: they are classified while those before are written and others are read."""

    def __init__(
        self,
        service: Service,
        batcher: Batcher,
        desk: Desk,
        capture: OpenCapture,
        name: str,
        *,
        as_ndjson: bool,
        wanted: Choice,
    ) -> None:
        self._capture = capture
        self._buffer = io.StringIO()
        self._writer = NdjsonWriter(self._buffer) if as_ndjson else JsonWriter(self._buffer)
        traces = service.trace_models.captured(batcher.classifier, name, wanted.traces)
        shared = SharedWriter(self._writer, wanted.sharing)
        self._work = Classifying(
            name, batcher, traces, shared, service.metrics, desk.do, ports=wanted.ports, cascade=wanted.cascade
        )

    def close(self) -> None:
        """Forget what waits to be written, and what is being classified."""
        self._work.give_up()
        if isinstance(self._writer, JsonWriter):
            self._writer.close()

    async def chunks(self) -> AsyncGenerator[str, None]:
        """The body, piece by piece; whatever it lacks in the end, its summary says."""
        try:
            async for flows in self._capture.batches():
                await self._work.take(flows)
                yield self._taken()
            await self._work.settle()
        except VerdictError as error:
            self._work.warn(f"not all flows were classified: {error}")
        await self._work.finish()
        for piece in self._ending():
            yield piece

    def _ending(self) -> Iterator[str]:
        """What is left of the body: a JSON answer holds its traces here, which may be many."""
        summary = self._work.summary(self._capture.stream)
        yield self._taken()
        if isinstance(self._writer, JsonWriter):
            yield from self._writer.ending(summary)
        else:  # a client of a stream must see that it is whole
            yield msgspec.json.encode({"summary": summary}).decode() + "\n"

    def _taken(self) -> str:
        text = self._buffer.getvalue()
        self._buffer.seek(0)
        self._buffer.truncate()
        return text
