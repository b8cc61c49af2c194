"""Resident memory of the service: idle with both checkpoints, with many flows in open traces, after they are closed.

    python benchmarks/memory.py [--traces DIR]... [--models 1] [--flows 100000] [--subjects 10000]

Without `--traces` a trace checkpoint of random weights of the default size is made first, in another process (needs the
extra `train`). The flows come with random embeddings, straight to the traces; no torch here. The state of the open
windows is written to disk twice, timed, with the longest time for which nothing else could run.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from hardware import describe, report

from tapline.models.flow import Flow, PacketHead
from tapline.models.trace import ETHERNET_LINK
from tapline.service.inference.classifier import FlowOutcome
from tapline.service.inference.flow_features import FlowFeatures, pack
from tapline.service.log_lines import silence_logs
from tapline.service.runtime import Service
from tapline.service.settings import Settings

ROOT = Path(__file__).resolve().parent.parent

BUS = "ws://127.0.0.1:9"
_RANDOM = """
import sys
from pathlib import Path
from tapline.models.checkpoint import TracegramCheckpoint, TracegramNetwork
from tapline.models.trace import TraceSettings
from tapline.models.tracegram import Tracegram
from tapline.training.export.checkpoint_export import export_traces
network = TracegramNetwork(n_class=31)
weights = {name: value.numpy() for name, value in Tracegram(network, flow_classes=2).state_dict().items()}
labels = [f"device-{n}" for n in range(31)]
settings = TraceSettings(subject="originator")
checkpoint = TracegramCheckpoint("tracegram", sys.argv[2], "1", network, labels, trace=settings)
export_traces(Path(sys.argv[1]), checkpoint, weights, "# random")
"""


def resident_mb(field: str = "VmRSS") -> float:
    """Resident memory of this process now, or at most (`VmHWM`), MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


class Heartbeat:
    """The longest time for which the event loop did nothing else."""

    def __init__(self) -> None:
        self.longest_seconds = 0.0

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            started = time.perf_counter()
            await asyncio.sleep(0.001)
            self.longest_seconds = max(self.longest_seconds, time.perf_counter() - started)


def flow_of(number: int, subjects: int, now_us: int) -> Flow:
    """A flow of one of the subjects, as a sensor sends it."""
    subject = number % subjects
    return Flow(
        f"C{number:017x}", now_us + number, 5_000_000, f"10.{subject >> 16}.{subject >> 8 & 255}.{subject & 255}",
        1024 + number % 60_000, f"192.0.2.{number % 250}", 443, "tcp", 3, 4, [517, -1448], link_type=ETHERNET_LINK,
        heads_kind="header", heads=[PacketHead(0, bytes(54))], orig_ip_bytes=4000, resp_ip_bytes=90_000,
        complete=number % 4 != 0,
    )  # fmt: skip


async def measure(settings: Settings, flows: int, subjects: int) -> None:
    """Idle, then full, then saved, then closed."""
    service = Service(settings)
    heartbeat = Heartbeat()
    async with service.running():
        assert service.traces is not None
        checkpoints = [scorer.checkpoint for scorer in service.trace_models.scorers.values()]
        idle_mb = resident_mb()
        generator = np.random.default_rng(1)
        network = checkpoints[0].network
        width = network.embedding_size
        context = np.zeros((1, len(network.context)), np.uint8)
        now_us = int(time.time() * 1e6)
        started = time.perf_counter()
        for number in range(flows):
            embedding = generator.standard_normal(width, np.float32)
            (data,) = pack(embedding.reshape(1, width), context)  # once, as where the models share their encoder
            features = [FlowFeatures(each, data) for each in checkpoints]
            service.traces.take(BUS, flow_of(number, subjects, now_us), FlowOutcome(None, tuple(features)))
        add_us = (time.perf_counter() - started) / flows * 1e6
        for model in service.traces.models.values():
            model.windows.jobs.clear()
        full_mb = resident_mb()
        beating = asyncio.create_task(heartbeat.run())
        started = time.perf_counter()
        await service.traces.save()
        await service.traces.save()
        save_seconds = (time.perf_counter() - started) / 2
        stall_seconds = heartbeat.longest_seconds
        saved_mb = resident_mb("VmHWM")
        assert settings.state_dir is not None
        size_mb = sum(path.stat().st_size for path in settings.state_dir.rglob("*") if path.is_file()) / 2**20
        traces = service.traces
        each = f"{width} numbers and {len(network.context)} bytes each"
        print(f"{traces.open_flows} flows, {each}, in {traces.open_windows} windows of {len(checkpoints)} models")
        print(f"{(full_mb - idle_mb) * 2**20 / flows:.0f} bytes a flow")
        started = time.perf_counter()
        await service.traces.finish(BUS)
        close_seconds = time.perf_counter() - started
        beating.cancel()
        print(f"taking a flow {add_us:.0f} us; scoring {subjects} windows {close_seconds:.1f} s")
        report(f"service idle, the flow checkpoint and {len(checkpoints)} for traces loaded", f"{idle_mb:.0f} MB")
        report(f"the same with {flows} flows in open traces of {subjects} subjects", f"{full_mb:.0f} MB")
        report(
            "saving them",
            f"{save_seconds:.2f} s, {size_mb:.0f} MB on disk, nothing else stood still for more than "
            f"{stall_seconds * 1000:.0f} ms, {saved_mb:.0f} MB at most",
        )
        report("after all windows were closed", f"{resident_mb():.0f} MB now, {resident_mb('VmHWM'):.0f} MB at most")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--traces", type=Path, action="append")
    parser.add_argument("--models", type=int, default=1, help="of random weights, which share their encoder")
    parser.add_argument("--flows", type=int, default=100_000)
    parser.add_argument("--subjects", type=int, default=10_000)
    options = parser.parse_args()
    silence_logs()
    with tempfile.TemporaryDirectory() as folder:
        traces = options.traces or [Path(folder) / f"random-{number}" / "1" for number in range(options.models)]
        if options.traces is None:
            for directory in traces:
                command = [sys.executable, "-c", _RANDOM, str(directory), directory.parent.name]
                subprocess.run(command, check=True, cwd=ROOT)
            print(describe())
        settings = Settings(
            history="none",
            traces=[str(directory) for directory in traces], zeek=[BUS], state_dir=Path(folder) / "state",
            trace_subjects=len(traces) * options.subjects, trace_open_flows=max(200_000, len(traces) * options.flows),
        )  # fmt: skip
        asyncio.run(measure(settings, options.flows, options.subjects))


if __name__ == "__main__":
    main()
