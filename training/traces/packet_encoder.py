"""Phases 0 and 0.5: the flow encoder learns to predict the next token, then the labels of flows. Also its features.

Flows are changed here and encoded by `models.packet_tokens`, so that training reads what serving reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from tapline.models.checkpoint import TracegramNetwork
from tapline.models.encode import PAD, PS_VOCABULARY, SEP, Mm4flowFeatures, encode, pad
from tapline.models.flow import Flow
from tapline.models.packet_tokens import (
    PACKET_START,
    PADDING,
    PacketTokens,
    TracegramFeatures,
    encode_packets,
    pad_packets,
)
from tapline.models.tracegram import FlowEncoder, QueryDecoder
from tapline.training.data.batches import TrainingSet, draw_weights
from tapline.training.data.labelled_traces import TraceCorpus, flows_of
from tapline.training.loop.config import TrainingError
from tapline.training.loop.dropout import FlowDropout
from tapline.training.loop.processes import ALONE, Group
from tapline.training.loop.trainer import Stage, Work
from tapline.training.traces.trace_config import FlowAugmentation, Phase, TraceTrainingConfig

POOL_BATCHES = 16
"""Batches are formed by length within a pool of this many, so that their order stays random."""

FEATURE_BATCH_TOKENS = 32_768

LENGTHS = 6
"""Payload lengths that a feature is asked for."""

LENGTH_WIDTH = 128


def flow_set(corpus: TraceCorpus, rows: NDArray[np.int64], config: TraceTrainingConfig) -> TrainingSet:
    """The flows of these traces with the labels of their traces, classes drawn equally often."""
    traces = [corpus.traces[row] for row in rows]
    owner = np.repeat(rows, [len(trace.trace.flows) for trace in traces])
    truth = corpus.truth[owner]
    return TrainingSet(flows_of(traces), truth, draw_weights(truth, owner, 0.0, config.capture_power))


class LengthHead(nn.Module):
    """Predicts the first payload lengths of a flow from its feature, as tokens of `models.encode`; training only.

    Sizes are what tells flows apart most, and stand in two bytes out of sixty of a packet: asked for them, the encoder
    learns to read them in a tenth of the time that labels alone take.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.slots = nn.Linear(width, LENGTHS * LENGTH_WIDTH)
        self.out = nn.Linear(LENGTH_WIDTH, PS_VOCABULARY)

    def forward(self, features: Tensor, wanted: Tensor) -> Tensor:
        """Mean cross-entropy of `wanted` int64 [B, LENGTHS] given features [B, F]; `PAD` where there is no packet."""
        hidden = functional.gelu(self.slots(features)).view(-1, LENGTHS, LENGTH_WIDTH)
        return functional.cross_entropy(self.out(hidden).flatten(0, 1), wanted.flatten())


class FlowLearner(nn.Module):
    """The flow encoder with what only its training needs: class head and length head."""

    def __init__(self, network: TracegramNetwork, flow_classes: int) -> None:
        super().__init__()
        self.encoder = FlowEncoder(network, flow_classes)
        self.lengths = LengthHead(network.feature_size)


def new_learner(
    network: TracegramNetwork, flow_classes: int, seed: int, weights: Mapping[str, Tensor] | None = None
) -> FlowLearner:
    """A flow encoder to train: random, or with pre-trained weights where they are given.

    Raises:
        TrainingError: the weights are of another size.
    """
    torch.manual_seed(seed)
    learner = FlowLearner(network, flow_classes)
    if weights is not None:
        kept = {name: value for name, value in weights.items() if not name.startswith("encoder.out.")}
        try:
            missing, unexpected = learner.load_state_dict(kept, strict=False)
        except RuntimeError as error:
            raise TrainingError(f"the flow encoder does not fit: {str(error).splitlines()[-1].strip()}") from None
        if unexpected or any(not name.startswith("encoder.out.") for name in missing):
            raise TrainingError("the flow encoder does not fit: it is not one of this network's")
    return learner


def length_tokens(flows: Sequence[Flow]) -> Tensor:
    """The first payload lengths of each flow as tokens, int64 [n, LENGTHS], `PAD` behind."""
    batch = encode(flows, Mm4flowFeatures(payload_lengths=LENGTHS, content_bytes=0))
    rows = pad(batch.ps_tokens, batch.ps_offsets, np.arange(len(flows)), LENGTHS + 2)[:, 1:]
    return torch.from_numpy(np.where(rows == SEP, PAD, rows)[:, :LENGTHS])


def disturb_flows(flows: Sequence[Flow], how: FlowAugmentation, rng: np.random.Generator) -> list[Flow]:
    """Copies of the flows, some cut to their first packets, with other gaps between packets."""
    changed = []
    for flow in flows:
        heads = flow.heads
        if len(heads) > 1 and rng.random() < how.prefix:
            heads = heads[: int(rng.integers(1, len(heads)))]
        if how.jitter_gaps:
            factors = np.exp(rng.normal(0, how.jitter_gaps, len(heads))).tolist()
            heads = [
                msgspec.structs.replace(head, gap_us=round(head.gap_us * factor))
                for head, factor in zip(heads, factors, strict=True)
            ]
        changed.append(msgspec.structs.replace(flow, heads=heads))
    return changed


def disturb_tokens(tokens: PacketTokens, how: FlowAugmentation, rng: np.random.Generator) -> PacketTokens:
    """Replace some byte tokens, another share in each flow; special tokens stay."""
    values = tokens.tokens.copy()
    share = np.repeat(rng.uniform(0, how.random_tokens, len(tokens)), tokens.counts)
    chosen = (values < PACKET_START) & (rng.random(len(values)) < share)
    values[chosen] = rng.integers(0, PACKET_START, int(chosen.sum()))
    return PacketTokens(values, tokens.offsets)


