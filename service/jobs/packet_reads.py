"""Reads captures again for the packets of single flows, a few at a time, each in a process that can be killed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import BinaryIO

import msgspec

from tapline.service.history.past import PastFlow
from tapline.service.jobs.job import CaptureGoneError, JobQueueFullError
from tapline.service.settings import Settings
from tapline.service.sources import flow_packets_worker
from tapline.service.sources.capture_stream import CaptureProcess
from tapline.service.sources.flow_packets_worker import PacketsOptions

MAX_READS = 4
"""Captures that are read at a time; more are told to come again."""

_PIECE_BYTES = 1 << 16


class PacketReads:
    """Counts the captures that are being read."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._reads = 0

    async def read(self, file: BinaryIO, flow: PastFlow) -> AsyncGenerator[bytes, None]:
        """The packets of a flow of a capture, as of `flow_packets`.

        Raises:
            CaptureGoneError: the capture does not give them any more.
            JobQueueFullError: too many are being read.
        """
        settings = self._settings
        limits = (settings.max_job_mb << 20, settings.parse_memory_mb << 20)
        argument = msgspec.json.encode(PacketsOptions(flow.uid, flow.start_us, *limits))
        if self._reads >= MAX_READS:
            raise JobQueueFullError("the packets of other flows are being looked for: come again")
        self._reads += 1
        try:
            async with CaptureProcess(flow_packets_worker.__name__, argument, file) as process:
                while piece := await self._piece(process):
                    yield piece
                if await process.status():
                    raise CaptureGoneError("the capture does not give the packets of that flow any more")
        finally:
            self._reads -= 1

    async def _piece(self, process: CaptureProcess) -> bytes:
        """What comes next, empty at the end."""
        try:
            async with asyncio.timeout(self._settings.job_timeout_seconds):
                return await process.output.read(_PIECE_BYTES)
        except TimeoutError:
            raise CaptureGoneError("reading the capture again takes longer than is allowed") from None
