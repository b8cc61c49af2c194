"""A sensor for measurements: a process that sends events made beforehand when they are due, and little else.

Events are those of the plugin (format 2, compressed), 64 flows each, of real flows again and again, each under a name
of its own. The frames of the WebSocket are made beforehand, too, so that sending one is a call of the socket's.
"""

from __future__ import annotations

import asyncio
import base64
import multiprocessing
import struct
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing.connection import Connection
from typing import Any

import msgspec
from websockets.asyncio.server import ServerConnection, serve

from tapline.models.flow import Flow
from tapline.service.sources.bus.events import BusEvent, Count
from tapline.service.sources.bus.websocket_frames import event_frame
from tests.batches import pack_flow

BATCH_FLOWS = 64
NAME = "L{:09}"
ANSWER_SECONDS = 120


@dataclass(frozen=True)
class Sent:
    """What sending took: CPU seconds of the process, and how late the last event was, seconds."""

    cpu_seconds: float
    late_seconds: float


def number_of(flow: Flow) -> int:
    """Which one of those that were sent it is, from 0."""
    return int(flow.uid[1:])


class Events:
    """Makes the events of flows, again and again."""

    def __init__(self, flows: Sequence[Flow]) -> None:
        name = NAME.format(0).encode()
        self._flows = [pack_flow(msgspec.structs.replace(flow, uid=name.decode())).rsplit(name, 1) for flow in flows]

    def text(self, first: int, flows: int) -> bytes:
        """The event of so many flows, as Zeek's JSON."""
        numbers = range(first, first + flows)
        packed = [NAME.format(number).encode().join(self._flows[number % len(self._flows)]) for number in numbers]
        data = b"".join(packed)
        batch = base64.b64encode(struct.pack("<B3xI", 1, len(data)) + zlib.compress(data, 1)).decode()
        args = [Count(2), "load", Count(first + 1), Count(flows), batch]
        return event_frame(BusEvent("tapline/flows/0", "Tapline::flows", args))

    def texts(self, flows: int) -> list[bytes]:
        """The events of so many flows."""
        edges = [*range(0, flows, BATCH_FLOWS), flows]
        return [self.text(first, last - first) for first, last in pairwise(edges)]


def _framed(text: bytes) -> bytes:
    """A WebSocket frame of a server, whole (RFC 6455, section 5.2)."""
    head = (
        struct.pack("!BBH", 0x81, 126, len(text)) if len(text) < 1 << 16 else struct.pack("!BBQ", 0x81, 127, len(text))
    )
    return head + text


class Sender:
    """The process, on a port of loopback."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self.url = f"ws://127.0.0.1:{self._answer()}"

    def prepare(self, flows: int) -> None:
        """Make the events of so many flows."""
        self._pipe.send(flows)
        self._answer()

    def send(self, due: Sequence[float]) -> None:
        """Send the events, each when it is due by `time.perf_counter`."""
        self._pipe.send(list(due))

    def sent(self) -> Sent | None:
        """What that took, once it is over."""
        return self._answer() if self._pipe.poll() else None

    def _answer(self) -> Any:
        if not self._pipe.poll(ANSWER_SECONDS):
            raise SystemExit(f"the sender did not answer within {ANSWER_SECONDS} s")
        return self._pipe.recv()


@contextmanager
def sender(flows: list[Flow]) -> Iterator[Sender]:
    """A sender of flows while the block runs."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_serve, args=(theirs, flows), daemon=True)
    process.start()
    try:
        yield Sender(ours)
    finally:
        process.kill()
        process.join()


def _serve(pipe: Connection, flows: list[Flow]) -> None:
    events = Events(flows)

    async def client(connection: ServerConnection) -> None:
        await connection.recv()
        await connection.send('{"type":"ack","endpoint":"x","version":"simulated"}')
        frames = [_framed(text) for text in events.texts(await asyncio.to_thread(pipe.recv))]
        pipe.send(None)
        due = await asyncio.to_thread(pipe.recv)
        cpu = time.process_time()
        for frame, at in zip(frames, due, strict=True):
            if (left := at - time.perf_counter()) > 0:
                await asyncio.sleep(left)
            connection.transport.write(frame)
            while connection.transport.get_write_buffer_size():
                await asyncio.sleep(0.001)
        pipe.send(Sent(time.process_time() - cpu, time.perf_counter() - due[-1]))
        await connection.wait_closed()

    async def main() -> None:
        async with serve(client, "127.0.0.1", 0, compression=None) as server:
            pipe.send(server.sockets[0].getsockname()[1])
            await asyncio.get_running_loop().create_future()

    asyncio.run(main())
