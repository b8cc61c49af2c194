"""Runs the measurements one after the other and writes the tables of `benchmarks/README.md` and of the README.

    python benchmarks/all.py --captures FOLDER --big big.pcap [--nfstream-python PYTHON] [--plugin DIR] [--gpu]
        [--only load,rivals] [--minutes 20] [--quick]

FOLDER holds captures of real traffic, as nDPI's test set; `big.pcap` is a large one for what reads, the sensor and the
end to end. Tools that a measurement compares with (zeek, valgrind, ndpiReader, tshark, NFStream) may be missing, which
is said. What fails has a row that says why; what does not fit into the minutes any more is said to be left out, and
keeps the rows that it had. What ran is kept by measurement in `results.json` with its machine and day, and the tables
are made of that: `--only` on another machine, as one with a GPU, replaces the rows of these alone. `--quick` is to try
it: short runs on the first packets of `big.pcap`, and nothing is written.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from hardware import describe

HERE = Path(__file__).resolve().parent
PAGE, FRONT = HERE / "README.md", HERE.parent / "README.md"
RESULTS = HERE / "results.json"
BEGIN, END = "<!-- table: written by all.py -->", "<!-- end of the table -->"
CAPTURES = 48
SMALL_PACKETS = 60_000
QUICK_PACKETS = 10_000
TIMEOUT_SECONDS = 900


@dataclass(frozen=True)
class Measurement:
    """A script with its arguments, the seconds that it takes on two cores, about, and what it needs."""

    name: str
    script: str
    arguments: list[str]
    seconds: float
    programs: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()

    @property
    def lacks(self) -> str | None:
        """What it needs and is not here."""
        if not (HERE / f"{self.script}.py").exists():
            return f"{self.script}.py"
        absent = [name for name in self.programs if shutil.which(name) is None]
        absent += [name for name in self.modules if importlib.util.find_spec(name) is None]
        return absent[0] if absent else None


@dataclass
class Result:
    """What a measurement gave, on which machine and day: rows of the long table and of the short one."""

    command: str
    machine: str
    day: str
    rows: list[list[str]] = field(default_factory=list)
    short: list[list[str]] = field(default_factory=list)


def measurements(options: argparse.Namespace, small: Path) -> list[Measurement]:
    """All of them, in the order of the table; `small` is the beginning of the large capture."""
    quick, set_of_captures = options.quick, str(options.captures)
    big = str(small if quick else options.big)
    few = few_of(options.captures)
    plugin = ["--plugin", str(options.plugin)] if options.plugin else []
    ways, repeats = "publishing,plugin-publishing", ["--repeats", "1" if quick else "3"]
    nfstream = ["--nfstream-python", options.nfstream_python]
    turns = ["--turns", "1", "--seconds", "1"] if quick else ["--turns", "3", "--seconds", "5"]
    loaded = [*(few if quick else [set_of_captures]), *turns]
    found = [
        Measurement("rivals", "rivals", [big, *nfstream, "--runs", "1" if quick else "3"], 270),
        Measurement("load", "load", [*loaded, "--plot", str(load_plot(quick=quick))], 240),
        Measurement("load-process", "load", [*loaded, "--engine-processes", "1"], 240),
        Measurement("consumer", "consumer", ["--flows", *(("2000", "--rounds", "1") if quick else ("30000",))], 60),
        Measurement("sensor", "sensor", ["seconds", big, "--ways", ways, *repeats, *plugin], 170, ("zeek",)),
        Measurement("sensor-instructions", "sensor", ["instructions", str(small), "--ways", ways, *plugin], 240,
                    ("zeek", "valgrind")),
        Measurement("bulk", "bulk", [str(small), "--copies", "40", "--turns", "1"], 150, modules=("ray",)),
        Measurement("idle", "idle", ["--seconds", "1" if quick else "5"], 15),
        Measurement("engine", "engine", [*few, "--flows", "64" if quick else "512"], 40),
        Measurement("tracegram", "tracegram", [*few], 30, modules=("linear_attention_transformer",)),
        Measurement("precision", "precision", [*few], 30),
        Measurement("reload", "reload", [*few, "--reloads", "5" if quick else "50"], 40),
        Measurement("end_to_end", "end_to_end", [big, "--flows", "64" if quick else "1000"], 90, ("zeek",)),
    ]  # fmt: skip
    if options.gpu:
        found.append(Measurement("gpu", "gpu", [*few], 180, modules=("torch",)))
    left_out = {"sensor-instructions", "bulk"} if quick else set()
    return [each for each in found if each.name not in left_out]


def few_of(folder: Path) -> list[str]:
    """A few of the captures below a folder, always the same."""
    files = sorted(path for path in folder.rglob("*.pcap*") if path.is_file())
    return sorted(map(str, random.Random(0).sample(files, min(CAPTURES, len(files)))))


def load_plot(*, quick: bool) -> Path:
    """Where latency against load is drawn: where it belongs, but for a trial's."""
    return Path(tempfile.gettempdir()) / "tapline-load.png" if quick else HERE / "load.png"


def run(measurement: Measurement, seconds: float) -> Result:
    """Run one script within so many seconds, pass on what it says, and keep its rows."""
    script = HERE / f"{measurement.script}.py"
    shown = measurement.script + (f" {measurement.arguments[0]}" if measurement.script == "sensor" else "")
    day = f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}"
    result = Result(shown, describe(), day)
    print(f"== {measurement.name}", flush=True)
    command = [sys.executable, str(script), *measurement.arguments]
    environment = os.environ | {"PYTHONPATH": str(HERE.parent)}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, env=environment, check=False)
    except subprocess.TimeoutExpired as error:
        text, problem = (error.stdout or b"").decode(errors="replace"), f"took more than {seconds:.0f} s"
    else:
        said = done.stderr.strip().splitlines()[-1:] or ["without a word"]
        text, problem = done.stdout, f"status {done.returncode}: {said[0][:200]}" if done.returncode else ""
    for line in text.splitlines():
        print(line, flush=True)
        kind, *cells = line.split(" | ")
        if kind == "result":
            result.rows.append([cells[0], " | ".join(cells[1:])])
        elif kind == "short":
            result.short.append(cells)
    if problem:
        print(f"{measurement.name}: {problem}", flush=True)
        result.rows.append([measurement.name, f"failed in this run: {problem}"])
    return result


