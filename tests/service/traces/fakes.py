"""A small deterministic trace engine in numpy, and flows that count in traces."""

import numpy as np

from tapline.models.checkpoint import EarlyVerdict, TracegramCheckpoint, TracegramNetwork
from tapline.models.flow import Flow, PacketHead
from tapline.models.packet_tokens import encode_packets
from tapline.service.engines.trace_engine import TraceScores
from tapline.service.inference.classifier import FlowOutcome
from tapline.service.inference.flow_features import FlowFeatures, pack

LABELS = ["camera", "plug", "scale"]
WIDTH = 8
SECOND = 1_000_000


def trace_checkpoint(encoder="tracegram", **changes) -> TracegramCheckpoint:
    fields = {
        "kind": "tracegram", "name": "devices", "version": "2", "labels": LABELS,
        "network": TracegramNetwork(
            encoder=encoder, feature_size=WIDTH, emb_dim=WIDTH, n_class=len(LABELS)
        ),
        "early": EarlyVerdict(confidence=0.5, min_flows=2), **changes,
    }  # fmt: skip
    return TracegramCheckpoint(**fields)


def read_by(*checkpoints, values=None, number=0) -> FlowOutcome:
    """The outcome of a flow without a verdict: what each checkpoint reads of it, the same of equal widths."""
    features = []
    for checkpoint in checkpoints:
        width = checkpoint.network.feature_size
        row = np.random.default_rng(number).normal(size=width) if values is None else values
        features.append(FlowFeatures(checkpoint, *pack(np.float32(row).reshape(1, width))))
    return FlowOutcome(None, tuple(features))


class NumpyTraceEngine:
    """Features are a random projection of the bytes' counts; a trace is the softmax-weighted mean of its flows."""

    def __init__(self, checkpoint=None):
        self.checkpoint = checkpoint or trace_checkpoint()
        generator = np.random.default_rng(5)
        self.width = self.checkpoint.network.feature_size
        self.project = generator.normal(size=(260, self.width)).astype(np.float32)
        self.head = generator.normal(size=(self.width, len(LABELS))).astype(np.float32)
        self.embedded = []
        self.scored = []
        self.broken = False

    def embed(self, flows):
        batch = encode_packets(flows, self.checkpoint.features)
        counts = np.diff(batch.offsets)
        self.embedded.append(len(counts))
        rows = np.repeat(np.arange(len(counts)), counts)
        histogram = np.zeros((len(counts), 260), np.float32)
        np.add.at(histogram, (rows, batch.tokens), 1)
        return np.tanh(histogram @ self.project / 20)

    def score(self, traces):
        if self.broken:
            raise RuntimeError("engine fault")
        self.scored.append([len(trace.features) for trace in traces])
        logits, importance = [], []
        for trace in traces:
            weights = np.exp(trace.features[:, 0] + np.log1p(trace.duration_us / 1e6))
            weights = (weights / weights.sum()).astype(np.float32)
            logits.append((weights[:, None] * trace.features).sum(axis=0) @ self.head * 4)
            importance.append(weights)
        return TraceScores(np.array(logits, np.float32).reshape(len(traces), len(LABELS)), importance)


def trace_flow(uid, seconds, orig="10.0.0.5", *, duration=0.0, complete=True, data=b"", **fields) -> Flow:
    """A flow with payload and a head, of one host that starts then."""
    head = data or bytes(str(uid), "ascii") * 3
    return Flow(
        str(uid), round(seconds * SECOND), round(duration * SECOND), orig, 1000, fields.pop("resp", "192.0.2.1"),
        fields.pop("resp_p", 443), "udp", 1, 0, [40], heads_kind="header", heads=[PacketHead(0, head)],
        complete=complete, orig_ip_bytes=100, **fields,
    )  # fmt: skip
