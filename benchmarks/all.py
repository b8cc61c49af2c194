"""Runs the measurements one after the other and writes the table of `benchmarks/README.md`.

    python benchmarks/all.py --captures FOLDER --big big.pcap [--only load,reload] [--quick]

FOLDER holds captures of real traffic; `big.pcap` is a large one for the reader, the sensor and the end to end. Needs
`zeek` on PATH for those. What fails is told, and its row says so; the others still run.
"""

from __future__ import annotations

import argparse
import datetime
import os
import subprocess
import sys
from pathlib import Path

from hardware import describe

HERE = Path(__file__).resolve().parent
PAGE = HERE / "README.md"
BEGIN, END = "<!-- table: written by all.py -->", "<!-- end of the table -->"
CAPTURES = 8
TIMEOUT_SECONDS = 1800


def commands(captures: list[str], big: str, *, quick: bool) -> dict[str, list[str]]:
    """Script name to its arguments."""
    seconds = "5" if quick else "10"
    few = captures[:CAPTURES]
    return {
        "engine": [*few, "--flows", "128" if quick else "512"],
        "tracegram": [*few],
        "precision": [*few],
        "load": [*few, "--seconds", seconds, "--plot", str(HERE / "load.png")],
        "reload": [*few, "--reloads", "5" if quick else "50"],
        "consumer": ["--flows", "5000" if quick else "30000"],
        "reader": [big, "--repeat", "1"],
        "sensor": ["seconds", big, "--repeats", "1"],
        "end_to_end": [big],
    }


def rows_of(script: str, arguments: list[str]) -> list[str]:
    """Run one script, pass on what it says, and give its rows of the table."""
    command = [sys.executable, str(HERE / f"{script}.py"), *arguments]
    print(f"== {script}", flush=True)
    rows = []
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, timeout=TIMEOUT_SECONDS, check=True,
            env=os.environ | {"PYTHONPATH": str(HERE.parent)},
        )  # fmt: skip
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        print(f"{script}: {error}", flush=True)
        return [f"| {script} | `{script}.py` | failed in this run |"]
    for line in done.stdout.splitlines():
        print(line, flush=True)
        if line.startswith("result | "):
            _, what, result = line.split(" | ", 2)
            rows.append(f"| {what} | `{script}.py` | {result} |")
    return rows


def main() -> None:
    """Run, then write the table between its marks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--captures", type=Path, required=True)
    parser.add_argument("--big", type=Path, required=True)
    parser.add_argument("--only", default="", help="names of scripts, with commas between")
    parser.add_argument("--quick", action="store_true", help="short runs, to try it; their table is not written")
    options = parser.parse_args()
    files = sorted(options.captures.rglob("*.pcap"), key=lambda path: -path.stat().st_size)
    chosen = commands([str(path.resolve()) for path in files], str(options.big.resolve()), quick=options.quick)
    names = options.only.split(",") if options.only else list(chosen)
    rows = [row for name in names for row in rows_of(name, chosen[name])]
    today = datetime.datetime.now(datetime.UTC).date()
    title = f"One run of `all.py`, {today}, {describe()}.\n\n"
    table = "\n".join(["| what | command | result |", "|---|---|---|", *rows])
    print(title + table)
    if options.quick or options.only:
        return
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{title}{table}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


if __name__ == "__main__":
    main()
