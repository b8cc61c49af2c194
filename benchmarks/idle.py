"""Memory of a service that waits: `tapline serve` with every checkpoint that ships, before the first flow.

    python benchmarks/idle.py [--seconds 5]

The service is a process of its own, once without pages and history and once as it comes, with both; its resident memory
is read so long after it is ready, and how much of it no file could give again.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from hardware import describe, report, short

READY_SECONDS = 120
BUS = "ws://127.0.0.1:9"
"""Nobody listens there: the live path and its trace models wait."""


def resident_mb(pid: int) -> float:
    """Resident memory of a process, MB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmRSS"))


def anonymous_mb(pid: int) -> float:
    """Resident memory of a process that is no page of a file, MB."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("Anonymous"))


def wait_until_ready(process: subprocess.Popen[bytes], port: int) -> None:
    """Wait for the first answer that says so.

    Raises:
        SystemExit: it ended, or was not ready in time.
    """
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5):
                return
        except OSError:
            time.sleep(0.1)
    raise SystemExit("the service was not ready in time")


def measured(seconds: float, words: list[str]) -> tuple[float, float]:
    """Start a service with these options, look after so many seconds, and end it: resident and anonymous MB."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        program = "from tapline.service.command.cli import main; main()"
        process = subprocess.Popen(
            [sys.executable, "-c", program, "serve", "--port", str(port), "--zeek", BUS, "--data-dir", folder, *words],
            env=os.environ | {"TAPLINE_CONFIG": "none"}, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            wait_until_ready(process, port)
            time.sleep(seconds)
            return resident_mb(process.pid), anonymous_mb(process.pid)
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def main() -> None:
    """Measure both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=5)
    options = parser.parse_args()
    print(f"machine  {describe()}")
    what = "memory of a service that waits, every checkpoint that ships loaded"
    memory_mb, own_mb = measured(options.seconds, ["--dashboard", "off", "--history", "none"])
    report(f"{what}, without pages and history", f"**{memory_mb:.0f} MB** resident, {own_mb:.0f} of no file")
    short(what, "-", f"{memory_mb:.0f} MB")
    memory_mb, own_mb = measured(options.seconds, [])
    report(f"{what}, with both", f"**{memory_mb:.0f} MB** resident, {own_mb:.0f} of no file")


if __name__ == "__main__":
    main()