@dataclass(frozen=True)
class FlowBatch:
    """Padded tokens int64 [B, S], the same before tokens were replaced, and the index of each flow in its set [B]."""

    tokens: Tensor
    clean: Tensor
    rows: NDArray[np.int64]

    @property
    def next_tokens(self) -> int:
        """Tokens that have one before them, padding not counted."""
        return int((self.clean[:, 1:] != PADDING).sum())


def flow_batches(
    data: TrainingSet, phase: Phase, features: TracegramFeatures, how: FlowAugmentation, rng: np.random.Generator
) -> Iterator[FlowBatch]:
    """One epoch: flows drawn by weight with replacement, disturbed, in batches of like length."""
    drawn = rng.choice(len(data.flows), phase.draws, p=data.weights)
    pool = POOL_BATCHES * phase.batch
    for start in range(0, phase.draws, pool):
        rows = drawn[start : start + pool]
        clean = encode_packets(disturb_flows([data.flows[row] for row in rows], how, rng), features)
        tokens = disturb_tokens(clean, how, rng)
        order = np.argsort(tokens.counts, kind="stable")
        groups = [order[at : at + phase.batch] for at in range(0, len(order), phase.batch)]
        for index in rng.permutation(len(groups)):
            padded, wanted = (torch.from_numpy(pad_packets(each, groups[index])) for each in (tokens, clean))
            yield FlowBatch(padded, wanted, rows[groups[index]])


def pretrain_stage(learner: FlowLearner, data: TrainingSet, config: TraceTrainingConfig, group: Group = ALONE) -> Stage:
    """Phase 0: the next token, and the flow's payload lengths from its feature; labels are not read."""
    lengths = length_tokens(data.flows)

    def share(batch: FlowBatch, rows: NDArray[np.int64]) -> Tensor:
        output = learner.encoder(group.to_device(batch.tokens[rows]))
        asked = group.to_device(lengths[batch.rows[rows]])
        of_lengths: Tensor = learner.lengths(output.features, asked) * (config.lengths * len(rows) / len(batch.rows))
        return of_lengths + _next_token_share(learner, batch, rows, output.states, group)

    def works(epoch: int) -> Iterator[Work]:
        rng = np.random.default_rng([config.seed, 0, epoch])
        for batch in flow_batches(data, config.pretrain, config.features, config.pretrain_augmentation, rng):
            yield _work(batch, share)

    return Stage("pretrain-packets", works, train_mode)


def tune_stage(learner: FlowLearner, data: TrainingSet, config: TraceTrainingConfig, group: Group = ALONE) -> Stage:
    """Phase 0.5: a flow takes the label of its trace; its payload lengths, and the next token, are asked for too."""
    truth, lengths = torch.from_numpy(data.truth), length_tokens(data.flows)

    def share(batch: FlowBatch, rows: NDArray[np.int64]) -> Tensor:
        output, members = learner.encoder(group.to_device(batch.tokens[rows])), batch.rows[rows]
        wanted, asked = group.to_device(truth[members]), group.to_device(lengths[members])
        loss: Tensor = functional.cross_entropy(output.logits, wanted, label_smoothing=config.label_smoothing)
        loss = (loss + config.lengths * learner.lengths(output.features, asked)) * (len(rows) / len(batch.rows))
        if config.next_token:
            loss = loss + config.next_token * _next_token_share(learner, batch, rows, output.states, group)
        return loss

    def works(epoch: int) -> Iterator[Work]:
        rng = np.random.default_rng([config.seed, 1, epoch])
        for batch in flow_batches(data, config.tune, config.features, config.flow_augmentation, rng):
            yield _work(batch, share)

    return Stage("tune-flows", works, train_mode)


def _work(batch: FlowBatch, share: Callable[[FlowBatch, NDArray[np.int64]], Tensor]) -> Work:
    real = int((batch.tokens != PADDING).sum())
    return Work(len(batch.rows), real, batch.tokens.numel(), partial(share, batch))


def _next_token_share(
    learner: FlowLearner, batch: FlowBatch, rows: NDArray[np.int64], states: Tensor, group: Group
) -> Tensor:
    """What these rows contribute to the mean next-token loss of the batch."""
    losses = learner.encoder.next_token_losses(group.to_device(batch.clean[rows]), states)
    return losses.sum() / max(batch.next_tokens, 1)


def train_mode(model: nn.Module) -> None:
    """Dropout on, and batch normalisation by the batch."""
    model.train()
    for module in model.modules():
        if isinstance(module, QueryDecoder) and isinstance(module.dropout, FlowDropout):
            module.dropout.first_is_shared = True  # of the lone query attending to itself


@torch.inference_mode()
def flow_features(
    encoder: FlowEncoder,
    flows: Sequence[Flow],
    features: TracegramFeatures,
    disturb: tuple[FlowAugmentation, np.random.Generator] | None = None,
) -> NDArray[np.float32]:
    """The feature of every flow in order, float32 [n, F]; of disturbed copies where asked."""
    encoder.eval()
    if disturb:
        tokens = disturb_tokens(encode_packets(disturb_flows(flows, *disturb), features), *disturb)
    else:
        tokens = encode_packets(flows, features)
    made = np.zeros((len(flows), encoder.decoder_layer.norm3.normalized_shape[0]), np.float32)
    order = np.argsort(tokens.counts, kind="stable")
    start = 0
    while start < len(order):
        size = max(1, FEATURE_BATCH_TOKENS // int(tokens.counts[order[min(start + 127, len(order) - 1)]]))
        rows = order[start : start + size]
        made[rows] = encoder(torch.from_numpy(pad_packets(tokens, rows))).features.numpy()
        start += size
    return made
