"""Reads a capture from standard input in a process of its own and writes the packets of one flow to standard output, as
a capture file. It has limits of its own, as `capture_worker` has, and exits with 1 where it cannot give them all."""

from __future__ import annotations

import resource
import sys

import msgspec

from tapline.service.sources.packets.capture_error import CaptureError


class PacketsOptions(msgspec.Struct, frozen=True):
    """What the service passes as the only argument, in JSON: which flow, and what reading may take."""

    uid: str
    start_us: int
    max_capture_bytes: int
    memory_bytes: int


def main() -> None:
    """Read, write, end."""
    from tapline.service.sources.flow_packets import (
        flow_packets,
    )  # the service, which starts this, reads nothing itself

    options = msgspec.json.decode(sys.argv[1], type=PacketsOptions)
    resource.setrlimit(resource.RLIMIT_AS, (options.memory_bytes, options.memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        for piece in flow_packets(sys.stdin.buffer, options.uid, options.start_us, options.max_capture_bytes):
            sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
    except (CaptureError, MemoryError):
        sys.exit(1)
