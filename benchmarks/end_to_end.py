"""From a capture to verdicts: `tapline classify` beside Zeek's logs and the published way of running the model.

    python benchmarks/end_to_end.py CAPTURE [--flows 2000]

tapline: one process, from start to the last verdict. Beside it: `zeek -r` with the package writing its flow log (the
published scripts cost more), then the published loop (torch, padded to 768 tokens, batches of 64) with a
network of the same size, measured on a sample of the flows and scaled to all of them. Needs `zeek` on PATH.
"""

from __future__ import annotations

import argparse
import random
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from engine import PUBLISHED_BATCH, Published, padded_inputs
from hardware import describe, report

from tapline.models.checkpoint import read_checkpoint
from tapline.models.encode import encode
from tapline.models.flow import Flow
from tapline.service.inference.classifier import DEFAULT_CHECKPOINT
from tapline.service.inference.repository import shipped_checkpoint
from tapline.service.sources.capture import CaptureReader, ReadOptions

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Cost:
    """What something took."""

    wall_seconds: float
    cpu_seconds: float


def cost_of(command: list[str], folder: str) -> Cost:
    """Run a command to its end."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, cwd=folder, stdout=subprocess.DEVNULL, timeout=1800)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Cost(time.perf_counter() - started, cpu)


def published_loop(flows: list[Flow], sample: int) -> Cost:
    """The published loop on a sample of the flows, scaled to all."""
    network = read_checkpoint(shipped_checkpoint(DEFAULT_CHECKPOINT)).network
    torch.manual_seed(0)
    model = Published(network).eval()
    kept = random.Random(0).sample(flows, min(sample, len(flows)))
    inputs = padded_inputs(encode(kept))
    started, cpu = time.perf_counter(), time.process_time()
    with torch.inference_mode():
        for start in range(0, len(kept), PUBLISHED_BATCH):
            model(*(part[start : start + PUBLISHED_BATCH] for part in inputs))
    scale = len(flows) / len(kept)
    return Cost((time.perf_counter() - started) * scale, (time.process_time() - cpu) * scale)


def main() -> None:
    """Measure both sides in turn and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("capture", type=Path)
    parser.add_argument("--flows", type=int, default=2000, help="sample for the published loop")
    options = parser.parse_args()
    capture = str(options.capture.resolve())
    flows = [flow for flow in CaptureReader(Path(capture), ReadOptions(heads="none")) if flow.payload_lengths]
    with tempfile.TemporaryDirectory() as folder:
        code = "from tapline.service.command.cli import main; main()"
        command = [sys.executable, "-c", code, "classify", capture, "--format", "ndjson", "-o", f"{folder}/verdicts"]
        ours = cost_of(command, folder)
        zeek = cost_of(["zeek", "-C", "-r", capture, str(ROOT / "zeek" / "scripts" / "offline.zeek")], folder)
    loop = published_loop(flows, options.flows)
    print(f"machine    {describe()}")
    print(
        f"input      {options.capture.name}, {Path(capture).stat().st_size >> 20} MiB, {len(flows)} flows with payload"
    )
    print(f"tapline    {ours.wall_seconds:.1f} s, {ours.cpu_seconds:.1f} s of CPU")
    print(f"zeek -r    {zeek.wall_seconds:.1f} s, {zeek.cpu_seconds:.1f} s of CPU")
    print(f"loop       {loop.wall_seconds:.1f} s, {loop.cpu_seconds:.1f} s of CPU")
    ratio = (zeek.wall_seconds + loop.wall_seconds) / ours.wall_seconds
    cpu_ratio = (zeek.cpu_seconds + loop.cpu_seconds) / ours.cpu_seconds
    print(f"ratio      {ratio:.2f} wall, {cpu_ratio:.2f} CPU")
    report(
        f"capture to verdicts, {options.capture.name}, {len(flows)} flows, beside `zeek -r` and the published loop",
        f"{ours.wall_seconds:.1f} s beside {zeek.wall_seconds:.1f} + {loop.wall_seconds:.1f}: **{ratio:.1f} times**",
    )


if __name__ == "__main__":
    main()
