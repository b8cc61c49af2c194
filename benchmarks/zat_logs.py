"""Zeek's logs of the published layout by zat and by tapline's reader: whether both say the same of every flow, field by
field, and what each costs. zat reads plain text alone, so that compressed logs are unpacked before."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
from zat.log_to_dataframe import LogToDataFrame

from tapline.models.flow import MAX_CONTENT_BYTES, MAX_PAYLOAD_LENGTHS, PROTOCOLS, Flow
from tapline.service.sources.logs import LogDirectory, LogError, is_log_directory, open_log

LOGS = Path(__file__).parents[1] / "tests" / "data" / "zeek-logs"
NAMES = ("conn", "ps", "raw")
COMPARED = (
    "start_us", "duration_us", "orig_h", "orig_p", "resp_h", "resp_p", "proto", "service", "conn_state", "orig_pkts",
    "resp_pkts", "orig_ip_bytes", "resp_ip_bytes", "up", "down", "payload_lengths", "orig_bytes", "resp_bytes",
)  # fmt: skip


def frame_of(path: str | Path) -> pd.DataFrame:
    """A log as a DataFrame by zat: text stays text, times and intervals are exact again, booleans are such.

    zat reads times as floating-point numbers, whose nanoseconds are noise, and with `ts_index` pandas warns.
    """
    frame = LogToDataFrame().create_dataframe(str(path), ts_index=False, aggressive_category=False)
    for name, kind in frame.dtypes.items():
        if kind.kind in "mM":
            frame[name] = frame[name].dt.round("us")
        elif kind == "category":
            frame[name] = frame[name].astype(object).map({"T": True, "F": False}).astype("boolean")
    return frame


def flows_of(directory: Path) -> Iterator[Flow]:
    """The flows of a log directory of plain text, joined on uid, by zat and pandas."""
    conn = frame_of(directory / "conn.log").drop_duplicates("uid")
    for name, fields in (("ps", ["uid", "up", "down", "ps"]), ("raw", ["uid", "fwd_raw", "bwd_raw"])):
        if (directory / f"{name}.log").exists():
            conn = conn.merge(frame_of(directory / f"{name}.log")[fields].drop_duplicates("uid"), on="uid", how="left")
    for row in conn.to_dict("records"):
        yield _flow(row)


def _flow(row: dict[str, Any]) -> Flow:
    def text(name: str) -> str:
        value = row.get(name, "")
        return "" if not isinstance(value, str) or value == "(empty)" else value

    def count(name: str) -> int:
        value = row.get(name)
        return 0 if value is None or pd.isna(value) else int(value)

    lengths: list[int] = []
    for run in text("ps").split(",") if text("ps") else ():
        length, _, times = run.partition(":")
        lengths += [int(length)] * min(int(times), MAX_PAYLOAD_LENGTHS - len(lengths))
    duration = row["duration"]
    proto = str(row["proto"])
    return Flow(
        uid=str(row["uid"]),
        start_us=row["ts"].value // 1000,
        duration_us=0 if pd.isna(duration) else duration.value // 1000,
        orig_h=str(row["id.orig_h"]), orig_p=count("id.orig_p"),
        resp_h=str(row["id.resp_h"]), resp_p=count("id.resp_p"),
        proto=proto if proto in PROTOCOLS else str(count("ip_proto")),
        up=count("up"), down=count("down"), payload_lengths=lengths,
        orig_bytes=bytes.fromhex(text("fwd_raw"))[:MAX_CONTENT_BYTES],
        resp_bytes=bytes.fromhex(text("bwd_raw"))[:MAX_CONTENT_BYTES],
        orig_pkts=count("orig_pkts"), resp_pkts=count("resp_pkts"),
        orig_ip_bytes=count("orig_ip_bytes"), resp_ip_bytes=count("resp_ip_bytes"),
        service=text("service"), conn_state=text("conn_state"),
    )  # fmt: skip


def differences(directory: Path) -> tuple[int, Counter[str]]:
    """How many flows tapline's reader finds in a log directory of plain text, and how many zat tells otherwise, by
    field; `missing` and `more` are those that one of them does not have, `unreadable` all where zat gives up."""
    try:
        own = {flow.uid: flow for flow in LogDirectory(directory)}
    except LogError:
        own = {}
    try:
        theirs = {flow.uid: flow for flow in flows_of(directory)}
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
        return len(own), Counter({"unreadable": len(own)})
    found = Counter({"missing": len(own.keys() - theirs.keys()), "more": len(theirs.keys() - own.keys())})
    for uid in own.keys() & theirs.keys():
        found.update(name for name in COMPARED if getattr(own[uid], name) != getattr(theirs[uid], name))
    return len(own), +found


def unpacked(source: Path, target: Path) -> Path:
    """A copy of a log directory as plain text."""
    target.mkdir(parents=True)
    for name in NAMES:
        for path in source.glob(f"{name}.log*"):
            with open_log(path) as file:
                (target / f"{name}.log").write_bytes(file.read())
    return target


def many(source: Path, target: Path, times: int) -> Path:
    """A log directory with every flow of one of plain text `times` times, each with a uid of its own."""
    target.mkdir()
    for name in NAMES:
        lines = (source / f"{name}.log").read_text().splitlines(keepends=True)
        head = [line for line in lines if line.startswith("#") and not line.startswith("#close")]
        place = next(line for line in head if line.startswith("#fields")).rstrip("\n").split("\t").index("uid") - 1
        with (target / f"{name}.log").open("w") as file:
            file.writelines(head)
            for copy in range(times):
                for line in lines:
                    if not line.startswith("#"):
                        values = line.split("\t")
                        values[place] += f"x{copy}"
                        file.write("\t".join(values))
    return target


def read(how: str, directory: Path) -> int:
    """Read a log directory in one way; gives the number of flows or rows."""
    if how == "tapline":
        return sum(1 for _ in LogDirectory(directory))
    if how == "zat":
        return sum(1 for _ in flows_of(directory))
    return sum(len(LogToDataFrame().create_dataframe(str(directory / f"{name}.log"), ts_index=False)) for name in NAMES)


def measure(how: str, directory: Path) -> dict[str, float]:
    """Seconds of CPU and MiB that one way takes, in a process of its own, imports and all before it taken off."""
    command = [sys.executable, __file__, "--read", how, str(directory)]
    return dict(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


def _read_and_tell(how: str, directory: Path) -> None:
    before, started = resource.getrusage(resource.RUSAGE_SELF), time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):
        flows = read(how, directory)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before.ru_maxrss
    print(json.dumps({"flows": flows, "cpu_seconds": time.process_time() - started, "grown_mib": grown / 1024}))


def main() -> None:
    """Print agreement over the log directories below --logs, and the cost of --times copies of --large."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--logs", type=Path, default=LOGS)
    parser.add_argument("--large", type=Path, default=LOGS.parent / "zat")
    parser.add_argument("--times", type=int, default=1000)
    parser.add_argument("--read", nargs=2, metavar=("HOW", "DIRECTORY"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.read:
        return _read_and_tell(options.read[0], Path(options.read[1]))
    with tempfile.TemporaryDirectory() as folder:
        total, found = 0, Counter[str]()
        directories = [path for path in sorted(options.logs.rglob("*")) if is_log_directory(path)]
        for number, path in enumerate(directories):
            flows, other = differences(unpacked(path, Path(folder) / str(number)))
            total, found = total + flows, found + other
        print(
            f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, pandas {pd.__version__}"
        )
        print(f"{total} flows of {len(directories)} log directories; told otherwise by zat: {dict(found) or 'none'}")
        large = many(options.large, Path(folder) / "large", options.times)
        ways = {
            "tapline": "tapline's reader, to flows",
            "zat": "zat and pandas, to flows",
            "frames": "zat, three frames",
        }
        for how, what in ways.items():
            cost = measure(how, large)
            print(
                f"{what}: {cost['flows']:,.0f} in {cost['cpu_seconds']:.1f} s of CPU, {cost['grown_mib']:,.0f} MiB more"
            )
    return None


if __name__ == "__main__":
    main()
