"""Phase 1 with an encoder that learns too: MM4flow's encoder, aggregation and head together, from the labels of traces.

The encoder starts from masked-token pre-training. Drawing and disturbing traces belong to `aggregate`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from tapline.models.encode import FIRST_TOKEN, MASK, PAD, Mm4flowFeatures, encode
from tapline.models.flow import Flow
from tapline.models.mm4flow import Mm4flow, Mm4flowOutput
from tapline.models.trace_context import Field, trace_context
from tapline.models.tracegram import TraceNetwork
from tapline.training.data.batches import to_batch
from tapline.training.data.labelled_traces import LabelledTrace, flows_of
from tapline.training.loop.new_networks import new_model, train_mode
from tapline.training.loop.trainer import Report, RunFiles, Stage, Work, train_stage
from tapline.training.traces.aggregate import (
    Scale,
    fold_scale,
    scale_of,
    settle_norms,
    sharpen,
    standardise,
    with_bag,
    without_bag,
)
from tapline.training.traces.background import Learned, learned_with, network_with
from tapline.training.traces.features import TraceFeatures, context_noise, kept_flows, trace_noise
from tapline.training.traces.trace_config import TraceTrainingConfig

KINDS_AT_ONCE = 64
"""Flows of different tokens that are encoded at once, sorted by length."""


@dataclass(frozen=True)
class FlowTable:
    """The n flows of traces, trace after trace, as MM4flow reads them; flows of equal tokens are one kind of u.

    `ps` int64 [u, P], `content` and `types` int64 [u, S], padded, the real tokens counted in `ps_counts` and
    `content_counts` int64 [u]; `kind` int64 [n]; `start_us`, `duration_us` int64 [n]; `context` uint8 [n, fields]; the
    flows of trace t are `first[t]:first[t + 1]`.
    """

    ps: NDArray[np.int64]
    content: NDArray[np.int64]
    types: NDArray[np.int64]
    ps_counts: NDArray[np.int64]
    content_counts: NDArray[np.int64]
    kind: NDArray[np.int64]
    start_us: NDArray[np.int64]
    duration_us: NDArray[np.int64]
    context: NDArray[np.uint8]
    first: NDArray[np.int64]

    def pieces(self, rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """The kinds of these flows, each once, in pieces of like length."""
        kinds = np.unique(self.kind[rows])
        order = kinds[np.argsort(self.ps_counts[kinds] + self.content_counts[kinds], kind="stable")]
        return [order[start : start + KINDS_AT_ONCE] for start in range(0, len(order), KINDS_AT_ONCE)]

    def tokens(self, kinds: NDArray[np.int64]) -> tuple[int, int]:
        """Real tokens of a piece, and those that are computed, padding with them."""
        ps, content = self.ps_counts[kinds], self.content_counts[kinds]
        return int(ps.sum() + content.sum()), int(len(kinds) * (ps.max() + content.max()))


def make_table(traces: Sequence[LabelledTrace], features: Mm4flowFeatures, fields: Sequence[Field] = ()) -> FlowTable:
    """The flows of these traces as tokens, with their context."""
    flows: list[Flow] = flows_of(traces)
    rows = np.arange(len(flows))
    batch = to_batch(encode(flows, features), rows, rows)
    ps, content, types = (part.numpy() for part in (batch.ps_tokens, batch.bytes_tokens, batch.bytes_types))
    _, chosen, kind = np.unique(np.concatenate((ps, content), axis=1), axis=0, return_index=True, return_inverse=True)
    return FlowTable(
        ps[chosen],
        content[chosen],
        types[chosen],
        (ps[chosen] != PAD).sum(axis=1),
        (content[chosen] != PAD).sum(axis=1),
        kind.ravel(),
        np.array([flow.start_us for flow in flows], np.int64),
        np.array([flow.duration_us for flow in flows], np.int64),
        trace_context(flows, fields),
        np.cumsum([0, *(len(trace.trace.flows) for trace in traces)]),
    )


class JointNetwork(nn.Module):
    """Encoder and trace network; what the latter reads is standardised by the scale of the untrained encoder."""

    def __init__(self, encoder: Mm4flow, trace: TraceNetwork) -> None:
        super().__init__()
        self.encoder, self.trace = encoder, trace

    def encode(self, table: FlowTable, rows: NDArray[np.int64], mask_lengths: float = 0.0) -> tuple[Tensor, Tensor]:
        """Embedding [n, F] and flow class logits [n, C] of these flows; a share of lengths reads `[MASK]`."""
        pieces = table.pieces(rows)
        outputs = [self._encode_kinds(table, kinds, mask_lengths) for kinds in pieces]
        place = np.empty(len(table.ps), np.int64)
        place[np.concatenate(pieces)] = np.arange(sum(map(len, pieces)))
        index = torch.from_numpy(place[table.kind[rows]])
        return (
            torch.cat([output.embedding for output in outputs])[index],
            torch.cat([output.logits for output in outputs])[index],
        )

    def _encode_kinds(self, table: FlowTable, kinds: NDArray[np.int64], mask_lengths: float) -> Mm4flowOutput:
        packets, length = table.ps_counts[kinds].max(), table.content_counts[kinds].max()
        ps = torch.from_numpy(table.ps[kinds, :packets])
        content, types = (torch.from_numpy(part[kinds, :length]) for part in (table.content, table.types))
        if mask_lengths:
            ps = ps.masked_fill((torch.rand(ps.shape) < mask_lengths) & (ps >= FIRST_TOKEN), MASK)
        output: Mm4flowOutput = self.encoder(ps, content, types)
        return output


@torch.no_grad()
def joint_features(network: JointNetwork, table: FlowTable) -> list[TraceFeatures]:
    """The features of the flows of all traces of the table, float32 [1, k, F] each."""
    network.eval()
    rows = np.arange(len(table.kind))
    made = [network.encode(table, part)[0].numpy() for part in np.array_split(rows, max(1, len(rows) // 4096))]
    embedded = np.concatenate(made)
    spans = [slice(first, last) for first, last in pairwise(table.first.tolist())]
    return [
        TraceFeatures(embedded[None, span], table.start_us[span], table.duration_us[span], table.context[span])
        for span in spans
    ]


@dataclass(frozen=True)
class Jointly:
    """What joint training gives: encoder and trace network, and the features of every trace of the corpus, then of the
    background."""

    encoder: Mm4flow
    trace: TraceNetwork
    features: list[TraceFeatures]


def encoder_weights(encoder: Mm4flow) -> dict[str, Tensor]:
    """What the embedding needs: neither the masked-token heads nor the flows' classifier, which only training reads."""
    return {
        name: value
        for name, value in encoder.state_dict().items()
        if ".cls." not in name and not name.startswith("classifier.")
    }


