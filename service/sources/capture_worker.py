"""Reads a capture from standard input in a process of its own and writes its flows to standard output.

The service starts one per upload, so that a hostile capture can exhaust neither its memory nor its time: the process
has limits of its own and can be killed, and it alone loads the reader. Messages are msgpack, each after its length in
four bytes, big-endian.
"""

from __future__ import annotations

import resource
import struct
import sys
from itertools import islice
from typing import TYPE_CHECKING, Literal

import msgspec

from tapline.models.flow import Flow
from tapline.service.sources.packets.capture_error import CaptureError

if TYPE_CHECKING:
    from tapline.service.sources.capture import CaptureReader

FLOWS_PER_MESSAGE = 256
LENGTH = struct.Struct(">I")


class FlowsMessage(msgspec.Struct, tag="flows"):
    """Some flows, in the order in which they end."""

    flows: list[Flow]


class EndMessage(msgspec.Struct, tag="end"):
    """The last message: the reader's counters; `error` where it is no capture, or could not be read any further."""

    packets: int = 0
    skipped: dict[str, int] = {}
    warning: str | None = None
    error: str | None = None


Message = FlowsMessage | EndMessage


class WorkerOptions(msgspec.Struct, frozen=True):
    """What the service passes as the only argument, in JSON."""

    max_capture_bytes: int
    memory_bytes: int
    heads: Literal["none", "header", "full"] = "none"


def main() -> None:
    """Read, write, end; any failure of the reader becomes the last message."""
    from tapline.service.sources.capture import CaptureReader, ReadOptions

    options = msgspec.json.decode(sys.argv[1], type=WorkerOptions)
    resource.setrlimit(resource.RLIMIT_AS, (options.memory_bytes, options.memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    end = EndMessage()
    try:
        reader = CaptureReader(sys.stdin.buffer, ReadOptions(heads=options.heads, max_bytes=options.max_capture_bytes))
        end = _send_flows(reader)
    except CaptureError as error:
        end.error = str(error)
    _send(end)


def _send_flows(reader: CaptureReader) -> EndMessage:
    """Send all flows; the last message, with all counters however it went."""
    error = None
    flows = iter(reader)
    try:
        while batch := list(islice(flows, FLOWS_PER_MESSAGE)):
            _send(FlowsMessage(batch))
    except CaptureError as found:
        error = str(found)
    except MemoryError:
        del flows
        error = "reading this capture takes more memory than is allowed"
    return EndMessage(reader.packets, dict(reader.skipped), reader.warning, error)


def _send(message: Message) -> None:
    body = msgspec.msgpack.encode(message, enc_hook=list)
    sys.stdout.buffer.write(LENGTH.pack(len(body)) + body)
    sys.stdout.buffer.flush()
