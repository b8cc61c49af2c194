"""A capture to a DataFrame of flows in two lines: tapline beside NFStream, processor time and memory of each.

    python benchmarks/dataframe.py big.pcap [--nfstream-python env/bin/python] [--before-python old/bin/python]
        [--repeat 3] [--only read,flows]

Every side is a process of its own, timed from start to end with its imports, the sides in turn; the median of the turns
is told, and least and most. Processor time is of all its processes. Memory is the most that all its processes had at
once (proportional set size, looked at ten times a second), or the largest of them if that is more. NFStream, at version
6.6 or later, may live in an environment of its own (`python -m venv env; env/bin/pip install nfstream`); without it
tapline's sides run alone. `--before-python` has another version of tapline, whose sides run in turn with these. What
the sides computed differs and is told: rows, columns, labels.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from hardware import describe, report

SAMPLE_SECONDS = 0.1
LIMIT_SECONDS = 1800
_END = """
import importlib.metadata, json
versions = {}
for name in ("tapline-traffic", "nfstream", "pandas", "numpy", "onnxruntime"):
    try:
        versions[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pass
print(json.dumps({"rows": len(df), "columns": len(df.columns), "labels": int(df[LABEL].nunique()) if LABEL else 0,
                  "frame_mb": float(df.memory_usage(deep=True).sum()) / 2**20, "versions": versions}))
"""


@dataclass(frozen=True)
class Side:
    """One way from a capture to a DataFrame `df`. `label`: the column that names the application, empty without one."""

    key: str
    what: str
    code: str
    label: str
    of: Literal["this", "nfstream", "before"] = "this"

    @property
    def program(self) -> str:
        """What the process runs, the capture its only argument."""
        return f"import sys\ncapture, LABEL = sys.argv[1], {self.label!r}\n{self.code}\n{_END}"


SIDES = [
    Side("nfstream", "NFStream, as it comes",
         "from nfstream import NFStreamer\ndf = NFStreamer(source=capture).to_pandas()",
         "application_name", "nfstream"),
    Side("nfstream-splt", "NFStream, with the first 32 packets of each flow and statistics",
         "from nfstream import NFStreamer\n"
         "df = NFStreamer(source=capture, statistical_analysis=True, splt_analysis=32).to_pandas()",
         "application_name", "nfstream"),
    Side("read", "tapline.read: flows without verdicts",
         "import tapline\ndf = tapline.read(capture).to_pandas()", ""),
    Side("flows", "tapline.classify without traces",
         "import tapline\ndf = tapline.classify(capture, traces=()).to_pandas()", "label"),
    Side("traces", "tapline.classify: flows and traces",
         "import tapline\nresults = tapline.classify(capture)\ndf = results.to_pandas()\n"
         "traces = results.traces.to_pandas()", "label"),
    Side("processes", "the same over two processes more",
         "import tapline\nresults = tapline.classify(capture, processes=2)\ndf = results.to_pandas()\n"
         "traces = results.traces.to_pandas()", "label"),
]  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One process: seconds of processor and by the clock, most memory, and what it says of its DataFrame."""

    cpu_seconds: float
    wall_seconds: float
    memory_mb: float
    told: dict[str, object]


def tree(process: int) -> Iterator[int]:
    """A process and all below it that are alive."""
    yield process
    try:
        for task in Path(f"/proc/{process}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield from tree(int(child))
    except OSError:  # it has ended meanwhile
        return


def proportional_mb(process: int) -> float:
    """The memory of a process, what it shares counted in part; 0 once it has ended."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def before(side: Side) -> Side:
    """The same by another version."""
    return replace(side, key=f"{side.key}-before", what=f"before: {side.what}", of="before")


def run(side: Side, python: str, capture: Path, threads: int) -> Run:
    """Run one side; its threads of mathematics are limited alike."""
    limited = {name: str(threads) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    started = os.times().elapsed
    process = subprocess.Popen(
        [python, "-c", side.program, str(capture)], stdout=subprocess.PIPE, env=os.environ | limited, text=True
    )
    most_mb = 0.0
    ended = threading.Event()

    def watch() -> None:
        nonlocal most_mb
        while not ended.wait(SAMPLE_SECONDS):
            most_mb = max(most_mb, sum(map(proportional_mb, set(tree(process.pid)))))

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    killer = threading.Timer(LIMIT_SECONDS, process.kill)
    killer.start()
    assert process.stdout is not None
    with process.stdout:
        text = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    wall_seconds = os.times().elapsed - started
    killer.cancel()
    ended.set()
    watching.join()
    if process.returncode:
        sys.exit(f"{side.what}: ended with status {process.returncode}")
    told = json.loads(text.splitlines()[-1])
    return Run(usage.ru_utime + usage.ru_stime, wall_seconds, max(most_mb, usage.ru_maxrss / 1024), told)


def has_nfstream(python: str) -> bool:
    """Whether this interpreter has NFStream."""
    asked = [python, "-c", "import importlib.util, sys; sys.exit(importlib.util.find_spec('nfstream') is None)"]
    return subprocess.run(asked, check=False, timeout=60).returncode == 0


def spread(values: list[float], unit: str) -> str:
    """The median, and least and most where there are several."""
    middle = f"{statistics.median(values):.1f} {unit}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.1f} to {max(values):.1f})"


def tell(side: Side, runs: list[Run]) -> None:
    """Print what a side took and what it gave."""
    told = runs[0].told
    if any(each.told != told for each in runs):
        print(f"{side.what}: the runs gave different DataFrames")
    labels = f", {told['labels']} labels" if told["labels"] else ""
    print(f"{side.what}\n  " + side.code.replace("\n", "\n  "))
    print(f"  gives {told['rows']} rows, {told['columns']} columns{labels}, {told['frame_mb']:.0f} MiB as a DataFrame")
    names = ("cpu_seconds", "wall_seconds", "memory_mb")
    cpu, clock, memory = ([getattr(each, name) for each in runs] for name in names)
    print(f"  CPU {spread(cpu, 's')}; clock {spread(clock, 's')}; memory {spread(memory, 'MiB')}")
    print("  " + ", ".join(f"{name} {version}" for name, version in sorted(dict(told["versions"]).items())))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("capture", type=Path)
    parser.add_argument("--nfstream-python", default=sys.executable, help="interpreter that has NFStream")
    parser.add_argument("--before-python", default="", help="interpreter that has another version of tapline")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="of mathematics, both sides")
    parser.add_argument("--only", default="", help=f"of {', '.join(side.key for side in SIDES)}, with commas between")
    options = parser.parse_args()
    chosen = [side for side in SIDES if side.key in options.only.split(",")] if options.only else SIDES
    if not has_nfstream(options.nfstream_python):
        print(f"no NFStream in {options.nfstream_python}: tapline alone (--nfstream-python names another interpreter)")
        chosen = [side for side in chosen if side.of != "nfstream"]
    if options.before_python:
        old = [before(side) for side in chosen if side.of == "this" and side.key != "processes"]
        chosen = [*chosen, *old]
    print(f"machine  {describe()}")
    print(
        f"input    {options.capture.name}, {options.capture.stat().st_size / 1e6:.0f} MB; load {os.getloadavg()[0]:.1f}"
    )
    pythons = {"this": sys.executable, "nfstream": options.nfstream_python, "before": options.before_python}
    runs: dict[str, list[Run]] = {side.key: [] for side in chosen}
    for _ in range(options.repeat):
        for side in chosen:
            runs[side.key].append(run(side, pythons[side.of], options.capture, options.threads))
    for side in chosen:
        tell(side, runs[side.key])
        middle = [statistics.median(getattr(each, name) for each in runs[side.key])
                  for name in ("cpu_seconds", "memory_mb")]  # fmt: skip
        report(f"{side.what}, {options.capture.name}", f"{middle[0]:.1f} s of CPU, {middle[1]:.0f} MiB at most, "
               f"{runs[side.key][0].told['rows']} flows")  # fmt: skip
    if runs.get("nfstream") and runs.get("flows"):
        pairs = zip(runs["flows"], runs["nfstream"], strict=True)
        ratio = statistics.median(ours.cpu_seconds / theirs.cpu_seconds for ours, theirs in pairs)
        report("tapline.classify without traces beside NFStream, CPU", f"{ratio:.1f} times as much")
    for side in chosen:
        if side.of == "before":
            pairs = zip(runs[side.key], runs[side.key.removesuffix("-before")], strict=True)
            ratio = statistics.median(old.cpu_seconds / new.cpu_seconds for old, new in pairs)
            report(f"{side.what}, CPU beside now", f"{ratio:.2f} times as much")


if __name__ == "__main__":
    main()
