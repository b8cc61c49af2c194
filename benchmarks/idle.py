"""Memory of a service that waits: `tapline serve` with every checkpoint that ships, before the first flow.

    python benchmarks/idle.py [--seconds 5]

The service is a process of its own, without pages and history; its resident memory is read so long after it is ready.
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


def main() -> None:
    """Start it, look, and end it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=5)
    options = parser.parse_args()
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        words = ["serve", "--port", str(port), "--zeek", BUS, "--dashboard", "off", "--history", "none"]
        program = "from tapline.service.command.cli import main; main()"
        process = subprocess.Popen(
            [sys.executable, "-c", program, *words, "--data-dir", folder],
            env=os.environ | {"TAPLINE_CONFIG": "none"}, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            wait_until_ready(process, port)
            time.sleep(options.seconds)
            memory_mb = resident_mb(process.pid)
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    print(f"machine  {describe()}")
    what = "memory of a service that waits, every checkpoint that ships loaded"
    report(what, f"**{memory_mb:.0f} MB** resident")
    short(what, "-", f"{memory_mb:.0f} MB")


if __name__ == "__main__":
    main()
