"""What an EVE file costs: verdicts of a capture given to it as the live path does, and written in its thread.

    python benchmarks/eve.py [--flows 100000] [--outputs 1]

The flows of a bundled capture are given again and again, with other uids, as fast as they are taken. Printed are the
time of the event loop for a flow, the CPU time of the process for a flow (the record made, written and accounted for),
and the bytes of a record. Ends by itself.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import tempfile
import time
from pathlib import Path

import msgspec
from hardware import describe, report

from tapline.models.flow import Flow
from tapline.models.verdict import Alternative, Verdict
from tapline.service.metrics import Metrics
from tapline.service.process.supervisor import Supervisor
from tapline.service.sinks.outputs import Outputs
from tapline.service.sources.capture import read_capture

CAPTURES = Path(__file__).parents[1] / "tests" / "data" / "captures"
WAITING = 10_000
VERDICT = Verdict(
    "TLS", "TLS", 0.987654, False, [Alternative("QUIC", 0.004)], "flow-protocols", "2", True, "TLS", False
)


def some_flows() -> list[Flow]:
    """Flows with payload of a phone."""
    return [flow for flow in read_capture(CAPTURES / "android.pcap") if flow.payload_lengths]


async def measure(outputs: Outputs, count: int) -> tuple[float, float]:
    """Seconds of the event loop, and of the CPU, for a flow."""
    flows = itertools.cycle(some_flows())
    supervisor = Supervisor(Metrics())
    parts = outputs.start(supervisor)
    loop_seconds, started = 0.0, time.process_time()
    for number in range(count):
        flow = msgspec.structs.replace(next(flows), uid=f"C{number:017x}")
        at = time.perf_counter()
        outputs.flow("ws://sensor:27759", flow, VERDICT)
        loop_seconds += time.perf_counter() - at
        while max(each.queued for each in outputs.deliveries) > WAITING:
            await asyncio.sleep(0.001)
    while max(each.queued for each in outputs.deliveries):
        await asyncio.sleep(0.001)
    cpu_seconds = time.process_time() - started
    await supervisor.stop(parts)
    await outputs.stop(10)
    return loop_seconds / count, cpu_seconds / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flows", type=int, default=100_000)
    parser.add_argument("--outputs", type=int, default=1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        texts = [f"eve:{folder}/{number}.json?rotate_mb=0" for number in range(given.outputs)]
        outputs = Outputs(texts, Path(folder), Metrics())
        loop, cpu = asyncio.run(measure(outputs, given.flows))
        counts = outputs.deliveries[0].counts
        size = Path(folder, "0.json").stat().st_size / counts.written
    print(describe())
    print(f"{given.flows:,} flows to {given.outputs} EVE files: {counts.written:,} written, {counts.dropped:,} dropped")
    report(
        f"EVE file, {given.outputs} of them",
        f"event loop {loop * 1e6:.1f} us a flow, CPU {cpu * 1e6:.0f} us a flow in all, {size:.0f} bytes a record",
    )


if __name__ == "__main__":
    main()
