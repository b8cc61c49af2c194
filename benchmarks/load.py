"""Latency against load: real flows arrive at random, whether or not the service keeps up.

    PYTHONPATH=. python benchmarks/load.py CAPTURE|FOLDER... [--turns 3] [--seconds 10] [--plot load.svg]
        [--checkpoint DIR] [--engine onnx]

Of a folder all captures below it are taken, and what cannot be read is passed over; which flow comes when is drawn
with a fixed seed. The live path (bus, live queue, batcher, engine) runs as it does in the service. First its saturated
rate is measured: as many flows a second as get a verdict while the queue never runs empty, from events that are in
memory. Then a process of its own sends events over a WebSocket on loopback at shares of that rate: flows come as a
Poisson process, and an event is due with the last of its 64. Latency is from then until the verdict is delivered, so
that a late sender hides nothing; delivered are verdicts within the deadline of live flows. What is shed under overload
is counted, and gets no latency. Events are made beforehand (`bus_sender.py`); what sending them takes of the machine,
which is the service's otherwise, is told.

All that several times: what a machine gives changes within minutes. Of the turns the median is told, and what is
delivered is a share of the saturated rate of the same turn.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path

import numpy as np
from bus_sender import BATCH_FLOWS, Events, Sender, number_of, sender
from hardware import describe, report, short

from tapline.models.flow import Flow
from tapline.service.inference.batcher import Batcher
from tapline.service.inference.classifier import DEFAULT_CHECKPOINT, Classifier, FlowOutcome
from tapline.service.inference.flow_network import BATCH_TIMEOUT_SECONDS
from tapline.service.inference.network_messages import NetworkRecipe
from tapline.service.inference.network_opening import open_networks
from tapline.service.inference.network_process import NetworkProcess
from tapline.service.inference.repository import shipped_checkpoint
from tapline.service.inference.served import warm_up
from tapline.service.live.pipeline import LivePipeline
from tapline.service.metrics import Metrics
from tapline.service.process.garbage import spare_what_is_loaded
from tapline.service.settings import Settings
from tapline.service.sources.bus.source import BusSource, make_transport
from tapline.service.sources.bus.transport import Receive, TlsFiles, Transport
from tapline.service.sources.bus.websocket_frames import event_of, parse_frame
from tapline.service.sources.capture import CaptureError, CaptureReader, ReadOptions

SHARES = (0.1, 0.5, 0.8, 1.0, 1.5, 3.0)
TICK_SECONDS = 0.002
SATURATING_FLOWS = 65_536
DEADLINE_SECONDS: float = Settings.model_fields["live_deadline_seconds"].default
CONNECT_SECONDS = 10

Load = Callable[[], list[Classifier]]
"""Gives classifiers that are warm: a batcher that stops closes its own."""


@dataclass
class Outcome:
    """What one rate gave. `sender_share`: of a core."""

    offered_per_second: float
    delivered_per_second: float
    shed: int
    offered: int
    delivered_per_cpu_second: float
    sender_share: float
    latencies_seconds: list[float] = field(default_factory=list)

    def percentile(self, share: float) -> float:
        """A percentile of the latency, seconds; infinite where nothing was delivered."""
        return float(np.quantile(self.latencies_seconds, share)) if self.latencies_seconds else float("inf")


@dataclass
class Turn:
    """What one turn gave: the saturated rate, and an outcome for each share of it."""

    saturated: float
    outcomes: dict[float, Outcome]

    def goodput(self, share: float) -> float:
        """What was delivered in time, as a share of the saturated rate."""
        return self.outcomes[share].delivered_per_second / self.saturated


class InMemory:
    """A transport whose frames are given to it here."""

    url = "memory"

    async def run(self, receive: Receive) -> None:
        """Take what is given until cancelled."""
        self._receive = receive
        await asyncio.get_running_loop().create_future()

    def give(self, text: bytes) -> None:
        """A frame came."""
        self._receive(event_of(parse_frame(text)))


class Stage:
    """The live path between a bus and engines, by the settings that a service has; `deliver` is told of verdicts."""

    def __init__(self, classifiers: list[Classifier], transport: Transport, deliver: Callable[[Flow], None]) -> None:
        self.batcher = Batcher(classifiers, Metrics())
        self.pipeline = LivePipeline(
            self.batcher,
            Metrics(),
            queue_flows=Settings.model_fields["live_queue_flows"].default,
            deadline_seconds=DEADLINE_SECONDS,
        )

        def told(flow: Flow, outcome: FlowOutcome | None) -> None:
            deliver(flow)

        self.source = BusSource(
            transport, Metrics(), lambda flow: self.pipeline.take(flow, told), choose=self.pipeline.choose
        )

    async def __aenter__(self) -> Stage:
        self.batcher.start()
        self._tasks = [asyncio.create_task(run()) for run in (self.pipeline.run, self.source.run)]
        await asyncio.sleep(0)
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.batcher.stop(30)


def cpu_seconds(stage: Stage) -> float:
    """What this process and those of its engines took so far."""
    took = time.process_time()
    for classifier in stage.batcher.classifiers:
        if isinstance(classifier.network, NetworkProcess):
            fields = Path(f"/proc/{classifier.network.pid}/stat").read_text().rpartition(")")[2].split()
            took += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return took


async def saturated_rate(load: Load, flows: list[Flow], seconds: float) -> tuple[float, float]:
    """Flows a second, and a second of CPU, that get a verdict while the queue never runs empty."""
    delivered = 0

    def count(flow: Flow) -> None:
        nonlocal delivered
        delivered += 1

    coming = cycle(Events(flows).texts(SATURATING_FLOWS))
    transport = InMemory()
    async with Stage(load(), transport, count) as stage:
        started, cpu = time.perf_counter(), cpu_seconds(stage)
        while time.perf_counter() - started < seconds:
            while stage.pipeline.waiting_flows < 4 * stage.batcher.max_batch_size:
                transport.give(next(coming))
            await asyncio.sleep(TICK_SECONDS)
        return delivered / (time.perf_counter() - started), delivered / (cpu_seconds(stage) - cpu)


async def at_rate(load: Load, sending: Sender, rate: float, seconds: float) -> Outcome:
    """Offer flows at a rate for so long, then let the queue drain.

    Raises:
        SystemExit: not all flows came.
    """
    arrivals = np.cumsum(np.random.default_rng(1).exponential(1 / rate, int(1.2 * rate * seconds)))
    offered = int(np.searchsorted(arrivals, seconds))
    due = arrivals[:offered][
        np.minimum(np.arange(BATCH_FLOWS - 1, offered + BATCH_FLOWS - 1, BATCH_FLOWS), offered - 1)
    ]
    latencies: list[float] = []
    transport = make_transport(sending.url, TlsFiles())
    began = 0.0
    due_of = np.repeat(due, BATCH_FLOWS).tolist()

    def delivered(flow: Flow) -> None:
        latencies.append(time.perf_counter() - began - due_of[number_of(flow)])

    async with Stage(load(), transport, delivered) as stage:
        async with asyncio.timeout(CONNECT_SECONDS):
            while not stage.source.state.connected:
                await asyncio.sleep(TICK_SECONDS)
        await asyncio.to_thread(sending.prepare, offered)
        began, cpu = time.perf_counter() + 0.1, cpu_seconds(stage)
        sending.send((due + began).tolist())
        while (sent := sending.sent()) is None:
            await asyncio.sleep(0.02)
        took, used = time.perf_counter() - began, cpu_seconds(stage) - cpu
        in_time = sum(latency <= DEADLINE_SECONDS for latency in latencies)
        counts = stage.pipeline.counts
        async with asyncio.timeout(120):
            while counts.received < offered or stage.pipeline.waiting_flows:
                await asyncio.sleep(0.01)
        if counts.delivered + counts.shed != offered:
            raise SystemExit(f"{offered} flows were offered, {counts}")
        return Outcome(
            offered / took, in_time / took, counts.shed, offered, in_time / used, sent.cpu_seconds / took, latencies
        )


def real_flows(places: Sequence[Path]) -> list[Flow]:
    """The flows with payload of captures, and of all captures below folders, in an order that is always the same."""
    paths = [path for place in places for path in (sorted(place.rglob("*.pcap*")) if place.is_dir() else [place])]
    flows: list[Flow] = []
    for path in paths:
        with contextlib.suppress(CaptureError):
            flows += [flow for flow in CaptureReader(path, ReadOptions(heads="none")) if flow.payload_lengths]
    random.Random(0).shuffle(flows)
    return flows


def plot(turn: Turn, path: Path) -> None:
    """Draw latency against the offered share of the saturated rate."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    outcomes = turn.outcomes
    shares = [share * 100 for share in outcomes]
    for quantile, label in ((0.5, "median"), (0.99, "99th percentile")):
        axes.plot(
            shares, [1000 * outcome.percentile(quantile) for outcome in outcomes.values()], marker="o", label=label
        )
    axes.set(
        yscale="log", xlabel=f"offered load, % of the saturated rate ({turn.saturated:.0f} flows/s)",
        ylabel="arrival to verdict, ms", title="Latency against load",
    )  # fmt: skip
    for share, outcome in outcomes.items():
        if outcome.shed:
            text = f"{outcome.shed / outcome.offered:.0%} shed"
            axes.annotate(
                text, (100 * share, 1000 * outcome.percentile(0.5)), xytext=(-58, 8), textcoords="offset points"
            )
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend()
    figure.savefig(path)


