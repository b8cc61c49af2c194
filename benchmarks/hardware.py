"""Names the machine that a measurement ran on, and prints the line that the table of results is made of."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def describe() -> str:
    """Processor, cores usable here, system and Python."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        cpu = names[0] if names else cpu
    return f"{cpu}, {len(os.sched_getaffinity(0))} cores, {platform.system()}, Python {platform.python_version()}"


def report(what: str, result: str) -> None:
    """Print a row of the table in `README.md`; `all.py` collects them."""
    print(f"result | {what} | {result}")
