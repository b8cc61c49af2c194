"""The built-in capture reader beside `zeek -r` on one capture: python benchmarks/reader.py CAPTURE [SCRIPT ...].

Without Zeek on PATH only the reader is timed. SCRIPT are Zeek scripts to load, such as the published MM4flow ones or
`zeek/scripts/offline.zeek`; without any, Zeek runs with its default scripts. Checksums are ignored on both sides. Each
side runs in a process of its own, several times; the fastest counts.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from hardware import describe, report

from tapline.service.sources.capture import CaptureReader, ReadOptions

HERE = Path(__file__).resolve().parent
READ = f"import sys; sys.path.insert(0, {str(HERE)!r}); from reader import read; read(sys.argv[1], sys.argv[2])"


@dataclass
class Run:
    """The fastest of several runs of a command."""

    wall_seconds: float
    cpu_seconds: float
    said: str


def read(capture: str, heads: str) -> None:
    """Reads a capture to its end and prints what it held and how much memory that took."""
    reader = CaptureReader(Path(capture), ReadOptions(heads=heads))  # type: ignore[arg-type]
    flows = sum(1 for _ in reader)
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    print(f"{reader.packets} packets, {flows} flows, at most {peak_mb:.0f} MB of memory")


def fastest(command: list[str], repeat: int, folder: str) -> Run:
    runs = []
    for _ in range(repeat):
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
        wall_seconds = time.perf_counter() - started
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu_seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        runs.append(Run(wall_seconds, cpu_seconds, done.stdout.strip()))
    return min(runs, key=lambda run: run.wall_seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("capture", type=Path)
    parser.add_argument("scripts", nargs="*", help="Zeek scripts to load")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--heads", choices=["none", "header", "full"], default="header")
    arguments = parser.parse_args()
    capture = arguments.capture.resolve()
    print(describe())
    print(f"{capture.name}: {capture.stat().st_size / 1e6:.0f} MB, heads {arguments.heads}, best of {arguments.repeat}")
    with tempfile.TemporaryDirectory() as folder:
        ours = fastest([sys.executable, "-c", READ, str(capture), arguments.heads], arguments.repeat, folder)
        print(f"built-in reader   {ours.wall_seconds:7.2f} s   {ours.cpu_seconds:7.2f} s of CPU   {ours.said}")
        zeek = shutil.which("zeek")
        if zeek is None:
            print("no zeek on PATH: nothing to compare with")
            return
        scripts = [str(Path(script).resolve()) for script in arguments.scripts]
        theirs = fastest([zeek, "-C", "-r", str(capture), *scripts], arguments.repeat, folder)
        print(f"zeek -r           {theirs.wall_seconds:7.2f} s   {theirs.cpu_seconds:7.2f} s of CPU")
    ratio, cpu_ratio = theirs.wall_seconds / ours.wall_seconds, theirs.cpu_seconds / ours.cpu_seconds
    print(f"ratio             {ratio:7.2f}     {cpu_ratio:7.2f}")
    report(
        f"built-in reader beside plain `zeek -r`, {capture.name}, heads `{arguments.heads}`",
        f"{ours.cpu_seconds:.1f} s of CPU beside {theirs.cpu_seconds:.1f}: **{cpu_ratio:.1f} times**; {ours.said}",
    )


if __name__ == "__main__":
    main()
