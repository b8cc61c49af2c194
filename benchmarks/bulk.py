"""An archive by one worker of `tapline bulk` and by two: processor time of all processes, Ray's among them.

    python benchmarks/bulk.py capture.pcap [--copies 8] [--turns 2]

The archive is one capture under several names, so that both sides have the same to do, and it can be divided. Every
engine has one thread. The sides in turn, and the median of the turns; beside them one process that classifies the same
captures by `tapline.classify` into the same files without Ray. Processor time is read of every process that a side
started, ten times a second, and added up; that of workers and of what Ray itself runs is told apart. All sides must
give the same number of rows.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.parquet as pq
from hardware import describe, report

SAMPLE_SECONDS = 0.1
LIMIT_SECONDS = 3600
TICKS = os.sysconf("SC_CLK_TCK")
COMMAND = "from tapline.service.command.cli import main; main()"
ALONE = """
import sys
from pathlib import Path
import pyarrow.parquet as pq
import tapline

archive, out = map(Path, sys.argv[1:])
(out / "flows").mkdir(parents=True)
(out / "traces").mkdir()
model, hosts, malware = (tapline.load(name, threads=1) for name in ("flow-protocols", "iot-devices", "intrusion"))
for path in sorted(archive.iterdir()):
    results = tapline.classify(path, model=model, traces=[hosts, malware])
    pq.write_table(results.to_arrow(), out / "flows" / f"{path.name}.parquet", compression="zstd")
    pq.write_table(results.traces.to_arrow(), out / "traces" / f"{path.name}.parquet", compression="zstd")
"""


@dataclass
class Cost:
    """Processor seconds of a side, of its workers and of all else that it started."""

    workers: float = 0.0
    others: float = 0.0
    rows: int = 0

    @property
    def total(self) -> float:
        """All of it."""
        return self.workers + self.others


@dataclass
class Processes:
    """A process and all below it, with the processor seconds that each had when it was last seen."""

    root: int
    seconds: dict[int, float] = field(default_factory=dict)
    workers: set[int] = field(default_factory=set)

    def look(self) -> None:
        """Read the processor time of each, without that of processes it waited for: they were seen themselves."""
        found: dict[int, tuple[int, float]] = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                found[int(folder.name)] = int(fields[1]), (int(fields[11]) + int(fields[12])) / TICKS
        self.seconds.setdefault(self.root, 0.0)
        for pid, (parent, seconds) in sorted(found.items()):  # parents mostly first; others at the next look
            if pid in self.seconds or parent in self.seconds:
                self.seconds[pid] = seconds
                with contextlib.suppress(OSError):
                    if b"MapWorker" in Path(f"/proc/{pid}/cmdline").read_bytes():
                        self.workers.add(pid)


def cost_of(command: list[str], out: Path) -> Cost:
    """Run a side to its end."""
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    seen = Processes(process.pid)
    deadline = time.monotonic() + LIMIT_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        seen.look()
        time.sleep(SAMPLE_SECONDS)
    if process.poll() is None:
        process.kill()
    _, said = process.communicate()
    if process.returncode:
        sys.exit(f"status {process.returncode} of {' '.join(command)}:\n{said}")
    workers = sum(seconds for pid, seconds in seen.seconds.items() if pid in seen.workers)
    rows = sum(pq.read_metadata(path).num_rows for path in (out / "flows").iterdir())
    return Cost(workers, sum(seen.seconds.values()) - workers, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("capture", type=Path)
    parser.add_argument("--copies", type=int, default=8)
    parser.add_argument("--turns", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder, "archive")
        archive.mkdir()
        for copy in range(arguments.copies):
            (archive / f"{copy}{arguments.capture.suffix}").symlink_to(arguments.capture.resolve())
        costs: dict[str, list[Cost]] = {"one worker": [], "two workers": [], "alone": []}
        for turn in range(arguments.turns):
            for number, (name, found) in enumerate(costs.items(), 1):
                out = Path(folder, f"{turn}-{number}")
                if name == "alone":
                    command = ["-c", ALONE, str(archive), str(out)]
                else:
                    command = ["-c", COMMAND, "bulk", str(archive), "--out", str(out), "--workers", str(number)]
                found.append(cost_of([sys.executable, *command], out))
                print(f"turn {turn + 1}, {name}: {found[-1]}", flush=True)
    if len({each.rows for found in costs.values() for each in found}) != 1:
        sys.exit("the sides have different numbers of rows")
    print(describe())
    print(f"{arguments.copies} times {arguments.capture.name}, {arguments.capture.stat().st_size / 1e6:.1f} MB each")
    totals = {name: statistics.median(each.total for each in found) for name, found in costs.items()}
    for name, found in costs.items():
        workers = statistics.median(each.workers for each in found)
        print(f"{name}: {totals[name]:.1f} CPU s, workers {workers:.1f}; {found[0].rows} rows")
    ratio = totals["two workers"] / totals["one worker"]
    report("archive by two workers, CPU seconds of all processes beside one worker's", f"{ratio:.2f}")


if __name__ == "__main__":
    main()
