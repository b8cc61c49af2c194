"""The load of a soak and its faults: sensors, uploads and requests, good and bad, until they are told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import random
import signal
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import msgspec
from websockets.exceptions import ConnectionClosed

from tapline.models.flow import Flow, flow_to_line
from tapline.service.inference.trace_loading import SHIPPED_TRACES
from tapline.service.sources.capture import ReadOptions, read_capture
from tapline.service.traces.window_state import JOURNAL
from tests.batches import flows_event
from tests.fuzz import captures, frames
from tests.fuzz.mutation import spoil
from tests.paths import DATA
from tests.service.sources.bus.sensors import AcknowledgingSensor
from tests.soak.process import children

ANDROID = DATA / "captures" / "android.pcap"
FLOWS_PER_SECOND = 100
EXPECTED = {200, 400, 413, 415, 422, 429, 503, 507}
"""Answers that a client may get, whatever it sends; anything else is a fault."""


@dataclass
class Load:
    """Everything that is done to one service."""

    api: int
    pid: int
    state: Path
    random: random.Random
    sent: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    injected: Counter[str] = field(default_factory=Counter)
    slowest_health_ms: float = 0.0
    unexpected: list[str] = field(default_factory=list)

    def client(self) -> httpx.AsyncClient:
        """A client of the service."""
        return httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.api}", timeout=60)

    async def flows(self, sensor: AcknowledgingSensor, *, seconds: float) -> None:
        """Publish real flows, early and final forms, numbered, while the time lasts."""
        flows = real_flows()
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        while loop.time() < until:
            for flow in self.random.sample(flows, 10):
                uid = f"S{self.sent}"
                forms = [msgspec.structs.replace(flow, uid=uid, complete=complete) for complete in (False, True)]
                with contextlib.suppress(ConnectionClosed):  # cut in this moment: the service misses them
                    await sensor.publish(flows_event(forms, self.sent + 1))
                self.sent += len(forms)
            await asyncio.sleep(20 / FLOWS_PER_SECOND)

    async def last_flow(self, sensor: AcknowledgingSensor) -> None:
        """Publish one more flow when nothing is cut any more, by whose number those before it are missed."""
        await sensor.wait_for_client()
        self.sent += 1
        await sensor.publish(flows_event([msgspec.structs.replace(real_flows()[0], uid="last")], self.sent))

    async def wrong_frames(self, sensor: AcknowledgingSensor) -> None:
        """Publish frames that are malformed."""
        while True:
            with contextlib.suppress(ConnectionClosed):
                await sensor.send(frames.frame(self.random).decode("utf-8", "replace"))
            self.injected["malformed frames"] += 1
            await asyncio.sleep(0.05)

    async def cuts(self, sensors: list[AcknowledgingSensor]) -> None:
        """Cut connections to sensors."""
        while True:
            await asyncio.sleep(self.random.uniform(4, 9))
            await self.random.choice(sensors).cut()
            self.injected["bus connections cut"] += 1

    async def uploads(self) -> None:
        """Upload captures, real and mutated; now and then go away in the middle."""
        async with self.client() as client:
            while True:
                body = ANDROID.read_bytes() if self.random.random() < 0.3 else captures.file(self.random)
                if self.random.random() < 0.2:
                    await self._leave(body)
                    continue
                accept = self.random.choice(("application/json", "application/x-ndjson"))
                await self._post(client, "/v1/classify/pcap", body, accept)

    async def requests(self) -> None:
        """Send flows as JSON, as they are and spoiled."""
        flows = [flow_to_line(flow) for flow in read_capture(ANDROID)][:50]
        whole = msgspec.json.encode({"flows": flows})
        async with self.client() as client:
            while True:
                body = whole if self.random.random() < 0.5 else spoil(whole, self.random)
                await self._post(client, "/v1/classify/flows", body, "application/json")
                await asyncio.sleep(0.2)

    async def reloads(self) -> None:
        """Load the default model and a trace model again, and one that there is not."""
        async with self.client() as client:
            while True:
                await asyncio.sleep(self.random.uniform(8, 12))
                found = [
                    (await client.post(f"/v1/models/{name}/load")).status_code
                    for name in ("flow-protocols", SHIPPED_TRACES[0], "none")
                ]
                self.injected["models loaded again"] += 1
                if found[-1] != 404 or not {200, 409, 503}.issuperset(found[:-1]):
                    self.unexpected.append(f"loading models: {found}")

    async def kills(self) -> None:
        """Kill a process that reads a capture."""
        while True:
            await asyncio.sleep(self.random.uniform(3, 6))
            for pid in children(self.pid)[:1]:
                if b"capture_worker" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(pid, signal.SIGKILL)
                    self.injected["reading processes killed"] += 1

    async def full_disk(self) -> None:
        """Let the journal of traces have no room for a while."""
        journal = self.state / SHIPPED_TRACES[0] / JOURNAL
        while True:
            await asyncio.sleep(self.random.uniform(10, 15))
            journal.unlink(missing_ok=True)
            journal.symlink_to("/dev/full")
            self.injected["times without room"] += 1
            await asyncio.sleep(3)
            for path in (journal, journal.with_name(f"{journal.name}.old")):
                if path.is_symlink():
                    path.unlink()

    async def health(self) -> None:
        """Ask for life signs and metrics."""
        loop = asyncio.get_running_loop()
        async with self.client() as client:
            while True:
                asked = loop.time()
                answer = await client.get("/healthz")
                self.slowest_health_ms = max(self.slowest_health_ms, (loop.time() - asked) * 1000)
                if answer.status_code != 200 or (await client.get("/metrics")).status_code != 200:
                    self.unexpected.append("health or metrics")
                await asyncio.sleep(0.5)

    async def _post(self, client: httpx.AsyncClient, route: str, body: bytes, accept: str) -> None:
        kind = "application/json" if route.endswith("flows") else "application/octet-stream"
        answer = await client.post(route, content=body, headers={"accept": accept, "content-type": kind})
        self.statuses[answer.status_code] += 1
        if answer.status_code not in EXPECTED:
            self.unexpected.append(f"{route}: {answer.status_code} {answer.text[:200]}")
        elif "ndjson" in answer.headers["content-type"]:
            last = msgspec.json.decode(answer.text.splitlines()[-1])
            if not {"summary", "error"} & set(last):
                self.unexpected.append(f"{route}: the stream ended without a summary")
        else:
            msgspec.json.decode(answer.content)

    async def _leave(self, body: bytes) -> None:
        """Send a part of a capture and go."""
        _, writer = await asyncio.open_connection("127.0.0.1", self.api)
        head = f"POST /v1/classify/pcap HTTP/1.1\r\nhost: 127.0.0.1:{self.api}\r\ncontent-length: {len(body)}\r\n\r\n"
        try:
            writer.write(head.encode() + body[: self.random.randrange(len(body) + 1)])
            await writer.drain()
            await asyncio.sleep(self.random.choice((0, 0.05, 0.5)))
        finally:  # the service may end before, and with it the connection
            writer.transport.abort()
        self.injected["clients that left"] += 1


@functools.cache
def real_flows() -> list[Flow]:
    """The flows of a real capture."""
    return [flow for flow in read_capture(ANDROID, ReadOptions(heads="header")) if flow.payload_lengths]
