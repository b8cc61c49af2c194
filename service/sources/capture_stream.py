"""The service's side of reading captures: one killable worker process per capture, flows as an asynchronous stream."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncGenerator
from typing import BinaryIO, Self

import msgspec

from tapline.installation import module_command
from tapline.models.flow import Flow
from tapline.service.sources import capture_worker
from tapline.service.sources.capture_worker import LENGTH, EndMessage, FlowsMessage, Message, WorkerOptions

MAX_MESSAGE_BYTES = 16 << 20
_DECODER: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)


class CaptureProcess:
    """A process that reads a capture from its standard input; `output` is what it writes.

    Use as an asynchronous context manager: leaving it kills the process, whatever it was doing.
    """

    def __init__(self, module: str, argument: bytes, file: BinaryIO) -> None:
        """`module`: whose `main` runs, with the one `argument`; the process shares the place in `file` with us."""
        self.output = asyncio.StreamReader()
        self._command = module_command(module, argument.decode())
        self._file = file
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: asyncio.ReadTransport | None = None

    async def __aenter__(self) -> Self:
        # Not asyncio's own: that one loses sight of a process whose starter is cancelled, and says so at every exit.
        self._process = subprocess.Popen(
            self._command,
            stdin=self._file,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # a traceback could quote traffic
        )
        try:
            loop = asyncio.get_running_loop()
            protocol = asyncio.StreamReaderProtocol(self.output)
            self._pipe, _ = await loop.connect_read_pipe(lambda: protocol, self._process.stdout)
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        process = self._process
        if process is None:
            return
        process.kill()
        if self._pipe is not None:
            self._pipe.close()
        elif process.stdout is not None:
            process.stdout.close()
        await asyncio.shield(asyncio.to_thread(process.wait))  # short: it was killed

    async def status(self) -> int:
        """Its exit status, once its output has ended."""
        assert self._process is not None
        return await asyncio.to_thread(self._process.wait)


class CaptureStream(CaptureProcess):
    """Flows of a capture, batch by batch; `end` holds the counters once the stream has ended."""

    def __init__(self, file: BinaryIO, options: WorkerOptions, timeout_seconds: float) -> None:
        super().__init__(capture_worker.__name__, msgspec.json.encode(options), file)
        self.end = EndMessage()
        self._timeout_seconds = timeout_seconds

    async def batches(self) -> AsyncGenerator[list[Flow], None]:
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
        (length,) = LENGTH.unpack(await self.output.readexactly(LENGTH.size))
        if length > MAX_MESSAGE_BYTES:
            raise ValueError("message too long")
        return _DECODER.decode(await self.output.readexactly(length))
