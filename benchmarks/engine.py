"""MM4flow on CPU: the ONNX Runtime engine beside the published way of running the model.

    python benchmarks/engine.py CAPTURE... [--flows 512] [--size 128/2/2/512] [--threads 0]

Published way: the public BERT of `transformers`, one per modality, every flow padded to 256 + 512 tokens, batches of
64, full cross-attention (`torch.nn.MultiheadAttention`) over all positions, float32, in torch. Both sides get the same
weights and the same real flows, in one run; the script fails if their logits differ by more than 1e-4.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import torch
from hardware import describe, report, short
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM

from tapline.models.checkpoint import ONNX, WEIGHTS, Checkpoint, Mm4flowNetwork
from tapline.models.checkpoint_writing import write_checkpoint
from tapline.models.encode import BYTES_VOCABULARY, PS_VOCABULARY, TokenBatch, encode, pad
from tapline.models.flow import Flow
from tapline.models.mm4flow import Mm4flow
from tapline.service.engines.loading import load_engine
from tapline.service.engines.pieces import pieces
from tapline.service.sources.capture import CaptureReader, ReadOptions
from tapline.training.export.mm4flow_onnx import mm4flow_graph

PUBLISHED_BATCH = 64
CLASSES = 30
TOLERANCE = 1e-4


class Published(nn.Module):
    """The published classifier's computation, on public modules, weight names as published."""

    def __init__(self, network: Mm4flowNetwork) -> None:
        super().__init__()

        def encoder(vocabulary: int, positions: int) -> BertForMaskedLM:
            return BertForMaskedLM(
                BertConfig(
                    vocab_size=vocabulary,
                    hidden_size=network.d_model,
                    num_hidden_layers=network.n_layer,
                    num_attention_heads=network.n_head,
                    intermediate_size=network.dim_ff,
                    max_position_embeddings=positions,
                )
            )

        self.ps_encoder = encoder(PS_VOCABULARY, 256)
        self.bytes_encoder = encoder(BYTES_VOCABULARY, 512)
        self.ps_cross_attention = nn.MultiheadAttention(network.d_model, 4, batch_first=True)
        self.bytes_cross_attention = nn.MultiheadAttention(network.d_model, 4, batch_first=True)
        self.classifier = nn.Sequential(nn.Linear(2 * network.d_model, network.n_class))

    def forward(self, ps: Tensor, content: Tensor, types: Tensor) -> Tensor:
        """Token matrices [B, 256] and [B, 512] to logits [B, classes]."""
        ps_hidden = self.ps_encoder.bert(ps, attention_mask=ps != 0).last_hidden_state
        bytes_hidden = self.bytes_encoder.bert(
            content, token_type_ids=types, attention_mask=content != 0
        ).last_hidden_state
        both = torch.cat((ps_hidden, bytes_hidden), 1)
        padding = torch.cat((ps, content), 1) == 0
        mixed = [
            attention(hidden, both, both, key_padding_mask=padding)[0][:, 0]
            for attention, hidden in (
                (self.ps_cross_attention, ps_hidden),
                (self.bytes_cross_attention, bytes_hidden),
            )
        ]
        return self.classifier(torch.cat(mixed, 1))


def padded_inputs(batch: TokenBatch) -> list[Tensor]:
    """Lengths, bytes and types as matrices of 256 and 512 columns, as the published loop computes them."""
    rows = np.arange(len(batch))
    return [
        torch.from_numpy(pad(tokens, offsets, rows, length))
        for tokens, offsets, length in (
            (batch.ps_tokens, batch.ps_offsets, 256),
            (batch.bytes_tokens, batch.bytes_offsets, 512),
            (batch.bytes_types, batch.bytes_offsets, 512),
        )
    ]


def read_flows(captures: list[Path], wanted: int) -> list[Flow]:
    """A fixed random sample of the flows with payload."""
    readers = (CaptureReader(path, ReadOptions(heads="none")) for path in captures)
    flows = [flow for flow in itertools.chain.from_iterable(readers) if flow.payload_lengths]
    return random.Random(1).sample(flows, min(wanted, len(flows)))


def seconds(run: Callable[[], object], repeats: int) -> float:
    """Median time, warm-up apart."""
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    """Measure both sides in turn and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("captures", nargs="+", type=Path)
    parser.add_argument("--flows", type=int, default=512)
    parser.add_argument("--size", default="128/2/2/512", help="width/layers/heads/feed-forward")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    threads = options.threads or len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    network = Mm4flowNetwork(*map(int, options.size.split("/")), n_class=CLASSES)
    flows = read_flows(options.captures, options.flows)
    published = Published(network).eval()
    weights = {name: value for name, value in published.state_dict().items() if name in Mm4flow(network).state_dict()}
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "benchmark" / "1"
        kept = {name: value.clone().contiguous() for name, value in weights.items() if ".cls." not in name}

        def write_files(target: Path) -> None:
            save_file(kept, target / WEIGHTS)
            onnx.save(mm4flow_graph({name: value.numpy() for name, value in kept.items()}, network), target / ONNX)

        labels = [str(index) for index in range(CLASSES)]
        write_checkpoint(directory, Checkpoint("mm4flow", "benchmark", "1", network, labels), write_files)
        engine = load_engine("onnx", directory, threads)

    batch = encode(flows)
    padded = padded_inputs(batch)

    @torch.inference_mode()
    def run_published() -> np.ndarray:
        starts = range(0, len(flows), PUBLISHED_BATCH)
        return np.concatenate([published(*(part[i : i + PUBLISHED_BATCH] for part in padded)).numpy() for i in starts])

    difference = float(np.abs(run_published() - engine.run(encode(flows)).logits).max())
    ours = len(flows) / seconds(lambda: engine.run(encode(flows)), options.repeats)
    theirs = len(flows) / seconds(run_published, options.repeats)
    cut = pieces(batch)
    computed = sum(len(part) * int(batch.ps_counts[part].max() + batch.bytes_counts[part].max()) for part in cut)
    real = len(batch.ps_tokens) + len(batch.bytes_tokens)
    print(f"machine    {describe()}, {threads} threads")
    print(f"input      {len(flows)} real flows, {real / len(flows):.0f} tokens each; model {options.size}, float32")
    print(f"published  {theirs:.1f} flows/s (torch, padded to 768 tokens, batch {PUBLISHED_BATCH})")
    print(f"tapline    {ours:.1f} flows/s (ONNX Runtime, {1 - real / computed:.1%} of computed tokens are padding)")
    print(f"ratio      {ours / theirs:.2f}")
    print(f"largest difference of logits {difference:.1e}")
    report(
        f"MM4flow on CPU, {options.size}, float32, {len(flows)} real flows of {real / len(flows):.0f} tokens",
        f"published way {theirs:.1f} flows/s, tapline {ours:.1f}: **{ours / theirs:.1f} times**; "
        f"{1 - real / computed:.1%} of computed tokens are padding, logits within {difference:.0e}",
    )
    short("MM4flow on CPU, float32", "the published way of running it", f"{ours / theirs:.1f} times as fast")
    if difference > TOLERANCE:
        raise SystemExit("the two sides do not compute the same")


if __name__ == "__main__":
    main()
