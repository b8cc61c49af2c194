"""What the history costs: flows at a steady rate through the live path, with a history and without.

    python benchmarks/history.py [--rate 5000] [--seconds 600] [--history sqlite|postgresql+psycopg://...]

The flows take the live path (fair queue, batcher, encoding, delivery); only the engine gives scores by lot, so that the
rate is the history's to bear. Of ten flows one has no payload, and one is early and comes again. Meanwhile pages are
asked for, by one filter after the other. Without a history the same runs for a quarter of the time, for the latency of
verdicts beside. The default database is a new file in a temporary folder. Ends by itself.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from hardware import describe, report
from many_flows import resident_mb
from numpy.typing import NDArray

from tapline.models.checkpoint import Checkpoint
from tapline.models.encode import TokenBatch
from tapline.models.flow import Flow
from tapline.service.engines.engine import Scores
from tapline.service.history.filters import FlowFilter, time_us
from tapline.service.history.history_errors import SlowQueryError
from tapline.service.inference.classifier import Classifier, FlowOutcome
from tapline.service.live.observer import Observers, tell
from tapline.service.log_lines import silence_logs
from tapline.service.runtime import Service
from tapline.service.settings import Settings

BUS = "ws://127.0.0.1:9"
TICK_SECONDS = 0.01
ASK_SECONDS = 0.5
CLIENTS, SERVERS = 2000, 20_000
PORTS = [443] * 12 + [80] * 4 + [53] * 6 + [22, 123, 993, 8080, 5353, 1883]


class AnyEngine:
    """Scores by lot, so that labels vary."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.student = None
        self._generator = np.random.default_rng(5)

    def run(self, batch: TokenBatch) -> Scores:
        """Logits of which one is large."""
        network = self.checkpoint.network
        logits = self._generator.standard_normal((len(batch), network.n_class)).astype(np.float32) * 4
        return Scores(logits, np.zeros((len(batch), 2 * network.d_model), np.float32))


class AnyService(Service):
    """The service with that engine."""

    def _load_engines(self, directory: Path) -> list[Classifier]:
        return [Classifier(AnyEngine(loaded.checkpoint)) for loaded in super()._load_engines(directory)]


@dataclass
class Run:
    """What one run measured."""

    given: int = 0
    latencies_ms: list[NDArray[np.float32]] = field(default_factory=list)
    pages_ms: dict[str, list[float]] = field(default_factory=dict)
    slow_pages: int = 0


def flow_of(number: int, generator: random.Random) -> Flow:
    """A flow of a client to a server."""
    client, server = generator.randrange(CLIENTS), generator.randrange(SERVERS)
    count = 0 if number % 10 == 0 else 1 + int(generator.expovariate(0.1))
    lengths = [generator.choice((1, -1)) * generator.randint(1, 1460) for _ in range(min(count, 254))]
    content = generator.randbytes(64) if lengths else b""
    return Flow(
        f"C{generator.getrandbits(90):018x}", time.time_ns() // 1000, 5000, f"10.{client >> 8}.{client & 255}.7",
        1024 + number % 60_000, f"198.18.{server >> 8}.{server & 255}", generator.choice(PORTS), "tcp", count, count,
        lengths, content, content, count, count, 60 * count, 900 * count, sensor="gate", service="ssl",
        server_name=f"host{server}.example" if lengths else "", complete=number % 10 != 1,
    )  # fmt: skip


async def feed(service: Service, run: Run, rate: int, seconds: float) -> None:
    """Give flows at a rate."""
    observers = Observers(service.stream, service.history)
    generator = random.Random(7)
    early: list[Flow] = []

    def deliver(flow: Flow, outcome: FlowOutcome | None) -> None:
        tell(BUS, flow, outcome, None, observers)

    def take(flow: Flow) -> None:
        run.given += 1
        service.pipeline.take(flow, deliver)

    started = time.perf_counter()
    while (passed := time.perf_counter() - started) < seconds:
        while run.given < rate * passed:
            flow = flow_of(run.given, generator)
            take(flow)
            if not flow.complete:
                early.append(flow)
            if len(early) > rate // 10:
                flow = early.pop(0)
                flow.complete = True
                take(flow)
        await asyncio.sleep(TICK_SECONDS)
    await service.pipeline.drain(60)


