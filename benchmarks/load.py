"""Latency against load: real flows arrive at random, whether or not the service keeps up.

    python benchmarks/load.py CAPTURE... [--seconds 20] [--plot load.svg] [--checkpoint DIR] [--engine onnx]

The live path (fair queue, batcher, engine) runs as it does in the service. First its saturated rate is measured: as
many flows a second as get a verdict while the queue never runs empty. Then flows arrive as a Poisson process at 10 to
150 % of that rate; latency is from the moment a flow was due to arrive until its verdict is delivered, so that a late
sender hides nothing. What is shed under overload is counted, and gets no latency. Generator and service share the
machine.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
from hardware import describe, report

from tapline.models.flow import Flow
from tapline.models.verdict import Verdict
from tapline.service.engines.loading import load_engine
from tapline.service.inference.batcher import Batcher
from tapline.service.inference.classifier import DEFAULT_CHECKPOINT, Classifier
from tapline.service.inference.repository import shipped_checkpoint
from tapline.service.inference.served import warm_up
from tapline.service.live.pipeline import LivePipeline
from tapline.service.metrics import Metrics
from tapline.service.sources.capture import CaptureReader, ReadOptions

SHARES = (0.1, 0.5, 0.8, 1.0, 1.5)
QUEUE_FLOWS = 20_000

Load = Callable[[], Classifier]
"""Gives a classifier that is warm: a batcher that stops closes its own."""


@dataclass
class Outcome:
    """What one rate gave."""

    offered_per_second: float
    delivered_per_second: float
    shed: int
    offered: int
    latencies_seconds: list[float] = field(default_factory=list)

    def percentile(self, share: float) -> float:
        """A percentile of the latency, seconds; infinite where nothing was delivered."""
        return float(np.quantile(self.latencies_seconds, share)) if self.latencies_seconds else float("inf")


class Stage:
    """The live path around one engine."""

    def __init__(self, classifier: Classifier, flows: list[Flow]) -> None:
        self._flows = flows
        self._sent = 0
        self.batcher = Batcher([classifier], Metrics())
        self.pipeline = LivePipeline(self.batcher, Metrics(), queue_flows=QUEUE_FLOWS)

    async def __aenter__(self) -> Stage:
        self.batcher.start()
        self._task = asyncio.create_task(self.pipeline.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self.batcher.stop(30)

    def send(self, deliver: Callable[[], None]) -> None:
        """Send the next flow, under a name of its own."""
        flow = msgspec.structs.replace(self._flows[self._sent % len(self._flows)], uid=f"L{self._sent}")
        self._sent += 1

        def delivered(_: Flow, __: Verdict) -> None:
            deliver()

        self.pipeline.take(flow, delivered)


async def saturated_rate(load: Load, flows: list[Flow], seconds: float) -> float:
    """Flows a second that get a verdict while the queue never runs empty."""
    delivered = 0

    def count() -> None:
        nonlocal delivered
        delivered += 1

    async with Stage(load(), flows) as stage:
        started = time.perf_counter()
        while time.perf_counter() - started < seconds:
            while stage.pipeline.waiting_flows < 4 * stage.batcher.max_batch_size:
                stage.send(count)
            await asyncio.sleep(0.001)
        return delivered / (time.perf_counter() - started)


async def at_rate(load: Load, flows: list[Flow], rate: float, seconds: float) -> Outcome:
    """Offer flows at a rate for so long, then let the queue drain."""
    generator = random.Random(1)
    latencies: list[float] = []
    async with Stage(load(), flows) as stage:
        started = time.perf_counter()
        due, offered = started, 0
        while (due := due + generator.expovariate(rate)) < started + seconds:
            if (early := due - time.perf_counter()) > 0:
                await asyncio.sleep(early)
            elif not offered % 64:
                await asyncio.sleep(0)  # behind: let the service run all the same
            stage.send(lambda due=due: latencies.append(time.perf_counter() - due))  # type: ignore[misc]
            offered += 1
        in_time = len(latencies)
        took = time.perf_counter() - started
        await stage.pipeline.drain(120)
        return Outcome(offered / took, in_time / took, stage.pipeline.counts.shed, offered, latencies)


def plot(outcomes: dict[float, Outcome], saturated: float, path: Path) -> None:
    """Draw latency against the offered share of the saturated rate."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    shares = [share * 100 for share in outcomes]
    for quantile, label in ((0.5, "median"), (0.99, "99th percentile")):
        axes.plot(
            shares, [1000 * outcome.percentile(quantile) for outcome in outcomes.values()], marker="o", label=label
        )
    axes.set(
        yscale="log", xlabel=f"offered load, % of the saturated rate ({saturated:.0f} flows/s)",
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


async def measure(load: Load, flows: list[Flow], seconds: float) -> tuple[float, dict[float, Outcome]]:
    """The saturated rate, and what each share of it gave."""
    rate = await saturated_rate(load, flows, seconds)
    return rate, {share: await at_rate(load, flows, share * rate, seconds) for share in SHARES}


def main() -> None:
    """Measure, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("captures", nargs="+", type=Path)
    parser.add_argument("--seconds", type=float, default=20, help="for each rate")
    parser.add_argument("--checkpoint", type=Path, default=shipped_checkpoint(DEFAULT_CHECKPOINT))
    parser.add_argument("--engine", default="onnx", choices=("onnx", "torch"))
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--plot", type=Path, help="SVG or PNG to draw")
    options = parser.parse_args()
    flows = [
        flow
        for path in options.captures
        for flow in CaptureReader(path, ReadOptions(heads="none"))
        if flow.payload_lengths
    ]
    random.Random(0).shuffle(flows)

    def load() -> Classifier:
        classifier = Classifier(load_engine(options.engine, options.checkpoint, options.threads))
        warm_up([classifier])
        return classifier

    print(f"machine    {describe()}")
    model = options.checkpoint.parent.name
    print(f"input      {len(flows)} real flows, again and again; {model}, engine {options.engine}")
    saturated, outcomes = asyncio.run(measure(load, flows, options.seconds))
    print(f"saturated  {saturated:.0f} flows/s")
    print("  load   offered/s  delivered/s     shed   median ms   p99 ms")
    for share, outcome in outcomes.items():
        print(
            f"{share:6.0%} {outcome.offered_per_second:11.0f} {outcome.delivered_per_second:12.0f} "
            f"{outcome.shed / outcome.offered:8.1%} {1000 * outcome.percentile(0.5):11.1f} "
            f"{1000 * outcome.percentile(0.99):8.1f}"
        )
    half = outcomes[0.5]
    report(
        f"latency at half of the saturated rate ({saturated:.0f} flows/s), {model}",
        f"median {1000 * half.percentile(0.5):.0f} ms, 99 % under {1000 * half.percentile(0.99):.0f} ms",
    )
    if options.plot:
        plot(outcomes, saturated, options.plot)


if __name__ == "__main__":
    main()
