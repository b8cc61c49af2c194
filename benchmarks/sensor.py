"""What the Zeek package costs beside plain Zeek: instructions, CPU seconds, bytes on the bus, memory.

    python benchmarks/sensor.py instructions CAPTURE [--plugin DIR] [--ways NAME,...] [--profiles DIR]
    python benchmarks/sensor.py seconds CAPTURE [--plugin DIR] [--ways NAME,...] [--repeats 3]
    python benchmarks/sensor.py memory [--plugin DIR]
    python benchmarks/sensor.py scan [--plugin DIR] [--repeats 1]
    python benchmarks/sensor.py flood [--plugin DIR] [--repeats 1]
    python benchmarks/sensor.py verdicts [--plugin DIR]

Needs `zeek` on PATH, without the plugin in its own folder; `--plugin` names the folder where it was built, and without
it the ways that need it are left out. Where the package publishes, a client in a process of its own takes everything.

`instructions`: of Zeek and all its threads, by valgrind's callgrind, less those of the same command on a capture
without packets; they do not depend on what else the machine does. `--profiles` keeps callgrind's files.
`seconds`: CPU seconds of Zeek, less those on an empty capture, in turns, so that other work on the machine meets all
ways alike; medians, and medians of each turn's ratios.
`memory`: peak of the resident memory while so many connections are open, at two numbers of them: the slope, less plain
Zeek's. Nothing listens.
`scan`: a million SYNs, none answered. `flood`: 0.1 s of 60-byte frames and 0.25 s of packets of 1,500 bytes at 10 Gb/s,
over 100 flows. CPU seconds as above, and the most memory.
`verdicts`: instructions for each verdict on a flow that comes back, in records and in lines.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

from generated_captures import empty, flood, open_connections, scan
from hardware import describe, report, short
from verdicts_back import per_verdict
from zeek_runs import COMPILED, SCRIPTS, Run, Way, run, run_counted

from tapline.service.sources.bus.answers import verdict_lines_event, verdicts_event

OFFLINE, REPLAY, SENSOR = (str(SCRIPTS / name) for name in ("offline.zeek", "replay.zeek", "__load__.zeek"))
BARE = ("Tapline::heads=none", "Tapline::content_bytes=0")
PLAIN = Way("plain")
PUBLISHING = Way("publishing", (REPLAY,), publishes=True)
PLUGIN_PUBLISHING = Way("plugin-publishing", (REPLAY,), publishes=True, native=True)
WAYS = [
    PLAIN,
    Way("logs", (OFFLINE,)),
    PUBLISHING,
    Way("compiled-publishing", (*COMPILED, REPLAY), publishes=True),
    Way("bare-publishing", (*BARE, REPLAY), publishes=True),
    Way("plugin-logs", (OFFLINE,), native=True),
    PLUGIN_PUBLISHING,
    Way("plugin-bare-publishing", (*BARE, REPLAY), publishes=True, native=True),
]
"""`bare` is without heads and content: lengths, counts and times alone."""

STILL = ("Tapline::listen_port=0/tcp",)
RESIDENT = """
event Pcap::file_done(path: string) &priority=100
	{
	print fmt("resident %d", get_proc_stats()$mem);
	terminate();
	}
"""
HELD = {0: (20_000, 100_000), 10: (10_000, 50_000), 254: (1_000, 5_000)}
"""Payload packets of each connection, and the numbers of connections of the two runs."""

SCAN_SYNS = 1_000_000
FLOOD_FLOWS = 100
FLOODS = {46: 1_488_000, 1_500: 203_000}
"""Bytes of an IP packet, and packets: 0.1 s and 0.25 s."""


def chosen(options: argparse.Namespace, ways: Sequence[Way] = WAYS) -> list[Way]:
    """The ways that were asked for and can be run; plain Zeek first in any case."""
    names = options.ways.split(",") if getattr(options, "ways", "") else [way.name for way in ways]
    unknown = set(names) - {way.name for way in ways}
    if unknown:
        raise SystemExit(f"no such way: {', '.join(sorted(unknown))}")
    can_run = [way for way in ways if options.plugin or not way.native]
    return [way for way in can_run if way.name in names or way is PLAIN]


def sent_text(done: Run) -> str:
    """What a client got in a run, "" where there was none."""
    if done.sent is None:
        return ""
    each = done.sent.bytes / max(1, done.sent.flows)
    return f"{done.sent.flows} flows in {done.sent.events} events, {each:.0f} bytes on the bus per flow"


def instructions(options: argparse.Namespace, folder: Path) -> None:
    """Callgrind's count of each way."""
    nothing = empty(folder / "empty.pcap")
    plain = 0
    for way in chosen(options):
        profile = options.profiles / f"{way.name}.callgrind" if options.profiles else None
        start = run_counted(way, nothing, options.plugin).instructions
        done = run_counted(way, options.capture, options.plugin, profile)
        own = done.instructions - start
        plain = plain or own
        print(
            f"{way.name:<24} {own / 1e9:7.3f} G instructions, {own / plain:.3f} times plain; start {start / 1e9:.3f} G"
            f"  {sent_text(done)}",
            flush=True,
        )
        if way is not PLAIN:
            report(
                f"Zeek: {way.name}, {options.capture.name}", f"**{own / plain:.2f} times** plain Zeek's instructions"
            )
            short(f"sensor, {way.name}: instructions", "plain Zeek", f"{own / plain:.2f} times")


