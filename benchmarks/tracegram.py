"""Tracegram's flow features on CPU: the ONNX Runtime engine in batches beside one flow at a time as published.

    pip install -e '.[benchmarks]'   # the other side
    python benchmarks/tracegram.py CAPTURE... [--flows 256] [--size 64/96/2/4/32/2] [--threads 1] [--payload] [--int8]

Published way: `LinearAttentionTransformerLM` of that package as configured there (12,032 positions), one flow a call,
padded to a multiple of 256 tokens, and torch's `TransformerDecoderLayer` with one query over all positions, float32.
Both sides get the same weights and the same real flows, in one run. The published query attends to padding, so that a
feature depends on how far its flow is padded; for the comparison of results, not of times, it is told which positions
are padding. The script fails if features then differ by more than 1e-4. Times are CPU seconds of this process. Last,
the context that the trace checkpoint that ships reads of the same flows: other features, so that only times compare.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

try:
    import torch
    from linear_attention_transformer import LinearAttentionTransformerLM
except ModuleNotFoundError as missing:
    sys.exit(f"tracegram.py needs {missing.name}: pip install -e '.[benchmarks]'")
import numpy as np
from cpu_time import cpu_seconds
from hardware import describe, report
from torch import Tensor, nn

from tapline.models.checkpoint import TracegramCheckpoint, TracegramNetwork
from tapline.models.packet_tokens import (
    MAX_SEQUENCE,
    PADDING,
    VOCABULARY,
    PacketTokens,
    TracegramFeatures,
    encode_packets,
)
from tapline.models.trace_context import trace_context
from tapline.models.tracegram import Tracegram
from tapline.service.engines.loading import load_trace_engine
from tapline.service.engines.trace_engine import packet_pieces
from tapline.service.inference.repository import ZOO, newest_version
from tapline.service.inference.trace_loading import SHIPPED_TRACES
from tapline.service.sources.capture import CaptureReader, ReadOptions
from tapline.training.export.checkpoint_export import export_traces

PADDED_TO = 256
TOLERANCE = 1e-4
LABELS = ["a", "b"]


class Net(nn.Module):
    """A level of the published weight names."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net


class Published(nn.Module):
    """The published flow encoder on the public modules, weight names as published."""

    def __init__(self, network: TracegramNetwork) -> None:
        super().__init__()
        language_model = LinearAttentionTransformerLM(
            num_tokens=VOCABULARY, dim=network.dim, heads=network.heads, depth=network.depth,
            max_seq_len=network.max_seq_len, causal=True, emb_dim=network.emb_dim, dim_head=network.dim_head,
            blindspot_size=network.blindspot_size, n_local_attn_heads=network.n_local_attn_heads,
            local_attn_window_size=network.local_attn_window_size, reversible=True, ff_chunks=2, ff_glu=True,
            attend_axially=False, shift_tokens=True,
        )  # fmt: skip
        self.net = Net(language_model)
        self.cls_embedding = nn.Embedding(1, network.emb_dim)
        self.decoder_layer = nn.TransformerDecoderLayer(
            network.emb_dim, network.decoder_heads, network.decoder_ff, batch_first=True
        )

    def forward(self, tokens: Tensor, padding: Tensor | None = None) -> Tensor:
        """Tokens [B, 256 n] to features [B, E]; `padding` bool [B, 256 n] hides positions from the query."""
        model = self.net.net
        embedded = model.token_emb(tokens)
        embedded = embedded + model.pos_emb(embedded)
        states = model.norm(model.transformer(embedded))
        query = self.cls_embedding.weight.expand(len(tokens), 1, -1)
        return self.decoder_layer(query, states, memory_key_padding_mask=padding)[:, 0]


