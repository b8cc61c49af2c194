"""Runs of Zeek on a capture, with the package loaded one way or another: what they used, and what a client got."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.sync.client import connect

from tapline.service.sources.bus.answers import finished_ack_event
from tapline.service.sources.bus.events import FLOWS_TOPIC, STATS_TOPIC
from tapline.service.sources.bus.websocket_frames import (
    HANDSHAKE_PATH,
    event_frame,
    event_of,
    parse_frame,
    subscription_frame,
)

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ROOT / "zeek" / "scripts"
COMPILED = ("-O", "ZAM", "--optimize-files=zeek/scripts/")
"""What the README of the package advises: its own scripts compiled, Zeek's as they are."""

TOTAL = re.compile(r"^(?:summary|totals): (\d+)", re.MULTILINE)
CONNECT_SECONDS = 600
"""Zeek under valgrind takes a minute to start, on a busy machine some."""


@dataclass(frozen=True)
class Way:
    """A way of running Zeek: arguments beside the capture, whether a client takes what it publishes, and whether the
    native plugin is there.
    """

    name: str
    arguments: tuple[str, ...] = ()
    publishes: bool = False
    native: bool = False


@dataclass(frozen=True)
class Sent:
    """What a client got: flows, early and final, the events that they came in, and the bytes of those frames."""

    flows: int
    events: int
    bytes: int


@dataclass(frozen=True)
class Run:
    """What a run took: CPU and wall seconds, peak memory in bytes, and of one under callgrind the instructions."""

    cpu: float
    wall: float
    peak_bytes: int
    said: str
    sent: Sent | None = None
    instructions: int = 0


def free_port() -> int:
    """A port of 127.0.0.1 that was free just now."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def drain(port: int, pipe: Any) -> None:
    """A client that takes every flow, confirms the end, and says what it got."""
    flows = events = size = 0
    deadline = time.monotonic() + CONNECT_SECONDS
    while True:
        try:
            connection = connect(
                f"ws://127.0.0.1:{port}{HANDSHAKE_PATH}", compression=None, ping_interval=None, max_size=None,
                max_queue=None, open_timeout=CONNECT_SECONDS,
            )  # fmt: skip
            break
        except (OSError, InvalidHandshake):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
    with connection, contextlib.suppress(ConnectionClosed):
        connection.send(subscription_frame([FLOWS_TOPIC, STATS_TOPIC]), text=True)
        while True:
            text = connection.recv(decode=False)
            frame = parse_frame(text)
            if frame.type != "data-message":
                continue
            event = event_of(frame)
            if event.topic.startswith(FLOWS_TOPIC):
                flows += event.args[3] if event.name == "Tapline::flows" else 1
                events += 1
                size += len(text)
            elif event.name == "Tapline::finished":
                connection.send(event_frame(finished_ack_event(event.args[1])), text=True)
    pipe.send(Sent(flows, events, size))


@contextlib.contextmanager
def client(port: int) -> Iterator[Any]:
    """The client in a process of its own; gives the pipe that tells what it got."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=drain, args=(port, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        yield ours
    finally:
        process.join(10)
        process.kill()
        process.join()


def run(way: Way, capture: Path, plugin: Path | None = None, more: Sequence[str] = ()) -> Run:
    """One Zeek in a temporary folder, `more` being further arguments."""
    return _run((), way, capture, plugin, more)


def run_counted(way: Way, capture: Path, plugin: Path | None = None, profile: Path | None = None) -> Run:
    """The same under callgrind, whose profile is kept in a file where one is named."""
    with tempfile.TemporaryDirectory() as folder:
        file = profile or Path(folder) / "callgrind.out"
        valgrind = ("valgrind", "--tool=callgrind", f"--callgrind-out-file={file}")
        done = _run(valgrind, way, capture, plugin, ())
        found = TOTAL.findall(file.read_text())
        return Run(done.cpu, done.wall, done.peak_bytes, done.said, done.sent, int(found[-1]))


def _run(prefix: Sequence[str], way: Way, capture: Path, plugin: Path | None, more: Sequence[str]) -> Run:
    port = free_port()
    # the same seeds each time, so that hash tables are the same
    command = [*prefix, "zeek", "-D", "-C", "-r", str(capture), *way.arguments, *more]
    environment = {name: value for name, value in os.environ.items() if name != "ZEEK_PLUGIN_PATH"}
    if way.native:
        environment["ZEEK_PLUGIN_PATH"] = str(plugin)
    if way.publishes:
        command.append(f"Tapline::listen_port={port}/tcp")
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        pipe = stack.enter_context(client(port)) if way.publishes else None
        started = time.perf_counter()
        with (Path(folder) / "said").open("w") as file:
            process = subprocess.Popen(command, cwd=folder, env=environment, stdout=file, stderr=file)
            _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        said = (Path(folder) / "said").read_text(errors="replace")
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} ended with status {process.returncode}:\n{said[-2000:]}")
        sent = pipe.recv() if pipe else None
        return Run(usage.ru_utime + usage.ru_stime, wall, usage.ru_maxrss * 1024, said, sent)
