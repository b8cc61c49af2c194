"""Names the machine that a measurement ran on, and prints the lines that the tables of results are made of."""

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


def short(what: str, beside: str, result: str) -> None:
    """Print a row of the short table in the README of the repository: what, beside what else, and how it is."""
    print(f"short | {what} | {beside} | {result}")
