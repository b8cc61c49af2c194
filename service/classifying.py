"""The way of one capture through a model: read in a process of its own, its flows classified, its traces scored, all of
it written and accounted for. An upload that is answered at once and a job go the same way."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from itertools import compress
from typing import Any, BinaryIO

from tapline.models.flow import Flow
from tapline.service.inference.batcher import Batcher
from tapline.service.inference.classifier import FlowOutcome
from tapline.service.metrics import Metrics
from tapline.service.results.records import InputSummary, Summary, SummaryBuilder
from tapline.service.results.writers import Writer
from tapline.service.sources.capture_stream import CaptureStream
from tapline.service.sources.capture_worker import WorkerOptions
from tapline.service.traces.capture_traces import CaptureTraces
from tapline.service.traces.trace_verdict import TraceVerdict


class BadCaptureError(RuntimeError):
    """It is no capture, or nothing of it can be read; the message says why."""


_UnderWay = tuple[list[Flow], "asyncio.Future[list[FlowOutcome | None]]"]

Aside = Callable[..., Awaitable[Any]]
"""Runs a short piece of work, given with its arguments, beside the event loop."""


@dataclass(frozen=True)
class ReadLimits:
    """What reading one capture may take: bytes after decompression, memory of the process, and its time."""

    max_capture_bytes: int
    memory_bytes: int
    timeout_seconds: float


class OpenCapture:
    """A capture that is being read, up to its first flows, which are known to be there or not to be."""

    def __init__(self, stream: CaptureStream, first: list[Flow], rest: AsyncIterator[list[Flow]]) -> None:
        self.stream = stream
        self._first = first
        self._rest = rest

    async def batches(self) -> AsyncIterator[list[Flow]]:
        """Its flows, some at a time."""
        yield self._first
        async for flows in self._rest:
            yield flows


@contextlib.asynccontextmanager
async def open_capture(file: BinaryIO, batcher: Batcher, limits: ReadLimits) -> AsyncGenerator[OpenCapture, None]:
    """Start to read a capture for the model of a batcher; the process that reads it ends with the block.

    Raises:
        BadCaptureError: its first bytes say so.
        OSError: no process can be started.
    """
    options = WorkerOptions(limits.max_capture_bytes, limits.memory_bytes, batcher.classifier.heads)
    async with (
        CaptureStream(file, options, limits.timeout_seconds) as stream,
        contextlib.aclosing(stream.batches()) as batches,
    ):
        first: list[Flow] = await anext(batches, [])
        if stream.end.error and not first:
            raise BadCaptureError(stream.end.error)
        yield OpenCapture(stream, first, batches)


class Classifying:
    """Takes the flows of one capture, gives flows and traces with their verdicts to a writer, and the summary.

    Some flows are classified while those before are written and those behind are read: who does not come to `settle`
    has to `give_up`.
    """

    def __init__(
        self,
        name: str,
        batcher: Batcher,
        traces: CaptureTraces,
        writer: Writer,
        metrics: Metrics,
        aside: Aside,
        *,
        caller: str = "",
        ports: bool | None = None,
        cascade: bool | None = None,
    ) -> None:
        """`aside`: where the writer is given flows, one call at a time; `caller`, `ports` and `cascade` as of
        `Batcher.submit`."""
        self.entry = InputSummary(name)
        self._batcher = batcher
        self._traces = traces
        self._writer = writer
        self._metrics = metrics
        self._aside = aside
        self._caller = caller
        self._ports, self._cascade = ports, cascade
        self._under_way: _UnderWay | None = None
        self._builder = SummaryBuilder(batcher.classifier.checkpoint, traces.checkpoints)

    async def take(self, flows: list[Flow]) -> None:
        """Begin to classify some flows, and meanwhile write those before and the traces that are complete with them.

        Raises:
            VerdictError: no verdicts are given any more.
        """
        self.entry.flows += len(flows)
        classifier = self._batcher.classifier
        is_accepted = [classifier.accepts(flow) for flow in flows]
        accepted = list(compress(flows, is_accepted))
        for flow, kept in zip(flows, is_accepted, strict=True):
            if not kept:
                self._leave_out(flow)
        asked = asyncio.ensure_future(
            self._batcher.classify(accepted, caller=self._caller, ports=self._ports, cascade=self._cascade)
        )
        before, self._under_way = self._under_way, (accepted, asked)
        await self._settle(before)

    async def settle(self) -> None:
        """Write the flows that are still being classified.

        Raises:
            VerdictError: as of `take`.
        """
        before, self._under_way = self._under_way, None
        await self._settle(before)

    def give_up(self) -> None:
        """Wait for no verdicts any more."""
        if self._under_way is None:
            return
        _, asked = self._under_way
        self._under_way = None
        if not asked.cancel() and not asked.cancelled():
            asked.exception()  # it has been seen

    async def finish(self) -> None:
        """Write the traces that were still open."""
        await self._aside(self._traces.finish)
        await self._write_traces()
        self._builder.account_traces(self._traces.accounts())

    def warn(self, message: str) -> None:
        """Say in the summary, once, that something is missing."""
        said = self.entry.warning
        if said is None or message not in said:
            self.entry.warning = f"{said}; {message}" if said else message

    def summary(self, stream: CaptureStream) -> Summary:
        """The account of everything, once `finish` has returned; whatever the result lacks, it says."""
        end = stream.end
        self.entry.packets = end.packets
        self.entry.skipped = end.skipped
        for problem in (end.error, end.warning):
            if problem is not None:
                self.warn(problem)
        self._metrics.packets.inc(end.packets)
        for reason, count in end.skipped.items():
            self._metrics.packets_skipped.labels(reason).inc(count)
        return self._builder.finish([self.entry])

    async def _settle(self, under_way: _UnderWay | None) -> None:
        if under_way is None:
            return
        accepted, asked = under_way
        try:
            found = await asked
        except BaseException:
            self.give_up()
            raise
        await self._aside(self._write, accepted, found)
        await self._write_traces()

    def _write(self, accepted: list[Flow], found: list[FlowOutcome | None]) -> None:
        for flow, outcome in zip(accepted, found, strict=True):
            if outcome is not None:
                self._traces.add(flow, outcome)
            if outcome is not None and outcome.verdict is None:
                self._leave_out(flow)
                continue
            verdict = outcome.verdict if outcome else None
            self._builder.add(flow, verdict)
            self._writer.add(flow, verdict, self.entry.name)

    async def _write_traces(self) -> None:
        """Write the traces that are complete; those that there is no room for on disk are left out."""
        while found := await asyncio.to_thread(self._traces.ready):
            await self._aside(self._write_found, found)

    def _write_found(self, found: list[TraceVerdict]) -> None:
        for trace in found:
            self._builder.add_trace(trace)
            try:
                self._writer.add_trace(trace)
            except OSError as error:
                self.warn(f"traces are missing, there is no room for them: {error.strerror or error}")

    def _leave_out(self, flow: Flow) -> None:
        self._builder.leave_out(flow)
        reason = "below_min_packets" if flow.payload_lengths else "without_payload"
        self._metrics.flows_left_out.labels(reason).inc()
