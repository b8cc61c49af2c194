"""Models swapped again and again under traffic: is a flow lost, is there a gap, does memory come back?

    python benchmarks/reload.py CAPTURE... [--reloads 50] [--repository DIR]

The default flow model, and then each trace model, is loaded anew, warmed and swapped while flows keep coming, each of
which gets the features of the trace model in the same batch; resident memory is read after each swap. The longest time
between two answers during a swap stands beside the longest without any.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import statistics
import time
from pathlib import Path

from hardware import describe, report

from tapline.models.flow import Flow
from tapline.service.log_lines import silence_logs
from tapline.service.runtime import Service
from tapline.service.settings import Settings
from tapline.service.sources.capture import CaptureReader, ReadOptions

FLOWS_AT_ONCE = 32
QUIET_SECONDS = 3.0


def resident_mb() -> float:
    """Resident memory of this process, MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


class Traffic:
    """Sends flows one group after the other, and remembers when answers came."""

    def __init__(self, service: Service, flows: list[Flow]) -> None:
        self._service = service
        self._groups = itertools.cycle([flows[i : i + FLOWS_AT_ONCE] for i in range(0, len(flows), FLOWS_AT_ONCE)])
        self.sent = self.answered = 0
        self.answers_at: list[float] = []
        self.stopping = False

    async def run(self) -> None:
        """Until told to stop; the last group is answered all the same."""
        while not self.stopping:
            group = next(self._groups)
            self.sent += len(group)
            outcomes = await self._service.batcher.submit(group)
            self.answered += sum(outcome is not None for outcome in outcomes)
            self.answers_at.append(time.perf_counter())

    def longest_gap_seconds(self, since: int) -> float:
        """The longest time between two answers."""
        times = self.answers_at[since:]
        return max((later - earlier for earlier, later in itertools.pairwise(times)), default=0.0)


async def measure(service: Service, flows: list[Flow], reloads: int) -> None:
    """Swap the flow model, then each trace model; watch, print."""
    names = {"flow": service.models.default}
    names |= {f"trace ({name})": name for name in service.trace_models.scorers}
    async with service.running():
        traffic = Traffic(service, flows)
        task = asyncio.create_task(traffic.run())
        await asyncio.sleep(QUIET_SECONDS)
        quiet_gap = traffic.longest_gap_seconds(0)
        for kind, name in names.items():
            await swap(service, traffic, kind, name, reloads, quiet_gap)
        traffic.stopping = True
        await task
    lost = traffic.sent - traffic.answered
    print(f"flows      {traffic.sent} sent, {traffic.answered} answered, {lost} lost")
    report(
        f"{reloads} reloads each of {' and '.join(names)} model under traffic",
        f"**{lost} of {traffic.sent} flows lost**",
    )


async def swap(service: Service, traffic: Traffic, kind: str, name: str, reloads: int, quiet_gap: float) -> None:
    """Swap one model again and again; print how long it took, the longest gap and the memory."""
    swapping_from = len(traffic.answers_at)
    memory, seconds = [resident_mb()], []
    for _ in range(reloads):
        started = time.perf_counter()
        await service.load_model(name)
        seconds.append(time.perf_counter() - started)
        await asyncio.sleep(0.1)
        memory.append(resident_mb())
    gap = traffic.longest_gap_seconds(swapping_from)
    early = min(10, reloads)
    print(f"{kind:<10} {reloads} reloads of {name}, {statistics.median(seconds):.2f} s each (median)")
    print(f"  gap      {gap * 1000:.0f} ms at most between answers while swapping, {quiet_gap * 1000:.0f} ms without")
    before, soon, after = memory[0], memory[early], memory[-1]
    print(
        f"  memory   {before:.0f} MiB before, {soon:.0f} after {early} reloads, {after:.0f} after {reloads}", flush=True
    )
    report(
        f"{reloads} reloads of a {kind} model under traffic",
        f"{before:.0f} MiB before, {after:.0f} MiB after; "
        f"{gap * 1000:.0f} ms at most between answers ({quiet_gap * 1000:.0f} ms without)",
    )


def main() -> None:
    """Read flows, run the service, swap."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("captures", nargs="+", type=Path)
    parser.add_argument("--reloads", type=int, default=50)
    parser.add_argument("--repository", type=Path)
    options = parser.parse_args()
    flows = [
        flow
        for path in options.captures
        for flow in CaptureReader(path, ReadOptions(heads="header"))
        if flow.payload_lengths
    ]
    silence_logs()
    print(f"machine    {describe()}")
    print(f"input      {len(flows)} real flows, again and again, {FLOWS_AT_ONCE} at a time")
    asyncio.run(measure(Service(Settings(repository=options.repository, history="none")), flows, options.reloads))


if __name__ == "__main__":
    main()
