"""The bus consumer: flows per second of CPU from the socket to `Flow`s, and to encoded batches, by format of the bus.

    PYTHONPATH=. python benchmarks/consumer.py [CAPTURE...] [--flows 60000] [--rounds 3]

A sender process sends the flows of real captures (without any named: `tests/data/captures`) again and again over a
WebSocket on loopback, as Zeek does: each alone (format 1), and 64 to an event (format 2), as the scripts pack them and
compressed as the plugin does. This process receives and decodes them by the service's own code. Only its own CPU time
counts; formats take turns, and the median of the rounds is told.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import multiprocessing
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hardware import describe, report, short
from websockets.asyncio.server import ServerConnection, serve

from tapline.models.encode import encode
from tapline.models.flow import Flow
from tapline.service.metrics import Metrics
from tapline.service.sources.bus.events import BusEvent
from tapline.service.sources.bus.source import BusSource, make_transport
from tapline.service.sources.bus.transport import TlsFiles
from tapline.service.sources.bus.websocket_frames import event_frame
from tapline.service.sources.capture import CaptureError, CaptureReader, ReadOptions
from tests.batches import flow_event, flows_event

CAPTURES = Path(__file__).resolve().parent.parent / "tests" / "data" / "captures"
BATCH_FLOWS = 64
ENCODED_TOGETHER = 256
MOST_FLOWS = 20_000

Events = Callable[[Sequence[Flow], int], Iterator[BusEvent]]
"""The events of flows, the first of which has a number."""


def alone(flows: Sequence[Flow], seq: int) -> Iterator[BusEvent]:
    """Format 1."""
    return (flow_event(flow, number) for number, flow in enumerate(flows, seq))


def packed(flows: Sequence[Flow], seq: int) -> Iterator[BusEvent]:
    """Format 2 as the scripts pack it."""
    yield flows_event(flows, seq, text=True)


def compressed(flows: Sequence[Flow], seq: int) -> Iterator[BusEvent]:
    """Format 2 as the plugin packs it."""
    yield flows_event(flows, seq)


FORMATS: dict[str, Events] = {"format 1": alone, "format 2": packed, "format 2, zlib": compressed}


def real_flows(captures: Sequence[Path]) -> list[Flow]:
    """Flows with payload, mixed, each with a uid of its own as long as Zeek's."""
    found: list[Flow] = []
    for path in captures:
        try:
            found += [flow for flow in CaptureReader(path, ReadOptions(heads="header")) if flow.payload_lengths]
        except CaptureError:
            continue
    random.Random(0).shuffle(found)
    for number, flow in enumerate(found):
        flow.uid = f"C{random.Random(number).randbytes(8).hex()}a"
    return found[:MOST_FLOWS]


def send(pipe: Any, flows: list[Flow], count: int, name: str) -> None:
    """The sender: one client, then the end."""
    texts = []
    for first in range(0, count, BATCH_FLOWS):
        batch = [flows[number % len(flows)] for number in range(first, min(first + BATCH_FLOWS, count))]
        texts += [event_frame(event).decode() for event in FORMATS[name](batch, first + 1)]

    async def client(connection: ServerConnection) -> None:
        await connection.recv()
        await connection.send('{"type":"ack","endpoint":"x","version":"simulated"}')
        for text in texts:
            await connection.send(text)
        await asyncio.sleep(60)

    async def main() -> None:
        async with serve(client, "127.0.0.1", 0, compression=None) as server:
            pipe.send((server.sockets[0].getsockname()[1], sum(map(len, texts)) / count))
            await asyncio.get_running_loop().create_future()

    asyncio.run(main())


async def receive(port: int, flows: int, *, encoded: bool) -> tuple[float, int]:
    """CPU seconds, and flows missed."""
    batch: list[Flow] = []
    done = asyncio.Event()
    count = 0

    def take(flow: Flow) -> None:
        nonlocal count
        count += 1
        batch.append(flow)
        if len(batch) == ENCODED_TOGETHER or count == flows:
            if encoded:
                encode(batch)
            batch.clear()
        if count == flows:
            done.set()

    source = BusSource(make_transport(f"ws://127.0.0.1:{port}", TlsFiles()), Metrics(), take_flow=take)
    cpu = time.process_time()
    task = asyncio.create_task(source.run())
    async with asyncio.timeout(300):
        await done.wait()
    spent = time.process_time() - cpu
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return spent, sum(sensor.missed for sensor in source.state.sensors.values())


def measure(flows: list[Flow], count: int, name: str, *, encoded: bool) -> tuple[float, float]:
    """Flows per second of CPU, and bytes on the bus per flow.

    Raises:
        SystemExit: flows were missed.
    """
    ours, theirs = multiprocessing.Pipe()
    sender = multiprocessing.get_context("spawn").Process(target=send, args=(theirs, flows, count, name))
    sender.start()
    try:
        port, size = ours.recv()
        cpu, missed = asyncio.run(receive(port, count, encoded=encoded))
    finally:
        sender.kill()
        sender.join()
    if missed:
        raise SystemExit(f"{missed} flows missed")
    return count / cpu, size


def main() -> None:
    """Measure every format in turn."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("captures", nargs="*", type=Path)
    parser.add_argument("--flows", type=int, default=60_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    logging.getLogger("tapline").setLevel(logging.ERROR)
    flows = real_flows(options.captures or sorted(path for path in CAPTURES.rglob("*.pcap*")))
    packets = sum(len(flow.payload_lengths) + len(flow.heads) for flow in flows) / len(flows)
    print(f"machine  {describe()}")
    print(f"input    {len(flows)} flows of real captures, {packets:.0f} lengths and heads each, {options.flows} sent")
    rates: dict[tuple[str, bool], list[float]] = {(name, encoded): [] for name in FORMATS for encoded in (False, True)}
    sizes = {}
    for _ in range(options.rounds):
        for name, encoded in rates:
            rate, sizes[name] = measure(flows, options.flows, name, encoded=encoded)
            rates[name, encoded].append(rate)
    print("format           bytes/flow   to Flows   to encoded batches (flows per second of CPU)")
    for name in FORMATS:
        bulk, whole = (statistics.median(rates[name, encoded]) for encoded in (False, True))
        print(f"{name:16} {sizes[name]:10.0f} {bulk:10.0f} {whole:10.0f}")
        report(
            f"bus consumer, {name}, {options.flows} real flows, {sizes[name]:.0f} bytes each on the bus",
            f"**{whole:.0f} flows per second of CPU** from the socket to encoded batches, {bulk:.0f} to flows",
        )
        if name == "format 2, zlib":
            short("from a sensor's bus to encoded batches, flows per CPU second", "-", f"{whole:,.0f}")


if __name__ == "__main__":
    main()