def published_inputs(batch: PacketTokens) -> list[Tensor]:
    """One matrix [1, 256 n] for each flow."""
    found = []
    for start, end in zip(batch.offsets[:-1].tolist(), batch.offsets[1:].tolist(), strict=True):
        tokens = torch.full((1, -(-(end - start) // PADDED_TO) * PADDED_TO), PADDING)
        tokens[0, : end - start] = torch.from_numpy(batch.tokens[start:end].astype(np.int64))
        found.append(tokens)
    return found


def network_of(size: str) -> TracegramNetwork:
    emb_dim, dim, depth, heads, dim_head, local = map(int, size.split("/"))
    return TracegramNetwork(
        n_class=len(LABELS), feature_size=emb_dim, emb_dim=emb_dim, dim=dim, depth=depth, heads=heads,
        dim_head=dim_head, n_local_attn_heads=local, max_seq_len=MAX_SEQUENCE,
    )  # fmt: skip


def main() -> None:
    """Measure both sides in turn and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("captures", nargs="+", type=Path)
    parser.add_argument("--flows", type=int, default=256)
    parser.add_argument("--size", default="64/96/2/4/32/2", help="emb_dim/dim/depth/heads/dim_head/local heads")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--payload", action="store_true", help="heads with payload, not headers alone")
    parser.add_argument("--int8", action="store_true", help="the quantised encoder; results are not compared")
    options = parser.parse_args()
    threads = options.threads
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    network, features = network_of(options.size), TracegramFeatures(payload=options.payload)
    reading = ReadOptions(heads="full" if options.payload else "header")
    found = [flow for path in options.captures for flow in CaptureReader(path, reading) if flow.payload_lengths]
    flows = [found[index] for index in np.random.default_rng(1).permutation(len(found))[: options.flows]]
    model = Tracegram(network).eval()
    published = Published(network).eval()
    published.load_state_dict(model.encoder.state_dict())
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "benchmark" / "1"
        weights = {name: value.numpy() for name, value in model.state_dict().items()}
        manifest = TracegramCheckpoint("tracegram", "benchmark", "1", network, LABELS, features)
        export_traces(directory, manifest, weights, "# benchmark\n", int8=options.int8)
        engine = load_trace_engine("onnx", directory, threads, "int8" if options.int8 else "float32")

    batch = encode_packets(flows, features)
    inputs = published_inputs(batch)

    @torch.inference_mode()
    def run_published() -> list[Tensor]:
        return [published(tokens) for tokens in inputs]

    with torch.inference_mode():
        expected = np.concatenate([published(tokens, tokens == PADDING).numpy() for tokens in inputs])
    difference = float(np.abs(expected - engine.embed(flows)).max())
    ours = len(flows) / cpu_seconds(lambda: engine.embed(flows), options.repeats)
    single = len(flows) / cpu_seconds(lambda: [engine.embed([flow]) for flow in flows], options.repeats)
    theirs = len(flows) / cpu_seconds(run_published, options.repeats)
    computed = sum(len(rows) * int(batch.counts[rows].max()) for rows in packet_pieces(batch))
    precision = "int8" if options.int8 else "float32"
    print(f"machine    {describe()}, {threads} threads")
    print(f"input      {len(flows)} real flows, {batch.counts.mean():.0f} tokens each; {options.size}")
    print(f"published  {theirs:.1f} flows per CPU second (torch, one at a time, padded to multiples of {PADDED_TO})")
    print(f"tapline    {ours:.1f} flows per CPU second (ONNX Runtime, {1 - batch.counts.sum() / computed:.1%} padding)")
    print(f"           {single:.1f} flows per CPU second one flow at a time")
    print(f"ratio      {ours / theirs:.2f}")
    print(f"largest difference of features {difference:.1e}")
    what = f"Tracegram's features on CPU, {options.size}, {precision}, {batch.counts.mean():.0f} tokens a flow"
    figures = f"published way {theirs:.1f} flows per CPU second, tapline {ours:.1f}: **{ours / theirs:.1f} times**"
    report(what, f"{figures}, features within {difference:.1e}")
    shipped = load_trace_engine("onnx", newest_version(ZOO / SHIPPED_TRACES[0]), threads)
    fields = shipped.checkpoint.network.context
    serving = len(flows) / cpu_seconds(lambda: trace_context(flows, fields), options.repeats)
    name = (
        f"{shipped.checkpoint.name}, the trace checkpoint that ships, the context of the same flows, all that it reads"
    )
    report(name, f"{serving:.0f} flows per CPU second, **{serving / theirs:.0f} times** the published way above")
    if difference > TOLERANCE and not options.int8:
        raise SystemExit("the two sides do not compute the same")


if __name__ == "__main__":
    main()
