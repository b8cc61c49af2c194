"""What the Zeek package costs: plain Zeek, the package writing logs, publishing to a client, and that compiled.

    python benchmarks/sensor.py CAPTURE [PUBLISHED_SCRIPT...] [--repeats 1]

All in one run on the same capture, in turns, so that other work on the machine meets them alike; needs `zeek` on PATH.
The client drains the bus and drops what it gets. With the published MM4flow scripts given, they are measured too. Times
are CPU seconds of the Zeek process, and wall seconds; they and the ratios are medians over the turns.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from hardware import describe, report

from tapline.service.metrics import Metrics
from tapline.service.sources.bus.source import BusSource, make_transport
from tapline.service.sources.bus.transport import TlsFiles

ROOT = Path(__file__).resolve().parent.parent

SCRIPTS = ROOT / "zeek" / "scripts"
COMPILED = ["-O", "ZAM", "--optimize-files=zeek/scripts/"]
"""What the README of the package advises: its own scripts compiled, Zeek's as they are."""


def run_zeek(arguments: list[str]) -> tuple[float, float]:
    """CPU and wall seconds of one Zeek in a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        process = subprocess.Popen(
            ["zeek", *arguments], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"zeek {' '.join(arguments)} ended with status {process.returncode}")
        return usage.ru_utime + usage.ru_stime, time.perf_counter() - started


def drain(port: int, stop: threading.Event) -> threading.Thread:
    """A client in a thread that takes everything, and confirms the end."""

    async def client() -> None:
        source = BusSource(make_transport(f"ws://127.0.0.1:{port}", TlsFiles()), Metrics(), take_flow=lambda flow: None)
        task = asyncio.create_task(source.run())
        while not stop.is_set():
            await asyncio.sleep(0.05)
            if source.end_marker.is_set():
                await source.confirm_finished()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    thread = threading.Thread(target=lambda: asyncio.run(client()))
    thread.start()
    return thread


def publishing(capture: str, *arguments: str) -> tuple[float, float]:
    """The package over the bus, every flow delivered."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    stop = threading.Event()
    thread = drain(port, stop)
    try:
        scripts = [str(SCRIPTS / "replay.zeek"), f"Tapline::listen_port={port}/tcp"]
        return run_zeek([*arguments, "-C", "-r", capture, *scripts])
    finally:
        stop.set()
        thread.join()


def measure(ways: dict[str, Callable[[], tuple[float, float]]], repeats: int) -> dict[str, list[tuple[float, float]]]:
    """CPU and wall seconds of every way, one turn of all after the other."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            times[name].append(way())
    return times


def main() -> None:
    """Measure each in turn and print the ratios to plain Zeek."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("capture", type=Path)
    parser.add_argument("published", nargs="*", type=Path)
    parser.add_argument("--repeats", type=int, default=1)
    options = parser.parse_args()
    capture = str(options.capture.resolve())
    ways = {
        "plain Zeek": lambda: run_zeek(["-C", "-r", capture]),
        "package, logs": lambda: run_zeek(["-C", "-r", capture, str(SCRIPTS / "offline.zeek")]),
        "package, publishing": lambda: publishing(capture),
        "package compiled, publishing": lambda: publishing(capture, *COMPILED),
    }
    if options.published:
        scripts = [str(path.resolve()) for path in options.published]
        ways["published scripts"] = lambda: run_zeek(["-C", "-r", capture, *scripts])
    print(f"machine  {describe()}")
    size_mb = options.capture.stat().st_size / 1e6
    print(f"input    {options.capture.name}, {size_mb:.0f} MB; median of {options.repeats}", flush=True)
    times = measure(ways, options.repeats)
    plain = times["plain Zeek"]
    for name, turns in times.items():
        cpu, wall = (statistics.median(turn[i] for turn in turns) for i in (0, 1))
        ratios = [statistics.median(a[i] / b[i] for a, b in zip(turns, plain, strict=True)) for i in (0, 1)]
        print(f"{name:<29} {cpu:6.1f} s CPU, {wall:6.1f} s wall: {ratios[0]:.2f} and {ratios[1]:.2f} times plain")
        if name != "plain Zeek":
            report(f"Zeek: {name}, {options.capture.name}", f"**{ratios[0]:.2f} times** plain Zeek's CPU")


if __name__ == "__main__":
    main()
