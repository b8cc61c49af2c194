"""Plays a capture through the live path with the built-in reader: to try the service out without a sensor."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from tapline.models.flow import Flow, HeadsKind
from tapline.service.inference.classifier import FlowOutcome
from tapline.service.live.observer import Observer, tell
from tapline.service.live.pipeline import LivePipeline
from tapline.service.log_lines import log
from tapline.service.sources.capture_stream import CaptureStream
from tapline.service.sources.capture_worker import WorkerOptions
from tapline.service.traces.live_traces import LiveTraces

FULL_QUEUE_SHARE = 0.8
"""Replay waits while the queue is fuller than this: it must not shed what a tap would have spread over time. Nor do its
flows have a deadline."""

READ_SECONDS = 24 * 3600.0
_MEMORY_BYTES = 4 << 30
_MAX_CAPTURE_BYTES = 1 << 50


class Replay:
    """Delivers the flows of a capture when they ended, `speed` times as fast as they came; 0: as fast as it goes."""

    def __init__(
        self,
        capture: Path,
        speed: float,
        pipeline: LivePipeline,
        observer: Observer,
        traces: LiveTraces | None = None,
        heads: Callable[[], HeadsKind] = lambda: "none",
    ) -> None:
        """`heads`: what to keep of packet heads, asked when it begins; `traces` get all flows and hear of the end."""
        self.capture = capture
        self._traces = traces
        self._heads = heads
        self.finished = asyncio.Event()
        self.problem: str | None = None
        self._speed = speed
        self._pipeline = pipeline
        self._observer = observer

    async def run(self) -> None:
        """Play once, also where it fails; `problem` then says what was wrong."""
        try:
            await self._run()
        except Exception as error:  # begun again it would play flows twice
            self.problem = f"it failed: {type(error).__name__}"
            log.error("replay failed", capture=str(self.capture), exc_info=error)
        finally:
            self.finished.set()

    async def _run(self) -> None:
        options = WorkerOptions(_MAX_CAPTURE_BYTES, _MEMORY_BYTES, self._heads())
        try:
            with self.capture.open("rb") as file:
                async with CaptureStream(file, options, READ_SECONDS) as stream:
                    await self._play(stream)
            self.problem = stream.end.error or stream.end.warning
        except OSError as error:
            self.problem = f"cannot read it: {error.strerror}"
        while self._pipeline.waiting_flows:
            await asyncio.sleep(0.02)
        if self._traces is not None:
            await self._traces.finish(self.source)
        report = log.warning if self.problem else log.info
        report("replay finished", capture=str(self.capture), flows=self._pipeline.counts.received, problem=self.problem)

    async def _play(self, stream: CaptureStream) -> None:
        clock = asyncio.get_running_loop().time
        started, first_us = clock(), 0
        async for flows in stream.batches():
            for flow in sorted(flows, key=_end_us):  # the reader gives a flow when its time-out is over, which is later
                first_us = first_us or _end_us(flow)
                if self._speed:
                    await asyncio.sleep(started + (_end_us(flow) - first_us) / 1e6 / self._speed - clock())
                await self._take(flow)

    async def _take(self, flow: Flow) -> None:
        while self._pipeline.queue_share > FULL_QUEUE_SHARE:
            await asyncio.sleep(0.005)
        self._pipeline.take(flow, self._deliver, expires=False)

    @property
    def source(self) -> str:
        """Its name as a source of flows and traces."""
        return str(self.capture)

    def _deliver(self, flow: Flow, outcome: FlowOutcome | None) -> None:
        tell(self.source, flow, outcome, self._traces, self._observer)


def _end_us(flow: Flow) -> int:
    return flow.start_us + flow.duration_us
