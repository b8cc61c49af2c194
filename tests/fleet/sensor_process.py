"""A simulated sensor as a process: what a real Zeek once published, again and again under names of its own, by shards.

    python -m tests.fleet.sensor_process NAME PORT LEDGER [--shards 2] [--rate 100]

It publishes until SIGTERM, numbered as Zeek numbers, whether or not anybody hears it. LEDGER gets a JSON line for each
publication, before it is sent.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import json
import random
import signal
import time
import zlib
from collections import Counter
from pathlib import Path
from typing import TextIO

import msgspec

from tapline.models.flow import Flow
from tapline.service.sources.bus.events import STATS_TOPIC, BusEvent, Count, FlowsEvent, parse_event
from tapline.service.sources.bus.websocket_frames import event_of, parse_frame
from tests.batches import flows_event
from tests.paths import DATA
from tests.service.sources.bus.sensors import AcknowledgingSensor

RECORDED = DATA / "bus" / "session-2.jsonl"
ORIGINATORS = 20
BATCH_SECONDS = 0.05
STATS_SECONDS = 1.0
LATER_SECONDS = 0.5
"""Between the early form of a flow and its final one."""

SETTLE_SECONDS = 2.0
"""So long it waits before it ends: what was sent has arrived."""


class Publication(msgspec.Struct, frozen=True):
    """A form of a flow as it was published: where, under which number, when (monotonic), and whether a service had
    asked for that shard."""

    uid: str
    shard: int
    seq: int
    at: float
    heard: bool


@functools.cache
def recorded_flows() -> list[Flow]:
    """The flows of the recorded session."""
    frames = [json.loads(line) for line in RECORDED.read_text().splitlines()]
    data = [parse_frame(frame["frame"].encode()) for frame in frames if frame["from"] == "zeek"]
    events = [parse_event(event_of(frame)) for frame in data if frame.type == "data-message"]
    runs = [run for event in events if isinstance(event, FlowsEvent) for run in event.runs]
    return [flow for run in runs for flow in run.flows if flow.payload_lengths]


class SimulatedSensor:
    """Publishes flows of its own originators, each of which is in one shard."""

    def __init__(self, name: str, number: int, shards: int, ledger: TextIO) -> None:
        self._name = name
        self._number = number
        self._shards = shards
        self._ledger = ledger
        self._bus = AcknowledgingSensor()
        self._random = random.Random(number)
        self._run = f"{time.time_ns():x}"
        self._uids = 0
        self._seq: Counter[int] = Counter()
        self._forms: Counter[bool] = Counter()
        self._later: list[tuple[float, Flow]] = []

    async def run(self, port: int, rate: float, ended: asyncio.Event) -> None:
        """Publish until asked to end; then the final forms that are due, and a last flow in every shard, by whose
        number those before it that were lost are known."""
        async with self._bus.running(port):
            stats_at = time.monotonic()
            while not ended.is_set():
                await self._publish([*self._due(time.monotonic()), *self._new(round(rate * BATCH_SECONDS))])
                if time.monotonic() >= stats_at:
                    stats_at += STATS_SECONDS
                    await self._stats()
                await asyncio.sleep(BATCH_SECONDS)
            await self._publish(self._due(float("inf")))
            await self._publish([self._flow(self._originator(shard)) for shard in range(self._shards)])
            await self._stats()
            await asyncio.sleep(SETTLE_SECONDS)

    def _new(self, count: int) -> list[Flow]:
        """Flows that begin: some are early and end later, some of which with nothing new."""
        found = []
        for _ in range(count):
            flow = self._flow(f"10.{self._number}.0.{self._random.randrange(ORIGINATORS) + 1}")
            chance = self._random.random()
            if chance < 0.4:
                found.append(flow)
                continue
            found.append(msgspec.structs.replace(flow, complete=False, conn_state=""))
            if chance < 0.8:
                self._later.append((time.monotonic() + LATER_SECONDS, flow))
        return found

    def _due(self, now: float) -> list[Flow]:
        due = [flow for at, flow in self._later if at <= now]
        self._later = [each for each in self._later if each[0] > now]
        return due

    def _flow(self, originator: str) -> Flow:
        self._uids += 1
        uid = f"{self._name}-{self._run}-{self._uids}"
        flow = self._random.choice(recorded_flows())
        start_us = time.time_ns() // 1000
        replaced = {"uid": uid, "orig_h": originator, "resp_h": "192.0.2.1", "start_us": start_us, "complete": True}
        return msgspec.structs.replace(flow, **replaced)

    def _shard(self, originator: str) -> int:
        return zlib.crc32(originator.encode()) % self._shards

    def _originator(self, shard: int) -> str:
        all_of_them = (f"10.{self._number}.1.{n}" for n in range(256))
        return next(each for each in all_of_them if self._shard(each) == shard)

    async def _publish(self, flows: list[Flow]) -> None:
        for shard in range(self._shards):
            of_shard = [flow for flow in flows if self._shard(flow.orig_h) == shard][:64]
            if not of_shard:
                continue
            event = flows_event(of_shard, self._seq[shard] + 1, sensor=self._name, shard=str(shard))
            heard = bool(self._bus.subscribers(event.topic))
            for flow in of_shard:
                self._seq[shard] += 1
                self._forms[flow.complete] += 1
                entry = Publication(flow.uid, shard, self._seq[shard], time.monotonic(), heard)
                self._ledger.write(f"{msgspec.json.encode(entry).decode()}\n")
            self._ledger.flush()
            await self._bus.publish(event)

    async def _stats(self) -> None:
        counts = [self._seq.total(), self._forms[False], self._forms[True], *[0] * 9]
        args = [Count(1), self._name, Count(time.time_ns() // 1000), *map(Count, counts), -1.0]
        await self._bus.publish(BusEvent(STATS_TOPIC, "Tapline::stats", args))


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("name")
    parser.add_argument("port", type=int)
    parser.add_argument("ledger", type=Path)
    parser.add_argument("--number", type=int, default=1, help="of its network: 10.NUMBER.0.0/16")
    parser.add_argument("--shards", type=int, default=2)
    parser.add_argument("--rate", type=float, default=100, help="flows that begin in a second")
    options = parser.parse_args()
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    with options.ledger.open("a") as ledger:
        sensor = SimulatedSensor(options.name, options.number, options.shards, ledger)
        await sensor.run(options.port, options.rate, ended)


if __name__ == "__main__":
    asyncio.run(main())
