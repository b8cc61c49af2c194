"""One capture by tapline and by what a user would pick instead: CPU seconds of each, all its processes and threads.

    python benchmarks/rivals.py CAPTURE [--nfstream-python env/bin/python] [--runs 3] [--only read,zeek]

Every side is a process, from its start to its end. Sides run in turns, until each has `--runs` runs or has taken
`ENOUGH_SECONDS`; the median is told. A tool that is not on PATH is said to be missing and has no row. What the sides
give differs, and is named: NFStream and ndpiReader name protocols by inspecting content, `zeek -r` writes logs, tshark
dissects every packet and counts conversations.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from dataframe import SIDES, has_nfstream
from hardware import describe, report, short

HERE = Path(__file__).resolve().parent
ENOUGH_SECONDS = 25.0
LIMIT_SECONDS = 900
COMPARED = {
    "nfstream-splt": "NFStream with sequences", "nfstream": "NFStream", "zeek": "`zeek -r`", "ndpiReader": "ndpiReader",
    "tshark": "tshark",
}  # fmt: skip
OURS = (sys.executable, "-c", "from tapline.service.command.cli import main; main()", "classify")
READ = f"import sys; sys.path.insert(0, {str(HERE)!r}); from reader import read; read(sys.argv[1], 'header')"


@dataclass
class Side:
    """A way of reading the capture: what it gives, its command, and of every run CPU and wall seconds."""

    key: str
    what: str
    command: list[str]
    runs: list[tuple[float, float]] = field(default_factory=list)
    problem: str = ""

    @property
    def is_ours(self) -> bool:
        """Whether it is tapline."""
        return self.key in ("read", "flows", "traces")

    @property
    def cpu_seconds(self) -> float:
        """The median of its runs."""
        return statistics.median(cpu for cpu, _ in self.runs)

    @property
    def wall_seconds(self) -> float:
        """The median of its runs."""
        return statistics.median(wall for _, wall in self.runs)


def sides(capture: str, nfstream_python: str, folder: str) -> list[Side]:
    """All sides, whether their tools are here or not."""
    nfstream = {side.key: [nfstream_python, "-c", side.program, capture] for side in SIDES if side.of == "nfstream"}
    out = f"{folder}/verdicts"
    return [
        Side("read", "tapline's reader: flows with lengths, content and packet heads",
             [sys.executable, "-c", READ, capture]),
        Side("flows", "tapline classify: flow verdicts",
             [*OURS, capture, "--traces", "none", "--format", "ndjson", "-o", out]),
        Side("traces", "tapline classify: flow and trace verdicts", [*OURS, capture, "--format", "ndjson", "-o", out]),
        Side("nfstream", "NFStream, as it comes", nfstream["nfstream"]),
        Side("nfstream-splt", "NFStream, first 32 packets of each flow and statistics", nfstream["nfstream-splt"]),
        Side("zeek", "`zeek -r`, default scripts: logs", ["zeek", "-C", "-r", capture]),
        Side("ndpiReader", "ndpiReader: protocols", ["ndpiReader", "-q", "-i", capture]),
        Side("tshark", "tshark: dissection, conversations",
             ["tshark", "-n", "-q", "-r", capture, "-z", "conv,tcp", "-z", "conv,udp"]),
    ]  # fmt: skip


def is_here(side: Side) -> bool:
    """Whether its tool is."""
    if side.key.startswith("nfstream"):
        return shutil.which(side.command[0]) is not None and has_nfstream(side.command[0])
    return shutil.which(side.command[0]) is not None


def run(side: Side, folder: str) -> None:
    """Run it once more; where it fails, its problem is kept and it is not run again."""
    started = time.perf_counter()
    with tempfile.TemporaryFile(dir=folder) as said:
        process = subprocess.Popen(
            side.command, cwd=folder, stdout=said, stderr=said, env=os.environ | {"TAPLINE_CONFIG": "none"}
        )
        try:
            usage = _wait(process, LIMIT_SECONDS)
        finally:
            if process.returncode is None:
                process.kill()
                process.wait()
        if process.returncode:
            said.seek(0)
            last = said.read().decode(errors="replace").strip().splitlines()[-1:] or ["no word"]
            side.problem = f"status {process.returncode}: {last[0][:200]}"
            return
    side.runs.append((usage, time.perf_counter() - started))


def _wait(process: subprocess.Popen[bytes], limit_seconds: float) -> float:
    """CPU seconds of a process and of those that it waited for."""
    deadline = time.monotonic() + limit_seconds
    while time.monotonic() < deadline:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            process.returncode = os.waitstatus_to_exitcode(status)
            return usage.ru_utime + usage.ru_stime
        time.sleep(0.01)
    process.kill()
    process.wait()
    return 0.0


def tell(found: list[Side], name: str) -> None:
    """A row for each side that ran, and for tapline's how what the others took compares; those that failed say so."""
    ran = {side.key: side for side in found if side.runs}
    for side in ran.values():
        told = f"{side.cpu_seconds:.1f} s of CPU, {side.wall_seconds:.1f} s by the clock"
        if side.is_ours:
            others = [
                f"{word} {other.cpu_seconds / side.cpu_seconds:.2f} times that"
                for key, word in COMPARED.items()
                if (other := ran.get(key)) is not None
            ]
            beside = [f"{word} {ran[key].cpu_seconds:.1f} s" for key, word in COMPARED.items() if key in ran]
            short(f"{side.what}, CPU seconds, {name}", ", ".join(beside) or "-", f"{side.cpu_seconds:.1f} s")
            told = "; ".join([told, *others])
        report(f"{name}: {side.what}", told)
    for side in found:
        if side.problem:
            report(f"{name}: {side.what}", f"failed: {side.problem}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("capture", type=Path)
    parser.add_argument("--nfstream-python", default=sys.executable, help="interpreter that has NFStream")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", default="", help="names of sides, with commas between")
    options = parser.parse_args()
    capture = options.capture.resolve()
    print(f"machine  {describe()}")
    print(f"input    {capture.name}, {capture.stat().st_size / 1e6:.0f} MB")
    with tempfile.TemporaryDirectory() as folder:
        chosen = options.only.split(",") if options.only else []
        all_sides = sides(str(capture), options.nfstream_python, folder)
        found = [side for side in all_sides if side.key in chosen or not chosen]
        for side in found:
            if not is_here(side):
                side.problem = "not run"
                print(f"missing  {side.what}: there is no {side.key.partition('-')[0]} here")
        found = [side for side in found if not side.problem]
        for _ in range(options.runs):
            for side in found:
                if not side.problem and sum(wall for _, wall in side.runs) < ENOUGH_SECONDS:
                    run(side, folder)
    tell(found, capture.name)


if __name__ == "__main__":
    main()
