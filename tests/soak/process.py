"""What the system says of a process: memory, descriptors, threads and children, by `/proc`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Sample:
    """One look at a process."""

    rss_mb: float
    descriptors: int
    threads: int
    children: int


def look(pid: int) -> Sample:
    """Look at it now."""
    folder = Path(f"/proc/{pid}")
    status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines() if ":" in line)
    return Sample(
        int(status["VmRSS"].split()[0]) / 1024,
        len(list((folder / "fd").iterdir())),
        int(status["Threads"]),
        len(children(pid)),
    )


def children(pid: int) -> list[int]:
    """The processes that it started and that still run."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            found += map(int, (task / "children").read_text().split())
        except OSError:  # the thread has ended meanwhile
            continue
    return found