def fit_jointly(
    traces: Sequence[LabelledTrace],
    truth: NDArray[np.int64],
    train: NDArray[np.int64],
    config: TraceTrainingConfig,
    start: Mapping[str, Tensor] | None = None,
    files: RunFiles | None = None,
    report: Report = lambda _: None,
    background: Sequence[LabelledTrace] = (),
) -> Jointly:
    """Learn from the traces `train` of all `traces`; `start` are pre-trained encoders, without them from nothing.

    `background`, all of it learned, is the class after the labels, of which the settings' network has the number.

    Raises:
        TrainingError: the encoders do not fit, the loss is not finite, or the state cannot be saved or read.
    """
    if config.mm4flow is None:
        raise ValueError("expected settings with an MM4flow encoder")
    everything = [*traces, *background]
    learned = learned_with(truth, train, background, config)
    table = make_table(everything, config.mm4flow.features, config.network.context)
    sizes = network_with(config.network, background=bool(background))
    encoder = new_model(msgspec.structs.replace(config.mm4flow.network, n_class=sizes.n_class), config.seed, start)
    torch.manual_seed(config.seed)
    trace = TraceNetwork(without_bag(sizes))
    sharpen(trace)
    network = JointNetwork(encoder, trace)
    before = joint_features(network, table)
    scale = scale_of([before[row] for row in learned.rows])
    stage = _stage(network, table, learned, scale, config)
    trained = train_stage(network, stage, config.loop(config.traces), files, report)
    features = joint_features(trained, table)
    mine = standardise([features[row] for row in learned.rows], scale)
    settled = settle_norms(trained.trace, mine, learned.weights, config)
    folded = fold_scale(settled, scale)
    whole, own = msgspec.structs.replace(config, network=sizes), [features[row] for row in learned.rows]
    fitted = with_bag(folded, own, learned.truth[learned.rows], learned.weights, whole)
    return Jointly(trained.encoder.eval(), fitted, features)


