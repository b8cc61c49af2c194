"""The bus consumer: flows per second of CPU from the socket to encoded batches.

    python benchmarks/consumer.py [--flows 30000] [--bytes 2900]

A sender process repeats the flow events of a recorded session with a real Zeek, made as long as `--bytes` by their
heads, over a WebSocket on loopback; this process receives, decodes and encodes them by the service's own code. Only
its own CPU time counts.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import time
from pathlib import Path
from typing import Any

from hardware import describe, report
from websockets.asyncio.server import ServerConnection, serve

from tapline.models.encode import encode
from tapline.models.flow import Flow
from tapline.service.metrics import Metrics
from tapline.service.sources.bus.source import BusSource, make_transport
from tapline.service.sources.bus.transport import TlsFiles

SESSION = Path(__file__).resolve().parent.parent / "tests" / "data" / "bus" / "session.jsonl"
BATCH_FLOWS = 256
SEQ, HEADS = 2, 25


def frames(bytes_each: int) -> list[Any]:
    """The recorded flow events, longer heads making up what they lack to `bytes_each`."""
    found = []
    for line in SESSION.read_text().splitlines():
        entry = json.loads(line)
        if entry["from"] != "zeek" or "Tapline::flow" not in entry["frame"]:
            continue
        message = json.loads(entry["frame"])
        heads = message["data"][2]["data"][1]["data"][HEADS]
        room = (bytes_each - len(entry["frame"])) // 2 + len(heads["data"]) // 2
        heads["data"] = "0:" + "ab" * max(0, min(500, room))
        found.append(message)
    return found


def send(pipe: Any, flows: int, bytes_each: int) -> None:
    """The sender: one client, then the end."""
    messages = frames(bytes_each)
    texts = []
    for seq in range(flows):
        message = messages[seq % len(messages)]
        message["data"][2]["data"][1]["data"][SEQ]["data"] = seq + 1
        texts.append(json.dumps(message, separators=(",", ":")))

    async def client(connection: ServerConnection) -> None:
        await connection.recv()
        await connection.send('{"type":"ack","endpoint":"x","version":"recorded"}')
        for text in texts:
            await connection.send(text)
        await asyncio.sleep(60)

    async def main() -> None:
        async with serve(client, "127.0.0.1", 0, compression=None) as server:
            pipe.send((server.sockets[0].getsockname()[1], sum(map(len, texts)) / flows))
            await asyncio.get_running_loop().create_future()

    asyncio.run(main())


async def receive(port: int, flows: int) -> tuple[float, float, int]:
    """CPU seconds, wall seconds and flows missed."""
    batch: list[Flow] = []
    done = asyncio.Event()
    count = 0

    def take(flow: Flow) -> None:
        nonlocal count
        count += 1
        batch.append(flow)
        if len(batch) == BATCH_FLOWS or count == flows:
            encode(batch)
            batch.clear()
        if count == flows:
            done.set()

    source = BusSource(make_transport(f"ws://127.0.0.1:{port}", TlsFiles()), Metrics(), take_flow=take)
    cpu, wall = time.process_time(), time.perf_counter()
    task = asyncio.create_task(source.run())
    async with asyncio.timeout(300):
        await done.wait()
    spent = time.process_time() - cpu, time.perf_counter() - wall
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return *spent, sum(sensor.missed for sensor in source.state.sensors.values())


def main() -> None:
    """Measure once."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--flows", type=int, default=30_000)
    parser.add_argument("--bytes", type=int, default=2900)
    options = parser.parse_args()
    ours, theirs = multiprocessing.Pipe()
    sender = multiprocessing.get_context("spawn").Process(target=send, args=(theirs, options.flows, options.bytes))
    sender.start()
    try:
        port, size = ours.recv()
        cpu, wall, missed = asyncio.run(receive(port, options.flows))
    finally:
        sender.kill()
        sender.join()
    print(f"machine  {describe()}")
    print(f"input    {options.flows} flow events of {size:.0f} bytes over a WebSocket on loopback")
    print(f"tapline  {options.flows / cpu:.0f} flows per second of CPU ({cpu:.1f} s CPU, {wall:.1f} s wall)")
    report(
        f"bus consumer, {options.flows} events of {size:.0f} bytes",
        f"**{options.flows / cpu:.0f} flows per second of CPU** from the socket to encoded batches",
    )
    if missed:
        raise SystemExit(f"{missed} flows missed")


if __name__ == "__main__":
    main()
