"""What a flow costs a whole `tapline serve`: CPU of the process from the bus to the history, and of the database.

    PYTHONPATH=. python benchmarks/service_cost.py [CAPTURE|FOLDER...] [--rate 300] [--seconds 30] [--postgresql]

A simulated sensor publishes real flows again and again at a steady rate, 64 to an event, compressed as the plugin does,
and acknowledges the verdicts that come back; each round has hosts of its own. The service is a process with every
checkpoint that ships; its CPU seconds, less those of its start, are divided by the flows. It runs without a history,
and with one in SQLite and, if asked to, in a PostgreSQL server of its own (Debian's package), whose CPU is told apart.
Windows of traces do not end within a run: what scoring them costs is in `memory.py`. At last the series of `/metrics`
are counted with one sensor and with five.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

import msgspec
from hardware import describe, report
from idle import resident_mb, wait_until_ready
from load import real_flows

from tapline.models.flow import Flow
from tapline.service.sources.bus.events import STATS_TOPIC, BusEvent, Count
from tests.batches import flows_event
from tests.service.history import postgres
from tests.service.sources.bus.sensors import AcknowledgingSensor

CAPTURES = Path(__file__).resolve().parent.parent / "tests" / "data" / "captures"
BATCH_FLOWS = 64
WAIT_SECONDS = 120
SENSORS = (1, 5)
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Cost:
    """CPU seconds of the service, of its event loop alone, and of the database for so many flows; memory in MB."""

    flows: int
    service_cpu: float
    loop_cpu: float
    database_cpu: float
    memory_mb: float


def cpu_seconds(pid: int, *, below: bool = False) -> float:
    """CPU seconds of a process, or of what is below it, too: what runs now, and what has ended and was waited for."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    own = sum(map(int, fields[11:15] if below else fields[11:13])) / TICKS
    if not below:
        return own
    tasks = Path(f"/proc/{pid}/task").iterdir()
    children = [int(child) for task in tasks for child in (task / "children").read_text().split()]
    return own + sum(cpu_seconds(child, below=True) for child in children)


def loop_cpu_seconds(pid: int) -> float:
    """CPU seconds of the first thread of a process, which of a service is its event loop."""
    fields = Path(f"/proc/{pid}/task/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / TICKS


def of_round(flow: Flow, number: int, round_: int) -> Flow:
    """A flow under a name of its own; the hosts of a round are those of no other."""
    host = IPv4Address(0x0A000000 + (round_ * 65_536 + zlib.crc32(flow.orig_h.encode()) % 65_536) % 0xFFFFFF)
    return msgspec.structs.replace(
        flow, uid=f"C{number:017x}", orig_h=str(host), resp_h="192.0.2.1" if ":" in flow.resp_h else flow.resp_h
    )


async def publish(sensor: AcknowledgingSensor, flows: list[Flow], rate: float, first: int, count: int) -> None:
    """So many flows from number `first` on, at a steady rate."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    for at in range(0, count, BATCH_FLOWS):
        await asyncio.sleep(began + at / rate - loop.time())
        numbers = range(first + at, first + min(at + BATCH_FLOWS, count))
        batch = [of_round(flows[number % len(flows)], number, number // len(flows)) for number in numbers]
        await sensor.publish(flows_event(batch, first + at + 1))


def answer(port: int, route: str) -> bytes:
    """What the service answers."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{route}", timeout=30) as found:
        return bytes(found.read())


async def settled(port: int, received: int, missed: int = 0) -> None:
    """Wait until so many flows have come and nothing waits any more, verdicts on their way back included.

    Raises:
        SystemExit: some were lost, beside those that are to be missed.
    """
    async with asyncio.timeout(WAIT_SECONDS):
        while True:
            live = msgspec.json.decode(await asyncio.to_thread(answer, port, "/v1/live"))
            pending = live["waiting"] + sum(bus["pending_verdicts"] for bus in live["buses"])
            pending += (live["history"] or {}).get("pending", 0)
            if live["counts"]["received"] >= received and not pending:
                break
            await asyncio.sleep(0.3)
    accounts = [account for bus in live["buses"] for account in bus["sensors"]]
    lost = live["counts"]["shed"] + live["counts"]["failed"] + sum(each["missed"] for each in accounts) - missed
    if lost:
        raise SystemExit(f"{lost} flows were shed, failed or missed: the rate is too high for this machine")


