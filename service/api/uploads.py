"""`POST /v1/classify/pcap`: takes a capture in while its size is watched, and streams its verdicts out."""

from __future__ import annotations

import asyncio
import contextlib
import io
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import PurePath
from typing import BinaryIO, cast

import msgspec
from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException

from models.flow import Flow
from service.api.errors import ApiError, overload_as_api_error
from service.batcher import Batcher, VerdictError
from service.capture_worker import WorkerOptions
from service.captures import CaptureStream
from service.output import JsonWriter, NdjsonWriter
from service.report import InputSummary, SummaryBuilder
from service.runtime import Service
from service.traces.offline import CaptureTraces

NDJSON = "application/x-ndjson"
FILE_PART = "file"
MAX_NAME = 128


async def classify_upload(request: Request, service: Service, batcher: Batcher) -> StreamingResponse:
    """Receive the capture, start reading it, and answer once its first flows or its fault are known.

    Raises:
        ApiError: 400 no file, 413 too large, 422 not a capture, 503 too many at a time.
    """
    async with contextlib.AsyncExitStack() as stack:
        with overload_as_api_error():
            stack.enter_context(service.upload_slot())
        file, name = await _receive(request, stack)
        size_bytes = file.seek(0, io.SEEK_END)
        file.seek(0)
        service.metrics.upload_bytes.inc(size_bytes)
        if not size_bytes:
            raise ApiError(422, "bad_capture", "the capture is empty")
        settings = service.settings
        heads = batcher.classifier.heads
        options = WorkerOptions(settings.max_capture_mb << 20, settings.parse_memory_mb << 20, heads)
        stream = await stack.enter_async_context(CaptureStream(file, options, settings.parse_timeout_seconds))
        batches = stream.batches()
        first: list[Flow] = await anext(batches, [])
        if stream.end.error:
            raise ApiError(422, "bad_capture", stream.end.error)
        as_ndjson = NDJSON in request.headers.get("accept", "")
        body = _Answer(service, batcher, stream, batches, name, as_ndjson=as_ndjson).chunks(first, stack.pop_all())
        return StreamingResponse(body, media_type=NDJSON if as_ndjson else "application/json")


async def _receive(request: Request, stack: contextlib.AsyncExitStack) -> tuple[BinaryIO, str]:
    """The capture as a file on disk, and its name: a multipart part `file`, or the whole body."""
    if request.headers.get("content-type", "").startswith("multipart/form-data"):
        try:
            form = await stack.enter_async_context(request.form(max_files=1, max_fields=8))
        except MultiPartException as error:
            raise ApiError(400, "bad_multipart", error.message) from None
        part = form.get(FILE_PART)
        if not isinstance(part, UploadFile):
            raise ApiError(400, "no_file", f"send the capture as the part `{FILE_PART}`, or as the whole body")
        spooled = cast("tempfile.SpooledTemporaryFile[bytes]", part.file)
        spooled.rollover()  # the worker reads a real file descriptor
        return cast(BinaryIO, spooled), PurePath(part.filename or "capture").name[:MAX_NAME]
    file = stack.enter_context(tempfile.TemporaryFile())
    async for chunk in request.stream():
        file.write(chunk)
    file.flush()
    return cast(BinaryIO, file), "capture"


class _Answer:
    """Builds the body: each batch of flows is classified and written before the next is read."""

    def __init__(
        self,
        service: Service,
        batcher: Batcher,
        stream: CaptureStream,
        batches: AsyncIterator[list[Flow]],
        name: str,
        *,
        as_ndjson: bool,
    ) -> None:
        self._service = service
        self._batcher = batcher
        self._stream = stream
        self._batches = batches
        self._buffer = io.StringIO()
        self._writer = NdjsonWriter(self._buffer) if as_ndjson else JsonWriter(self._buffer)
        self._traces = service.capture_traces(batcher.classifier, name)
        self._builder = SummaryBuilder(batcher.classifier.checkpoint, self._traces.checkpoint if self._traces else None)
        self._entry = InputSummary(name)

    async def chunks(self, first: list[Flow], resources: contextlib.AsyncExitStack) -> AsyncIterator[str]:
        """The body, piece by piece; releases `resources` at the end or when the client goes away."""
        async with resources:
            try:
                await self._classify(first)
                yield self._taken()
                async for flows in self._batches:
                    await self._classify(flows)
                    yield self._taken()
            except VerdictError as error:
                self._entry.warning = str(error)
            if self._traces is not None:
                self._traces.finish()
                await self._add_traces(self._traces)
                self._builder.account_traces(self._traces.counts, self._traces.failed)
            for piece in self._ending():
                yield piece

    async def _classify(self, flows: list[Flow]) -> None:
        classifier = self._batcher.classifier
        accepted = [flow for flow in flows if classifier.accepts(flow)]
        self._entry.flows += len(flows)
        for flow in flows:
            if not classifier.accepts(flow):
                self._leave_out(flow)
        for flow, outcome in zip(accepted, await self._batcher.classify(accepted), strict=True):
            if outcome is not None and self._traces is not None:
                self._traces.add(flow, outcome)
            if outcome is not None and outcome.verdict is None:
                self._leave_out(flow)
                continue
            verdict = outcome.verdict if outcome else None
            self._builder.add(flow, verdict)
            self._writer.add(flow, verdict, self._entry.name)
        if self._traces is not None:
            await self._add_traces(self._traces)

    async def _add_traces(self, traces: CaptureTraces) -> None:
        """Write the traces that are complete."""
        while found := await asyncio.to_thread(traces.ready):
            for trace in found:
                self._builder.add_trace(trace)
                self._writer.add_trace(trace)

    def _leave_out(self, flow: Flow) -> None:
        self._builder.leave_out(flow)
        reason = "below_min_packets" if flow.payload_lengths else "without_payload"
        self._service.metrics.flows_left_out.labels(reason).inc()

    def _ending(self) -> Iterator[str]:
        """What is left of the body: a JSON answer holds its traces here, which may be many."""
        end, metrics = self._stream.end, self._service.metrics
        self._entry.packets = end.packets
        self._entry.skipped = end.skipped
        self._entry.warning = self._entry.warning or end.warning
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