def _stage(
    network: JointNetwork,
    table: FlowTable,
    learned: Learned,
    scale: Scale,
    config: TraceTrainingConfig,
) -> Stage:
    labels = torch.from_numpy(learned.truth)
    mean, deviation = torch.from_numpy(scale.mean), torch.from_numpy(scale.deviation)

    def share(batch: list[_Drawn], rows: NDArray[np.int64]) -> Tensor:
        part = [batch[row] for row in rows]
        wanted = labels[[each.trace for each in part]]
        counts = torch.tensor([len(each.flows) for each in part])
        embedding, flow_logits = network.encode(
            table, np.concatenate([each.flows for each in part]), config.mask_lengths
        )
        scaled = torch.split((embedding - mean) / deviation, counts.tolist())
        features = pad_sequence(list(scaled), batch_first=True)
        times = pad_sequence([torch.from_numpy(each.times) for each in part], batch_first=True)
        context = pad_sequence([torch.from_numpy(each.context) for each in part], batch_first=True)
        logits = network.trace(features, times, counts, context).logits
        smooth = config.label_smoothing
        loss = functional.cross_entropy(logits, wanted, label_smoothing=smooth)
        if config.flow_labels:
            of_flows = functional.cross_entropy(flow_logits, wanted.repeat_interleave(counts), label_smoothing=smooth)
            loss = loss + config.flow_labels * of_flows
        return loss * len(rows) / len(batch)

    def works(epoch: int) -> Iterator[Work]:
        for batch in _epoch(table, learned, config, epoch):
            pieces = table.pieces(np.concatenate([each.flows for each in batch]))
            real, computed = np.sum([table.tokens(kinds) for kinds in pieces], axis=0).tolist()
            yield Work(len(batch), real, computed, partial(share, batch))

    # dropout acts on kinds of flows here, and batch normalisation needs the batch whole
    return Stage("train-traces", works, train_mode, dropout_by_flow=False)


@dataclass(frozen=True)
class _Drawn:
    """A trace as drawn: its number, its flows that were kept int64 [k], their times float32 [k, 2] and their context
    uint8 [k, fields]."""

    trace: int
    flows: NDArray[np.int64]
    times: NDArray[np.float32]
    context: NDArray[np.uint8]


def _epoch(
    table: FlowTable,
    learned: Learned,
    config: TraceTrainingConfig,
    epoch: int,
) -> Iterator[list[_Drawn]]:
    rng = np.random.default_rng([config.seed, 2, epoch])
    phase, how = config.traces, config.trace_augmentation
    drawn = rng.choice(learned.rows, phase.draws, p=learned.weights)
    for start in range(0, phase.draws, phase.batch):
        batch = []
        for trace in drawn[start : start + phase.batch].tolist():
            first, last = table.first[trace], table.first[trace + 1]
            flows = first + kept_flows(int(last - first), how, rng)
            times = trace_noise(table.start_us[flows], table.duration_us[flows], how, rng)
            batch.append(_Drawn(trace, flows, times, context_noise(table.context[flows], how, rng)))
        if len(batch) > 1:  # batch normalisation needs two
            yield batch