def in_turns(ways: Sequence[Way], capture: Path, options: argparse.Namespace, folder: Path) -> dict[Way, list[Run]]:
    """Runs of every way, one turn of all after the other, and what each took, its start left out."""
    nothing = empty(folder / "empty.pcap")
    found: dict[Way, list[Run]] = {way: [] for way in ways}
    for _ in range(options.repeats):
        for way in ways:
            start = run(way, nothing, options.plugin)
            done = run(way, capture, options.plugin)
            found[way].append(Run(done.cpu - start.cpu, done.wall - start.wall, done.peak_bytes, "", done.sent))
    return found


def show(found: dict[Way, list[Run]], what: str) -> None:
    """CPU seconds of each way, and their ratio to plain Zeek's in the same turn."""
    for way, runs in found.items():
        cpu = statistics.median(each.cpu for each in runs)
        wall = statistics.median(each.wall for each in runs)
        ratio = statistics.median(each.cpu / plain.cpu for each, plain in zip(runs, found[PLAIN], strict=True))
        peak = max(each.peak_bytes for each in runs)
        print(
            f"{way.name:<24} {cpu:7.2f} s CPU, {wall:7.2f} s wall, {ratio:.2f} times plain; at most {peak / 1e6:.0f} MB"
            f"  {sent_text(runs[-1])}",
            flush=True,
        )
        if way is not PLAIN:
            report(f"Zeek: {way.name}, {what}", f"**{ratio:.2f} times** plain Zeek's CPU, at most {peak / 1e6:.0f} MB")
            short(f"sensor, {way.name}, {what}: CPU seconds", "plain Zeek", f"{ratio:.2f} times")


def seconds(options: argparse.Namespace, folder: Path) -> None:
    """CPU seconds of a capture."""
    show(in_turns(chosen(options), options.capture, options, folder), options.capture.name)


def memory(options: argparse.Namespace, folder: Path) -> None:
    """Bytes of resident memory for each open connection, beside plain Zeek's."""
    asks = folder / "resident.zeek"
    asks.write_text(RESIDENT)
    held = [PLAIN, Way("scripts", (SENSOR, *STILL)), Way("plugin", (SENSOR, *STILL), native=True)]
    for payload_packets, numbers in HELD.items():
        captures = [open_connections(folder / f"{n}-{payload_packets}.pcap", n, payload_packets) for n in numbers]
        plain = 0.0
        for way in chosen(options, held):
            few, many = (resident(way, capture, options.plugin, asks) for capture in captures)
            each = (many - few) / (numbers[1] - numbers[0])
            plain = plain or each
            what = f"{payload_packets} payload packets"
            print(
                f"{way.name:<10} {what}: {each:.0f} bytes for each open connection, {each - plain:.0f} beside plain"
                f" ({few / 1e6:.1f} MB with {numbers[0]}, {many / 1e6:.1f} MB with {numbers[1]})",
                flush=True,
            )
            if way is not PLAIN:
                report(f"Zeek: {way.name}, a connection of {what}", f"**{each - plain:.0f} bytes** beside plain Zeek's")
        for capture in captures:
            capture.unlink()


def resident(way: Way, capture: Path, plugin: Path | None, asks: Path) -> int:
    """The most resident memory that Zeek had, in bytes, before it let the capture's last connections go."""
    said = run(way, capture, plugin, (str(asks),)).said
    found = [line.split()[1] for line in said.splitlines() if line.startswith("resident ")]
    return int(found[-1])


def scanned(options: argparse.Namespace, folder: Path) -> None:
    """CPU seconds and memory of a scan."""
    capture = scan(folder / "scan.pcap", SCAN_SYNS)
    show(in_turns(chosen(options, [PLAIN, PUBLISHING, PLUGIN_PUBLISHING]), capture, options, folder), "1,000,000 SYNs")


def flooded(options: argparse.Namespace, folder: Path) -> None:
    """CPU seconds of floods."""
    for ip_bytes, packets in FLOODS.items():
        capture = flood(folder / "flood.pcap", ip_bytes, packets, FLOOD_FLOWS)
        what = f"{packets:,} UDP packets of {ip_bytes} bytes"
        print(what, flush=True)
        show(in_turns(chosen(options, [PLAIN, PUBLISHING, PLUGIN_PUBLISHING]), capture, options, folder), what)


def verdicts(options: argparse.Namespace, folder: Path) -> None:
    """Instructions and bytes of each verdict that comes back."""
    for form, make_event in (("records", verdicts_event), ("lines", verdict_lines_event)):
        for way, plugin in (("scripts", None), ("plugin", options.plugin)):
            if way == "scripts" or plugin:
                own, size = per_verdict(make_event, plugin)
                print(f"{way:<10} {form:<10} {own:9.0f} instructions, {size:.0f} bytes a verdict", flush=True)
                report(f"Zeek: a verdict back, {form}, {way}", f"**{own:.0f} instructions**")


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_subparsers(required=True, metavar="WHAT")
    for name, measure in (
        ("instructions", instructions), ("seconds", seconds), ("memory", memory), ("scan", scanned), ("flood", flooded),
        ("verdicts", verdicts),
    ):  # fmt: skip
        one = what.add_parser(name, help=measure.__doc__)
        one.set_defaults(measure=measure)
        one.add_argument("--plugin", type=lambda text: Path(text).resolve())
        if name in ("instructions", "seconds"):
            one.add_argument("capture", type=lambda text: Path(text).resolve())
            one.add_argument("--ways", default="", help=f"of {', '.join(way.name for way in WAYS)}")
        if name == "instructions":
            one.add_argument("--profiles", type=Path)
        elif name not in ("memory", "verdicts"):
            one.add_argument("--repeats", type=int, default=3 if name == "seconds" else 1)
    options = parser.parse_args()
    print(f"machine  {describe()}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        options.measure(options, Path(folder))


if __name__ == "__main__":
    main()