@contextlib.contextmanager
def service(port: int, buses: list[str], history: str, folder: str) -> Iterator[subprocess.Popen[bytes]]:
    """A service that is ready."""
    program = "from tapline.service.command.cli import main; main()"
    words = ["serve", "--port", str(port), "--dashboard", "off", "--history", history]
    words += [word for bus in buses for word in ("--zeek", bus)]
    process = subprocess.Popen(
        [sys.executable, "-c", program, *words, "--data-dir", folder, "--live-deadline-seconds", "0"],
        env=os.environ | {"TAPLINE_CONFIG": "none"}, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_until_ready(process, port)
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


async def measure(flows: list[Flow], rate: float, seconds: float, history: str, database_pid: int | None) -> Cost:
    """One service; the first second of flows is not counted."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        async with AcknowledgingSensor().running() as sensor:
            with service(port, [sensor.url], history, folder) as process:

                def used() -> tuple[float, float, float]:
                    database = cpu_seconds(database_pid, below=True) if database_pid is not None else 0.0
                    return cpu_seconds(process.pid), loop_cpu_seconds(process.pid), database

                await sensor.wait_for_client()
                warm, count = round(rate), round(rate * seconds)
                await publish(sensor, flows, rate, 0, warm)
                await settled(port, warm)
                before = used()
                await publish(sensor, flows, rate, warm, count)
                await settled(port, warm + count)
                after = used()
                spent = [late - early for early, late in zip(before, after, strict=True)]
                return Cost(count, *spent, resident_mb(process.pid))


async def all_series() -> dict[int, int]:
    """The series of `/metrics` by the number of sensors, each of which has sent flows, with a gap, and counters."""
    found = {}
    [flow, *_] = real_flows([CAPTURES])
    for count in SENSORS:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        async with contextlib.AsyncExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            sensors = [await stack.enter_async_context(AcknowledgingSensor().running()) for _ in range(count)]
            stack.enter_context(service(port, [sensor.url for sensor in sensors], "sqlite", folder))
            for number, sensor in enumerate(sensors):
                await sensor.wait_for_client()
                name = f"tap-{number}"
                for seq in (1, 3):
                    one = msgspec.structs.replace(flow, uid=f"{name}-{seq}", complete=True)
                    await sensor.publish(flows_event([one], seq, sensor=name))
                args = [Count(1), name, *map(Count, [0] * 13), 0.0]
                await sensor.publish(BusEvent(STATS_TOPIC, "Tapline::stats", args))
            await settled(port, 2 * count, missed=count)
            lines = (await asyncio.to_thread(answer, port, "/metrics")).decode().splitlines()
            found[count] = sum(not line.startswith("#") for line in lines)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("captures", nargs="*", type=Path, default=[CAPTURES])
    parser.add_argument("--rate", type=float, default=300, help="flows in a second")
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--postgresql", action="store_true", help="with a history in PostgreSQL, too")
    options = parser.parse_args()
    flows = [msgspec.structs.replace(flow, complete=True) for flow in real_flows(options.captures)]
    print(f"machine  {describe()}")
    print(f"input    {len(flows)} real flows, {options.rate:.0f} a second for {options.seconds:.0f} s")
    with contextlib.ExitStack() as stack:
        places: list[tuple[str, str, int | None]] = [("no history", "none", None), ("SQLite", "sqlite", None)]
        if options.postgresql:
            server = stack.enter_context(postgres.server())
            places.append(("PostgreSQL", server.database(), server.pid))
        for name, history, pid in places:
            cost = asyncio.run(measure(flows, options.rate, options.seconds, history, pid))
            each, loop, database = (
                1e6 * cpu / cost.flows for cpu in (cost.service_cpu, cost.loop_cpu, cost.database_cpu)
            )
            beside = f", and {database:.0f} of the server" if pid is not None else ""
            report(
                f"a flow through `tapline serve`, {name}, {cost.flows} by {len(flows)} real ones",
                f"**{each:.0f} us of CPU**, {loop:.0f} of them in the event loop{beside}; {cost.memory_mb:.0f} MB",
            )
        for count, series in asyncio.run(all_series()).items():
            report(f"`/metrics` of a service with {count} sensors", f"{series} series")


if __name__ == "__main__":
    main()
