"""Every flow of a capture accounted for, from a real Zeek over the bus to the verdicts in Zeek's log.

    python benchmarks/accounting.py CAPTURE [--queue 20000] [--checkpoint DIR]

Runs `zeek -r` with the package's replay script and `tapline serve` beside it, on loopback ports, in temporary folders;
needs `zeek` on PATH. Prints Zeek's own counts, what the service received and what became of it, and the join of
tapline.log with conn.log on `uid`; fails if a flow is unaccounted for.
"""

from __future__ import annotations

import argparse
import json
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from hardware import describe

ROOT = Path(__file__).resolve().parent.parent
TAPLINE = [sys.executable, "-c", "from tapline.service.command.cli import main; main()"]


def free_port() -> int:
    """A port of the loopback interface that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def get(port: int, path: str) -> Any:
    """A JSON answer of the service."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
        return json.load(answer)


def wait_until_ready(port: int) -> None:
    """Wait until the service answers."""
    for _ in range(200):
        try:
            get(port, "/healthz")
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise SystemExit("the service did not start")


def uids(log: Path) -> set[str]:
    """The uids of a Zeek log in its own format."""
    found: set[str] = set()
    column = 0
    with log.open(errors="replace") as lines:
        for line in lines:
            if line.startswith("#fields"):
                column = line.rstrip("\n").split("\t").index("uid") - 1
            elif not line.startswith("#"):
                found.add(line.split("\t")[column])
    return found


def main() -> None:
    """Replay once and compare the accounts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("capture", type=Path)
    parser.add_argument("--queue", type=int, default=20_000, help="most live flows waiting in the service")
    parser.add_argument("--checkpoint", type=Path)
    options = parser.parse_args()
    bus, api = free_port(), free_port()
    command = [*TAPLINE, "serve", "--port", str(api), "--zeek", f"ws://127.0.0.1:{bus}"]
    command += ["--live-queue-flows", str(options.queue), "--live-deadline-seconds", "0"]  # a capture at full speed
    if options.checkpoint:
        command += ["--checkpoint", str(options.checkpoint.resolve())]
    with tempfile.TemporaryDirectory() as folder:
        command += ["--data-dir", folder]
        service = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
        try:
            wait_until_ready(api)
            started = time.perf_counter()
            zeek = ["zeek", "-r", str(options.capture.resolve()), str(ROOT / "zeek/scripts/replay.zeek")]
            zeek += ["-C", f"Tapline::listen_port={bus}/tcp"]
            subprocess.run(zeek, cwd=folder, check=True, stderr=subprocess.DEVNULL, timeout=3600)
            seconds = time.perf_counter() - started
            account = get(api, "/v1/live")
        finally:
            service.terminate()
            service.wait(30)
        connections, verdicts = uids(Path(folder) / "conn.log"), uids(Path(folder) / "tapline.log")
    report(options.capture, seconds, account, connections, verdicts)


def report(capture: Path, seconds: float, account: Any, connections: set[str], verdicts: set[str]) -> None:
    """Print both accounts; exits with an error where they differ."""
    counts = account["counts"]
    (sensor,) = account["buses"][0]["sensors"]
    zeek = {name: int(value) for name, value in sensor["zeek"].items() if name != "loss_percent"}
    ended = zeek["finals"] + zeek["unchanged"] + zeek["without_payload"] + zeek["filtered"]
    outcome = counts["delivered"] + counts["superseded"] + counts["shed"] + counts["skipped"] + counts["failed"]
    print(f"machine   {describe()}")
    bus = account["buses"][0]
    print(f"input     {capture.name}: {zeek['packets']} packets, {len(connections)} connections, {seconds:.0f} s")
    print(f"Zeek      {zeek['finals']} final + {zeek['unchanged']} unchanged + {zeek['filtered']} filtered")
    print(f"          + {zeek['without_payload']} without payload = {ended}; {zeek['early']} early before")
    print(f"service   {counts['received']} events received, {sensor['missed']} missed, {bus['refused']} refused")
    print(f"          {counts['delivered']} delivered + {counts['superseded']} superseded + {counts['shed']} shed")
    print(f"          + {counts['skipped']} skipped + {counts['failed']} failed = {outcome}")
    print(f"          {counts['flows']} distinct flows, {counts['reused']} verdicts reused")
    print(f"back      {len(verdicts)} flows in tapline.log, {len(verdicts - connections)} of them not in conn.log")
    for entry in account["shed_by_subject"][:5]:
        print(f"          shed of {entry['subject']}: {entry['flows']}")
    wrong = [
        what
        for what, holds in (
            ("Zeek's own counts differ from conn.log", ended == len(connections)),
            ("events were lost on the bus", counts["received"] == zeek["finals"] + zeek["early"]),
            ("flows are unaccounted for in the service", outcome == counts["received"]),
            ("verdicts without a connection", verdicts <= connections),
            ("verdicts that never came back", bool(counts["shed"]) or len(verdicts) == counts["flows"]),
        )
        if not holds
    ]
    if wrong:
        raise SystemExit("; ".join(wrong))


if __name__ == "__main__":
    main()
