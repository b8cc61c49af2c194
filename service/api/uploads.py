"""`POST /v1/classify/pcap`: takes a capture in while its size is watched, and streams its verdicts out."""

from __future__ import annotations

import asyncio
import contextlib
import io
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from pathlib import PurePath
from typing import BinaryIO, cast

import msgspec
from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException

from tapline.models.flow import Flow
from tapline.service.api.choice import Choice
from tapline.service.api.desk import Desk
from tapline.service.api.errors import ApiError, disk_as_api_error, overload_as_api_error
from tapline.service.api.wanted import resources
from tapline.service.inference.batcher import Batcher, VerdictError
from tapline.service.inference.classifier import FlowOutcome
from tapline.service.results.records import InputSummary, SummaryBuilder
from tapline.service.results.writers import JsonWriter, NdjsonWriter
from tapline.service.runtime import Service
from tapline.service.sources.capture_stream import CaptureStream
from tapline.service.sources.capture_worker import WorkerOptions

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
    size_bytes = file.seek(0, io.SEEK_END)
    file.seek(0)
    service.metrics.upload_bytes.inc(size_bytes)
    if not size_bytes:
        raise ApiError(422, "bad_capture", "the capture is empty")
    settings = service.settings
    heads = batcher.classifier.heads
    options = WorkerOptions(settings.max_capture_mb << 20, settings.parse_memory_mb << 20, heads)
    try:
        stream = await stack.enter_async_context(CaptureStream(file, options, settings.parse_timeout_seconds))
    except OSError as error:
        raise ApiError(503, "busy", f"no process can be started to read it: {error.strerror}", retry=True) from None
    batches = await stack.enter_async_context(contextlib.aclosing(stream.batches()))
    first: list[Flow] = await anext(batches, [])
    if stream.end.error and not first:
        raise ApiError(422, "bad_capture", stream.end.error)
    as_ndjson = NDJSON in request.headers.get("accept", "")
    answer = _Answer(service, batcher, desk, stream, name, as_ndjson=as_ndjson, wanted=wanted)
    stack.callback(answer.close)
    chunks = await stack.enter_async_context(contextlib.aclosing(answer.chunks(first, batches)))
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
            await asyncio.to_thread(_write, file, bytes(waiting))
            waiting.clear()
    await asyncio.to_thread(_write, file, bytes(waiting))
    return cast(BinaryIO, file), "capture"


def _write(file: io.FileIO, data: bytes) -> None:
    """Write all of it: a file without a buffer says at once when the disk is full."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


class _Answer:
    """Builds the body: each batch of flows is classified and written before the next is read."""

    def __init__(
        self,
        service: Service,
        batcher: Batcher,
        desk: Desk,
        stream: CaptureStream,
        name: str,
        *,
        as_ndjson: bool,
        wanted: Choice,
    ) -> None:
        self._service = service
        self._batcher = batcher
        self._desk = desk
        self._stream = stream
        self._ports = wanted.ports
        self._sharing = wanted.sharing
        self._buffer = io.StringIO()
        self._writer = NdjsonWriter(self._buffer) if as_ndjson else JsonWriter(self._buffer)
        self._traces = service.trace_models.captured(batcher.classifier, name, wanted.traces)
        self._builder = SummaryBuilder(batcher.classifier.checkpoint, self._traces.checkpoints)
        self._entry = InputSummary(name)

    def close(self) -> None:
        """Forget what waits to be written."""
        if isinstance(self._writer, JsonWriter):
            self._writer.close()

    async def chunks(self, first: list[Flow], batches: AsyncIterator[list[Flow]]) -> AsyncGenerator[str, None]:
        """The body, piece by piece; whatever it lacks in the end, its summary says."""
        try:
            yield await self._classify(first)
            async for flows in batches:
                yield await self._classify(flows)
        except VerdictError as error:
            self._warn(f"not all flows were classified: {error}")
        await self._desk.do(self._traces.finish)
        yield await self._add_traces()
        self._builder.account_traces(self._traces)
        for piece in self._ending():
            yield piece

    async def _classify(self, flows: list[Flow]) -> str:
        self._entry.flows += len(flows)
        classifier = self._batcher.classifier
        accepted = [flow for flow in flows if classifier.accepts(flow)]
        for flow in flows:
            if not classifier.accepts(flow):
                self._leave_out(flow)
        found = await self._batcher.classify(accepted, ports=self._ports)
        text = await self._desk.do(self._take, accepted, found)
        return text + await self._add_traces()

    def _take(self, accepted: list[Flow], found: list[FlowOutcome | None]) -> str:
        """Write flows with their outcomes."""
        for flow, outcome in zip(accepted, found, strict=True):
            if outcome is not None:
                self._traces.add(flow, outcome)
            if outcome is not None and outcome.verdict is None:
                self._leave_out(flow)
                continue
            verdict = outcome.verdict if outcome else None
            self._builder.add(flow, verdict)
            self._writer.add(self._sharing.flow(flow), verdict, self._entry.name)
        return self._taken()

    async def _add_traces(self) -> str:
        """Write the traces that are complete; those that there is no room for on disk are left out."""
        while found := await asyncio.to_thread(self._traces.ready):
            for trace in found:
                self._builder.add_trace(trace)
                try:
                    self._writer.add_trace(trace)
                except OSError as error:
                    self._warn(f"traces are missing, there is no room for them: {error.strerror}")
        return self._taken()

    def _warn(self, message: str) -> None:
        """Say in the summary, once, that something is missing."""
        said = self._entry.warning
        if said is None or message not in said:
            self._entry.warning = f"{said}; {message}" if said else message

    def _leave_out(self, flow: Flow) -> None:
        self._builder.leave_out(flow)
        reason = "below_min_packets" if flow.payload_lengths else "without_payload"
        self._service.metrics.flows_left_out.labels(reason).inc()

    def _ending(self) -> Iterator[str]:
        """What is left of the body: a JSON answer holds its traces here, which may be many."""
        end, metrics = self._stream.end, self._service.metrics
        self._entry.packets = end.packets
        self._entry.skipped = end.skipped
        for problem in (end.error, end.warning):
            if problem is not None:
                self._warn(problem)
        metrics.packets.inc(end.packets)
        for reason, count in end.skipped.items():
            metrics.packets_skipped.labels(reason).inc(count)
        summary = self._builder.finish([self._entry])
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
