"""The service's side of reading captures: one killable worker process per capture, flows as an asynchronous stream."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from typing import BinaryIO

import msgspec

from models.flow import Flow
from service.capture_worker import LENGTH, EndMessage, FlowsMessage, Message, WorkerOptions

MAX_MESSAGE_BYTES = 16 << 20
_DECODER: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)


class CaptureStream:
    """Flows of a capture, batch by batch; `end` holds the counters once the stream has ended.

    Use as an asynchronous context manager: leaving it kills the worker, whatever it was doing.
    """

    def __init__(self, file: BinaryIO, options: WorkerOptions, timeout_seconds: float) -> None:
        self.end = EndMessage()
        self._file = file
        self._options = options
        self._timeout_seconds = timeout_seconds
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> CaptureStream:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "service.capture_worker",
            msgspec.json.encode(self._options).decode(),
            stdin=self._file,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,  # a traceback could quote traffic
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()

    async def batches(self) -> AsyncIterator[list[Flow]]:
        """Batches of flows until the capture ends; then `end` says how it went.

        The time limit counts the worker's time only, not that of whoever takes the flows.
        """
        left_seconds = self._timeout_seconds
        clock = asyncio.get_running_loop().time
        while True:
            started = clock()
            try:
                async with asyncio.timeout(left_seconds):
                    message = await self._receive()
            except TimeoutError:
                message = EndMessage(warning=f"reading stopped after {self._timeout_seconds:g} seconds")
            except (asyncio.IncompleteReadError, msgspec.DecodeError, ValueError):
                message = EndMessage(warning="the process that reads this capture died: limits or a fault")
            left_seconds -= clock() - started
            if isinstance(message, EndMessage):
                self.end = message
                return
            yield message.flows

    async def _receive(self) -> FlowsMessage | EndMessage:
        assert self._process is not None
        assert self._process.stdout is not None
        (length,) = LENGTH.unpack(await self._process.stdout.readexactly(LENGTH.size))
        if length > MAX_MESSAGE_BYTES:
            raise ValueError("message too long")
        return _DECODER.decode(await self._process.stdout.readexactly(length))