async def note_latencies(service: Service, run: Run) -> None:
    """Keep the latencies of all verdicts."""
    while True:
        await asyncio.sleep(0.5)
        run.latencies_ms.append(1000 * np.array(service.pipeline.latencies_seconds, np.float32))
        service.pipeline.latencies_seconds.clear()


async def ask(service: Service, run: Run) -> None:
    """Ask for pages, by one filter after the other."""
    history = service.history
    assert history is not None
    while True:
        now = {"since_us": time_us("1m")}
        for name, wanted, sort in (
            ("newest", FlowFilter(), "time"),
            ("host", FlowFilter(host="10.3.77.7"), "time"),
            ("network", FlowFilter(host="10.2.0.0/16"), "time"),
            ("absent network", FlowFilter(host="172.16.0.0/12"), "time"),
            ("port", FlowFilter(port=1883), "time"),
            ("label, minute", FlowFilter(label="SSH", **now), "time"),
            ("unexpected port", FlowFilter(unexpected_port=True), "time"),
            ("bytes, minute", FlowFilter(**now), "bytes"),
        ):
            started = time.perf_counter()
            try:
                await history.flows(wanted, sort=sort, limit=100)  # type: ignore[arg-type]
            except SlowQueryError:
                run.slow_pages += 1
            run.pages_ms.setdefault(name, []).append(1000 * (time.perf_counter() - started))
            await asyncio.sleep(ASK_SECONDS)


async def measure(settings: Settings, rate: int, seconds: float) -> None:
    """One run."""
    service, run = AnyService(settings), Run()
    async with service.running():
        tasks = [asyncio.create_task(note_latencies(service, run))]
        if service.history is not None:
            tasks.append(asyncio.create_task(ask(service, run)))
        before_mb, cpu, started = resident_mb(), time.process_time(), time.perf_counter()
        await feed(service, run, rate, seconds)
        cpu, wall = time.process_time() - cpu, time.perf_counter() - started
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        history = service.history
        while history is not None and history.counts.pending:
            await asyncio.sleep(0.05)
        late = time.perf_counter() - started - wall
        memory = f"{before_mb:.0f} MB before, {resident_mb():.0f} MB after, {resident_mb('VmHWM'):.0f} MB at most"
        pipeline = service.pipeline.counts
        what = f"{run.given:,} flows, {run.given / wall:,.0f} a second, shed {pipeline.shed}"
        latencies = np.concatenate(run.latencies_ms)
        spread = ", ".join(f"{name} {np.percentile(latencies, at):.1f} ms" for name, at in SPREAD)
        report(f"{settings.history.partition(':')[0]}: {what}", f"verdicts: {spread}; {cpu / wall:.0%} CPU; {memory}")
        if history is not None:
            counts = history.counts
            size = history.used_bytes
            report(
                f"kept {counts.kept:,}, shed {counts.shed:,}, failed {counts.failed:,}, the last after {late:.2f} s",
                f"{size / 2**20:,.0f} MiB, {size / max(counts.kept, 1):.0f} bytes a record",
            )
            for name, found in run.pages_ms.items():
                report(f"page of 100, {name}", f"median {np.median(found):.0f} ms, at most {max(found):.0f} ms")
            print(f"pages that took too long: {run.slow_pages}")


SPREAD = (("median", 50), ("p99", 99), ("p99.9", 99.9), ("most", 100))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=int, default=5000)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--history", default="sqlite")
    options = parser.parse_args()
    silence_logs()
    print(describe())
    with tempfile.TemporaryDirectory() as folder:
        for place, seconds in (("none", options.seconds / 4), (options.history, options.seconds)):
            settings = Settings(traces=["none"], zeek=[BUS], history=place, data_dir=Path(folder))
            asyncio.run(measure(settings, options.rate, seconds))
        files = ", ".join(f"{path.name} {path.stat().st_size / 2**20:,.0f} MiB" for path in Path(folder).iterdir())
        print(f"on disk: {files}")


if __name__ == "__main__":
    main()