async def measure(load: Load, flows: list[Flow], shares: Sequence[float], seconds: float) -> Turn:
    """A turn, of which each rate takes so long."""
    rate, per_cpu_second = await saturated_rate(load, flows, seconds)
    print(f"saturated  {rate:.0f} flows/s, {per_cpu_second:.0f} a second of CPU")
    print("  load   offered/s  in time/s  per CPU s     shed   median ms   p99 ms   sender")
    outcomes = {}
    with sender(flows) as sending:
        for share in shares:
            outcomes[share] = outcome = await at_rate(load, sending, share * rate, seconds)
            print(
                f"{share:6.0%} {outcome.offered_per_second:11.0f} {outcome.delivered_per_second:10.0f} "
                f"{outcome.delivered_per_cpu_second:10.0f} "
                f"{outcome.shed / outcome.offered:8.1%} {1000 * outcome.percentile(0.5):11.1f} "
                f"{1000 * outcome.percentile(0.99):8.1f} {outcome.sender_share:8.1%}"
            )
    return Turn(rate, outcomes)


def middle(turns: Sequence[Turn], of: Callable[[Turn], float]) -> Turn:
    """The turn whose value is the median; of an even number of them the lower of the two."""
    return sorted(turns, key=of)[(len(turns) - 1) // 2]


def span(turns: Sequence[Turn], text: Callable[[Turn], str], of: Callable[[Turn], float]) -> str:
    """The least and the largest of several turns, in brackets."""
    if len(turns) == 1:
        return ""
    return f" ({text(min(turns, key=of))} to {text(max(turns, key=of))}, {len(turns)} turns)"


def tell(turns: Sequence[Turn], what: str, processes: int) -> None:
    """A row for the saturated rate, and for each share of it."""
    path = f"live path, `--engine-processes {processes}`" if processes else "live path"
    what += f", `--engine-processes {processes}`" if processes else ""

    def saturated(turn: Turn) -> float:
        return turn.saturated

    rate = middle(turns, saturated).saturated
    several = span(turns, lambda turn: f"{turn.saturated:.0f}", saturated)
    report(f"live path saturated, {what}", f"**{rate:.0f} flows/s**{several}")
    short(f"{path}, flows a second", "-", f"{rate:,.0f}")
    if 0.5 in turns[0].outcomes:

        def p99(turn: Turn) -> float:
            return 1000 * turn.outcomes[0.5].percentile(0.99)

        half = middle(turns, p99)
        half_ms = f"median {1000 * half.outcomes[0.5].percentile(0.5):.0f} ms, 99 % under {p99(half):.0f} ms"
        several = span(turns, lambda turn: f"{p99(turn):.0f}", p99)
        report(f"latency at half of the saturated rate, {what}", half_ms + several)
        short("latency at half of that", "-", half_ms)
    for share in [share for share in turns[0].outcomes if share >= 1]:
        tell_share(turns, share, what)


def tell_share(turns: Sequence[Turn], share: float, what: str) -> None:
    """A row of what was delivered at a share of the saturated rate."""

    def goodput(turn: Turn) -> float:
        return turn.goodput(share)

    turn = middle(turns, goodput)
    outcome = turn.outcomes[share]
    late = f"99 % under {outcome.percentile(0.99):.2f} s"
    several = span(turns, lambda turn: f"{goodput(turn):.0%}", goodput)
    report(
        f"delivered in time at {share:.0%} of the saturated rate, {what}",
        f"{goodput(turn):.0%} of it{several}, {late}; the sender took {outcome.sender_share:.0%} of a core",
    )
    if share > 1:
        short(f"at {share:.0%} of that, delivered", "-", f"{goodput(turn):.0%}{several}, {late}")


def main() -> None:
    """Measure, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("captures", nargs="+", type=Path, help="captures, or folders of them")
    parser.add_argument("--turns", type=int, default=3, help="of all rates")
    parser.add_argument("--seconds", type=float, default=10, help="for each rate of a turn")
    parser.add_argument("--shares", type=float, nargs="+", default=SHARES, help="of the saturated rate")
    parser.add_argument("--checkpoint", type=Path, default=shipped_checkpoint(DEFAULT_CHECKPOINT))
    parser.add_argument("--engine", default="onnx", choices=("onnx", "torch"))
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--cascade", default="on", choices=("on", "off"))
    parser.add_argument("--engine-processes", type=int, default=0, help="as of `tapline serve`")
    parser.add_argument("--plot", type=Path, help="SVG or PNG to draw")
    options = parser.parse_args()
    logging.getLogger("tapline").setLevel(logging.ERROR)
    flows = real_flows(options.captures)

    def load() -> list[Classifier]:
        recipe = NetworkRecipe(str(options.checkpoint), options.engine, options.threads)
        networks = open_networks(recipe, options.engine_processes, None, BATCH_TIMEOUT_SECONDS)
        classifiers = [Classifier(network, cascade=options.cascade == "on") for network in networks]
        warm_up(classifiers)
        spare_what_is_loaded()  # as the service does
        return classifiers

    print(f"machine    {describe()}")
    model = options.checkpoint.parent.name
    print(f"input      {len(flows)} real flows, again and again; {model}, engine {options.engine}")
    turns = [asyncio.run(measure(load, flows, options.shares, options.seconds)) for _ in range(options.turns)]
    tell(turns, f"{model}, {len(flows)} real flows", options.engine_processes)
    if options.plot:
        plot(middle(turns, lambda turn: turn.saturated), options.plot)


if __name__ == "__main__":
    main()