def long_table(results: dict[str, Result]) -> str:
    """The table of `benchmarks/README.md`, machines by letters."""
    machines = list(dict.fromkeys(result.machine for result in results.values()))
    letters = {machine: chr(ord("A") + number) for number, machine in enumerate(machines)}
    head = "; ".join(f"machine {letter}: {machine}" for machine, letter in letters.items())
    rows = [
        f"| {cell(what)} | `{result.command}` | {cell(text)} | {letters[result.machine]}, {result.day} |"
        for result in results.values()
        for what, text in result.rows
    ]
    return "\n".join(
        [f"By `all.py`; {head}.", "", "| what | script | result | machine, day |", "|---|---|---|---|", *rows]
    )


def short_table(results: dict[str, Result]) -> str:
    """The table of the README."""
    rows = [f"| {' | '.join(map(cell, row))} |" for result in results.values() for row in result.short]
    shown = sorted({f"{result.day}, {result.machine}" for result in results.values() if result.short})
    return "\n".join(["| | beside | |", "|---|---|---|", *rows, "", f"Measured {'; '.join(shown)}."])


def cell(text: str) -> str:
    """Text that ends no cell."""
    return text.replace("|", "\\|")


def write_between(page: Path, table: str) -> None:
    """Put a table between the marks of a page.

    Raises:
        ValueError: it has no marks, or not both.
    """
    text = page.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page}: expected {BEGIN} and {END}")
    page.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", encoding="utf-8")


def kept_results() -> dict[str, Result]:
    """What was measured before."""
    if not RESULTS.exists():
        return {}
    return {name: Result(**each) for name, each in json.loads(RESULTS.read_text(encoding="utf-8")).items()}


def write(results: dict[str, Result]) -> None:
    """Keep results, and write both tables."""
    text = json.dumps({name: asdict(each) for name, each in results.items()}, indent=1, ensure_ascii=False)
    RESULTS.write_text(f"{text}\n", encoding="utf-8")
    write_between(PAGE, long_table(results))
    write_between(FRONT, short_table(results))


def first_packets(capture: Path, count: int, to: Path) -> Path:
    """The first packets of a capture (pcap, microseconds or nanoseconds, either byte order) as a capture.

    Raises:
        SystemExit: it is another kind of file.
    """
    with capture.open("rb") as file, to.open("wb") as out:
        head = file.read(24)
        orders = {b"\xd4\xc3\xb2\xa1": "little", b"\x4d\x3c\xb2\xa1": "little", b"\xa1\xb2\xc3\xd4": "big"}
        order = orders.get(head[:4])
        if order is None:
            raise SystemExit(f"{capture}: expected a pcap file that is not compressed")
        out.write(head)
        for _ in range(count):
            record = file.read(16)
            if len(record) < 16:
                break
            out.write(record + file.read(int.from_bytes(record[8:12], order)))  # type: ignore[arg-type]
    return to


def main() -> None:
    """Run, then write the tables between their marks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captures", type=lambda text: Path(text).resolve(), required=True)
    parser.add_argument("--big", type=lambda text: Path(text).resolve(), required=True)
    parser.add_argument("--nfstream-python", default=sys.executable, help="interpreter that has NFStream")
    parser.add_argument("--plugin", type=lambda text: Path(text).resolve(), help="folder where Zeek's plugin was built")
    parser.add_argument("--gpu", action="store_true", help="measure the engine on a GPU, too")
    parser.add_argument("--only", default="", help="names of measurements, with commas between")
    parser.add_argument("--minutes", type=float, default=20, help="no measurement begins that would end later")
    parser.add_argument("--quick", action="store_true", help="short runs, to try it; nothing is written")
    options = parser.parse_args()
    until = time.monotonic() + 60 * options.minutes
    results: dict[str, Result] = {}
    with tempfile.TemporaryDirectory() as folder:
        packets = QUICK_PACKETS if options.quick else SMALL_PACKETS
        small = first_packets(options.big, packets, Path(folder) / f"{options.big.stem}-{packets // 1000}k.pcap")
        all_of_them = {each.name: each for each in measurements(options, small)}
        names = options.only.split(",") if options.only else list(all_of_them)
        if unknown := set(names) - set(all_of_them):
            raise SystemExit(f"no such measurement: {', '.join(sorted(unknown))}; there are {', '.join(all_of_them)}")
        for name in names:
            left = until - time.monotonic()
            if lacks := all_of_them[name].lacks:
                print(f"== {name}: left out, there is no {lacks} here", flush=True)
            elif left < all_of_them[name].seconds and not options.quick:
                print(
                    f"== {name}: left out, {left:.0f} s are left and it takes {all_of_them[name].seconds:.0f}",
                    flush=True,
                )
            else:
                results[name] = run(all_of_them[name], min(TIMEOUT_SECONDS, max(left, 60)))
    print(f"{long_table(results)}\n\n{short_table(results)}")
    if not options.quick:
        kept = kept_results()
        write({name: each for name in all_of_them | kept if (each := results.get(name) or kept.get(name))})


if __name__ == "__main__":
    main()
