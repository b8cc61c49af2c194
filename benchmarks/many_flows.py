"""Memory of the service over millions of flows, and of service and capture reader over a SYN scan.

    python benchmarks/many_flows.py [--flows 3000000] [--scan 1000000]

The flows take the live path: fair queue, batcher, encoding, delivery; only the engine is one that computes nothing, so
that millions take minutes. Each has an originator of its own, and every fourth is an early form whose end never comes.
The scan is that many SYNs from one host to as many addresses: to the service as flows without payload, and to the
built-in reader as a capture. Traces are off here; `memory.py` is about them. Ends by itself.
"""

from __future__ import annotations

import argparse
import asyncio
import struct
import tempfile
import time
from pathlib import Path

import numpy as np
from hardware import describe, report

from tapline.models.checkpoint import Checkpoint
from tapline.models.encode import TokenBatch
from tapline.models.flow import Flow
from tapline.service.engines.engine import Scores
from tapline.service.inference.classifier import Classifier, FlowOutcome
from tapline.service.log_lines import silence_logs
from tapline.service.runtime import Service
from tapline.service.settings import Settings
from tapline.service.sources.capture import CaptureReader

READINGS = 8
WAITING_FLOWS = 4096
WARM_SHARE = 0.25
"""Memory after so large a share of the flows is what the rest is compared with: by then every bounded table is full."""
GLOBAL_HEADER = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 262144, 1)


def resident_mb(field: str = "VmRSS") -> float:
    """Resident memory of this process now, or at most (`VmHWM`), MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


class NoEngine:
    """Gives every flow the same scores."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.student = None

    def run(self, batch: TokenBatch) -> Scores:
        """Zeros, of the shapes that an engine gives."""
        network = self.checkpoint.network
        zeros = (np.zeros((len(batch), width), np.float32) for width in (network.n_class, 2 * network.d_model))
        return Scores(*zeros)


class QuickService(Service):
    """The service with an engine that computes nothing."""

    def _load_engines(self, directory: Path) -> list[Classifier]:
        return [Classifier(NoEngine(loaded.checkpoint)) for loaded in super()._load_engines(directory)]


def flow_of(number: int, *, payload: bool) -> Flow:
    """A flow with an originator of its own, or a SYN of a scan."""
    orig_h = f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}" if payload else "10.0.0.1"
    lengths = [40 + number % 1400, -(60 + number % 1300), 300] if payload else []
    content = number.to_bytes(8) * 16 if payload else b""
    return Flow(
        f"C{number:017x}", number, 5_000, orig_h, 1024 + number % 60_000,
        f"11.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}", 443, "tcp",
        2 * payload, int(payload), lengths, content, content, complete=not payload or number % 4 != 0,
    )  # fmt: skip


async def feed(service: Service, flows: int, *, payload: bool) -> list[float]:
    """Give the service so many flows as fast as it takes them; memory at `READINGS` moments, MiB."""
    delivered = 0

    def deliver(flow: Flow, outcome: FlowOutcome | None) -> None:
        nonlocal delivered
        delivered += outcome is not None

    readings = []
    for number in range(flows):
        service.pipeline.take(flow_of(number, payload=payload), deliver)
        if number % 256 == 255:
            await asyncio.sleep(0)
            while service.pipeline.waiting_flows > WAITING_FLOWS:
                await asyncio.sleep(0.001)
        if (number + 1) % (flows // READINGS) == 0:
            readings.append(resident_mb())
    await service.pipeline.drain(60)
    if delivered != flows * payload:
        raise RuntimeError(f"{delivered} of {flows * payload} flows delivered")
    return readings


def grown(readings: list[float]) -> float:
    """How much more memory there is at the end than when the tables were full, MiB."""
    return readings[-1] - readings[int(WARM_SHARE * len(readings)) - 1]


async def measure_service(flows: int, scan: int) -> None:
    """Millions of flows, then the scan."""
    settings = Settings(traces=["none"], history="none", zeek=["ws://127.0.0.1:9"])
    service = QuickService(settings)
    async with service.running():
        idle_mb = resident_mb()
        for what, count, payload in (
            ("flows of as many hosts", flows, True),
            ("SYNs of a scan", scan, False),
        ):
            cpu, started = time.process_time(), time.perf_counter()
            readings = await feed(service, count, payload=payload)
            cpu, wall = time.process_time() - cpu, time.perf_counter() - started
            print("  ".join(f"{reading:.0f}" for reading in readings), "MB")
            counts = service.pipeline.counts
            print(f"{cpu:.0f} s of CPU, {wall:.0f} s; shed {counts.shed}, failed {counts.failed}")
            report(
                f"service, {count:,} {what}, {count / cpu:,.0f} per second of CPU",
                f"{idle_mb:.0f} MB idle, {readings[-1]:.0f} MB at the end, {grown(readings):+.1f} MB since a quarter "
                "of them",
            )


def write_scan(path: Path, scan: int) -> None:
    """A capture of so many SYNs, a tenth of a millisecond apart, each to another address."""
    with path.open("wb") as file:
        file.write(GLOBAL_HEADER)
        for number in range(scan):
            ip = struct.pack(">BBHHHBBH4sI", 0x45, 0, 40, 1, 0, 64, 6, 0, bytes((10, 0, 0, 1)), 0x0B000000 + number)
            tcp = struct.pack(">HHIIBBHHH", 40_000, 443, number, 0, 0x50, 2, 65535, 0, 0)
            frame = bytes(12) + b"\x08\x00" + ip + tcp
            file.write(
                struct.pack("<IIII", 1_700_000_000 + number // 10_000, number % 10_000 * 100, len(frame), len(frame))
            )
            file.write(frame)


def measure_reader(scan: int) -> None:
    """The scan as a capture, by the built-in reader."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scan.pcap"
        write_scan(path, scan)
        size_mb = path.stat().st_size / 1e6
        readings, cpu, flows = [], time.process_time(), 0
        for _ in CaptureReader(path):
            flows += 1
            if flows % (scan // READINGS) == 0:
                readings.append(resident_mb())
        cpu = time.process_time() - cpu
    if flows != scan:
        raise RuntimeError(f"{flows} of {scan} flows read")
    print("  ".join(f"{reading:.0f}" for reading in readings), "MB")
    report(
        f"built-in reader, {scan:,} SYNs of a scan, {size_mb:.0f} MB",
        f"{cpu:.0f} s of CPU, {readings[-1]:.0f} MB at the end, {grown(readings):+.1f} MB since a quarter of them",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flows", type=int, default=3_000_000)
    parser.add_argument("--scan", type=int, default=1_000_000)
    options = parser.parse_args()
    silence_logs()
    print(describe())
    measure_reader(options.scan)
    asyncio.run(measure_service(options.flows, options.scan))


if __name__ == "__main__":
    main()
