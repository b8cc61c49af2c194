"""MM4flow on a GPU: tokens per second, share of the card's own matrix rate, and the published loop on the same card.

    python benchmarks/gpu.py CAPTURE... [--size 768/12/12/3072] [--flows 8192] [--precision bfloat16] [--profile FILE]

The card's matrix rate is measured first: products of square bfloat16 matrices, the best of some sizes. Tapline's side
is the torch engine's runner with packed sequences, host to host, tokens copied there and scores back; the published
side is that of `engine.py`: padded to 256 + 512 tokens, batches of 64, in float32. Both have the same random weights
and real flows. Work is counted on real tokens alone: the multiplications and additions of every layer, attention
included. Without a GPU the CPU stands in, which the machine's line says, so that the script is tried everywhere; its
figures are then of no use.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from engine import CLASSES, PUBLISHED_BATCH, Published, padded_inputs, read_flows
from hardware import describe, report

from tapline.models.checkpoint import Mm4flowNetwork
from tapline.models.encode import TokenBatch, encode
from tapline.models.mm4flow import Mm4flow
from tapline.service.engines.devices import FIRST_GPU
from tapline.service.engines.torch_common import pick_device
from tapline.service.engines.torch_engine import Mm4flowRunner

CARD_SIZES = (4096, 8192, 16384)


def wait(device: torch.device) -> None:
    """Until everything queued on the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def best_seconds(run: Callable[[], object], device: torch.device, repeats: int) -> float:
    """The shortest of some runs, warm-up apart: a card that others use is slower, never faster."""
    times = []
    for _ in range(repeats + 1):
        wait(device)
        start = time.perf_counter()
        run()
        wait(device)
        times.append(time.perf_counter() - start)
    return min(times[1:])


def matrix_rate(device: torch.device, sizes: tuple[int, ...], repeats: int) -> float:
    """Operations per second of bfloat16 matrix products, the best of the sizes."""
    rates = []
    for size in sizes:
        left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
        rates.append(2 * size**3 / best_seconds(lambda a=left, b=right: a @ b, device, repeats))
    return max(rates)


def operations(network: Mm4flowNetwork, batch: TokenBatch) -> float:
    """Multiplications and additions of both encoders on real tokens; the fusion reads two queries a flow."""
    total = 0.0
    for counts in (batch.ps_counts.astype(float), batch.bytes_counts.astype(float)):
        dense = 4 * network.d_model**2 + 2 * network.d_model * network.dim_ff
        total += network.n_layer * float((2 * counts * dense + 4 * counts**2 * network.d_model).sum())
    return total


def largest_difference(published: Published, runner: Mm4flowRunner, batch: TokenBatch, device: torch.device) -> float:
    """Of the logits of both sides over the first flows, float32 beside the runner's precision."""
    with torch.inference_mode():
        expected = published(*(part[:PUBLISHED_BATCH].to(device) for part in padded_inputs(batch))).cpu().numpy()
    return float(np.abs(runner.run(batch).logits[: len(expected)] - expected).max())


def main() -> None:
    """Measure the card, tapline and the published loop in one run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("captures", nargs="+", type=Path)
    parser.add_argument("--size", default="768/12/12/3072", help="width/layers/heads/feed-forward")
    parser.add_argument("--flows", type=int, default=8192)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--card-sizes", type=int, nargs="+", default=CARD_SIZES)
    parser.add_argument("--profile", type=Path, help="write where the time goes, kernel by kernel")
    options = parser.parse_args()
    device = pick_device(FIRST_GPU)
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else "no GPU, the CPU stands in"
    torch.manual_seed(0)
    network = Mm4flowNetwork(*map(int, options.size.split("/")), n_class=CLASSES)
    flows = read_flows(options.captures, options.flows)
    batch = encode(flows)
    published = Published(network).eval()
    model = Mm4flow(network)
    model.load_state_dict(
        {name: value for name, value in published.state_dict().items() if ".cls." not in name}, strict=False
    )
    published.to(device)
    runner = Mm4flowRunner(model, network, device, options.precision, packed=True)
    difference = largest_difference(published, runner, batch, device)

    rate = matrix_rate(device, tuple(options.card_sizes), options.repeats)
    ours = best_seconds(lambda: runner.run(batch), device, options.repeats)
    ends_to_end = best_seconds(lambda: runner.run(encode(flows)), device, options.repeats)
    sample = [part[: 8 * PUBLISHED_BATCH] for part in padded_inputs(batch)]

    @torch.inference_mode()
    def run_published() -> None:
        for start in range(0, len(sample[0]), PUBLISHED_BATCH):
            published(*(part[start : start + PUBLISHED_BATCH].to(device) for part in sample)).cpu()

    theirs = best_seconds(run_published, device, options.repeats) / len(sample[0])
    tokens = len(batch.ps_tokens) + len(batch.bytes_tokens)
    share = operations(network, batch) / ours / rate
    print(f"machine    {describe()}; {card}")
    print(f"input      {len(flows)} real flows, {tokens / len(flows):.0f} tokens each; model {options.size}")
    print(f"card       {rate / 1e12:.1f} T operations/s in products of bfloat16 matrices")
    print(
        f"tapline    {len(flows) / ours:.0f} flows/s, {tokens / ours:.0f} tokens/s, {options.precision}: {share:.1%} "
        "of the card"
    )
    print(f"           {len(flows) / ends_to_end:.0f} flows/s with encoding")
    print(f"published  {1 / theirs:.0f} flows/s in float32, padded, batches of {PUBLISHED_BATCH}")
    print(f"ratio      {len(flows) / ours * theirs:.1f}; largest difference of logits {difference:.1e}")
    report(
        f"MM4flow on {card}, {options.size}, {options.precision}, {len(flows)} real flows",
        f"{tokens / ours:.0f} tokens/s, {share:.0%} of the card's matrix rate on real tokens; "
        f"{len(flows) / ours * theirs:.1f} times the published loop in float32",
    )
    if options.profile:
        activities = [torch.profiler.ProfilerActivity.CPU]
        if device.type == "cuda":
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        with torch.profiler.profile(activities=activities) as profile:
            runner.run(batch)
        key = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
        options.profile.write_text(profile.key_averages().table(sort_by=key, row_limit=40), encoding="utf-8")


if __name__ == "__main__":
    main()
