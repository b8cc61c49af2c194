"""How long `/healthz` takes while hostile and heavy bodies arrive, with and without an API key.

    python benchmarks/healthz.py [--mb 30] [--clients 8] [--checkpoint DIR]

A service of its own on a loopback port takes, one kind after the other: invalid flows in one body, the same from all
clients, whole bodies of valid flows, and bodies without the key. Meanwhile `/healthz` is asked every 10 ms. Printed
are the longest and the 99th percentile of its answers, how long the bodies took, what they were told, and the peak of
the service's memory.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import os
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from hardware import describe, report

ROOT = Path(__file__).resolve().parent.parent
KEY = "benchmark-key"
START_SECONDS = 120
POLL_SECONDS = 0.01
CLIENT_SECONDS = 300
FLOW = (
    '{"uid": "C%06d", "start_us": 1700000000000000, "orig_h": "192.0.2.%d", "orig_p": 40000, "resp_h": "198.51.100.1",'
    ' "resp_p": 443, "proto": "tcp", "up": 100, "down": 100, "payload_lengths": [%s], "orig_bytes": "%s",'
    ' "resp_bytes": "%s", "orig_pkts": 120, "resp_pkts": 120, "orig_ip_bytes": 100000, "resp_ip_bytes": 100000}'
)
SERVICE = "from tapline.service.command.cli import main; main()"


def valid_body(megabytes: int) -> bytes:
    """At most 10,000 valid flows, as long as they can be without heads, of about so many MB."""
    lengths = ", ".join(str(100 + step) if step % 2 else str(-900 - step) for step in range(254))
    flow = FLOW % (0, 1, lengths, "1603" * 128, "1703" * 128)
    count = min(10_000, megabytes * 1_000_000 // len(flow))
    return b'{"flows": [' + ",".join(flow.replace("C000000", f"C{index:06}") for index in range(count)).encode() + b"]}"


def invalid_body(megabytes: int) -> bytes:
    """Flows in which nearly every value is wrong."""
    flow = b'{"uid": 1, "start_us": "x", "orig_p": -1, "payload_lengths": ["a", "b", "c"], "orig_bytes": "zz", "no": 0}'
    return b'{"flows": [' + b",".join([flow] * (megabytes * 1_000_000 // len(flow))) + b"]}"


class Served:
    """A service in a process of its own."""

    def __init__(self, key: str | None, options: list[str]) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.key = key
        environment = {name: value for name, value in os.environ.items() if not name.startswith("TAPLINE_")}
        environment["TAPLINE_CONFIG"] = "none"
        if key is not None:
            environment["TAPLINE_API_KEY"] = key
        command = [sys.executable, "-c", SERVICE, "serve", "--port", str(self.port), "--history", "none", *options]
        self.process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + START_SECONDS
        while self.healthz() is None:
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit("the service did not start")
            time.sleep(0.2)

    def healthz(self) -> float | None:
        """Seconds to an answer on a new connection; None where none can be had."""
        started = time.perf_counter()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=CLIENT_SECONDS)
        try:
            connection.request("GET", "/healthz")
            connection.getresponse().read()
        except OSError:
            return None
        finally:
            connection.close()
        return time.perf_counter() - started

    def post(self, body: bytes, told: Counter[str], key: str | None) -> None:
        """Post flows and count what came of it."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=CLIENT_SECONDS)
        headers = {"Content-Type": "application/json", **({"X-API-Key": key} if key else {})}
        try:
            connection.request("POST", "/v1/classify/flows", body, headers)
            answer = connection.getresponse()
            answer.read()
            told[str(answer.status)] += 1
        except OSError as error:
            told[type(error).__name__] += 1
        finally:
            connection.close()

    def status_mb(self, field: str) -> float:
        """A line of the process's status, in MiB."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


@contextlib.contextmanager
def serving(key: str | None, options: list[str]) -> Iterator[Served]:
    """A service for as long as the context lasts."""
    served = Served(key, options)
    try:
        yield served
    finally:
        served.process.terminate()
        try:
            served.process.wait(30)
        except subprocess.TimeoutExpired:
            served.process.kill()
            served.process.wait()


def attack(served: Served, name: str, body: bytes, clients: int, key: str | None) -> float:
    """Post from so many clients at once while `/healthz` is asked; the longest answer in seconds."""
    told: Counter[str] = Counter()
    threads = [threading.Thread(target=served.post, args=(body, told, key)) for _ in range(clients)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    seconds = []
    while any(thread.is_alive() for thread in threads):
        seconds.append(served.healthz() or float("inf"))
        time.sleep(POLL_SECONDS)
    took = time.perf_counter() - started
    p99 = statistics.quantiles(seconds, n=100)[98] if len(seconds) > 1 else seconds[0]
    print(
        f"{name:<44} {1000 * max(seconds):9.0f} {1000 * p99:8.0f} {len(seconds):7} {took:8.1f}"
        f" {served.status_mb('VmHWM'):9.0f}   {dict(told)}",
        flush=True,
    )
    return max(seconds)


def main() -> None:
    """Attack a service without and one with a key."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mb", type=int, default=30, help="size of a body")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--checkpoint", type=Path)
    given = parser.parse_args()
    options = ["--checkpoint", str(given.checkpoint)] if given.checkpoint else []
    valid, invalid = valid_body(given.mb), invalid_body(given.mb)
    print(f"machine {describe()}")
    print("/healthz while                                 max, ms   p99, ms  asked  took, s  peak MiB   told")
    longest = 0.0
    with serving(None, options) as served:
        longest = max(longest, attack(served, f"1 body of {len(invalid) >> 20} MiB of invalid flows", invalid, 1, None))
        longest = max(longest, attack(served, f"{given.clients} such bodies", invalid, given.clients, None))
        longest = max(longest, attack(served, f"1 body of {len(valid) >> 20} MiB of flows", valid, 1, None))
        longest = max(longest, attack(served, f"{given.clients} such bodies", valid, given.clients, None))
    with serving(KEY, options) as served:
        longest = max(longest, attack(served, f"{given.clients} bodies of flows, no key", valid, given.clients, None))
        longest = max(longest, attack(served, f"{given.clients} bodies of flows, with key", valid, given.clients, KEY))
    report(
        f"longest answer of /healthz while {given.clients} bodies of {given.mb} MB arrive", f"{longest * 1000:.0f} ms"
    )


if __name__ == "__main__":
    main()
