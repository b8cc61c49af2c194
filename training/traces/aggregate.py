"""Phase 1: aggregation and head learn the labels of traces from the features of a frozen flow encoder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from tapline.models.trace import Trace
from tapline.models.trace_context import ABSENT, Field, trace_context
from tapline.models.trace_features import trace_times
from tapline.models.tracegram import TraceNetwork
from tapline.training.data.batches import draw_weights
from tapline.training.data.labelled_traces import LabelledTrace
from tapline.training.loop.trainer import Report, RunFiles, Stage, Work, train_stage
from tapline.training.traces.packet_encoder import train_mode
from tapline.training.traces.trace_config import Phase, TraceAugmentation, TraceTrainingConfig

SCORE_BATCH_TRACES = 64
SETTLE_BATCHES = 40
LEAST_DEVIATION = 1e-3
SHARPNESS = 8.0


@dataclass(frozen=True)
class TraceFeatures:
    """The flows of a trace as phase 1 reads them, in order.

    `views` float32 [V, k, F]: features of the k flows, first as they are, then of V - 1 disturbed copies; `start_us`,
    `duration_us` int64 [k]; `context` uint8 [k, fields], of each flow those that the network reads.
    """

    views: NDArray[np.float32]
    start_us: NDArray[np.int64]
    duration_us: NDArray[np.int64]
    context: NDArray[np.uint8]

    def part(self, rows: NDArray[np.int64] | slice) -> TraceFeatures:
        """The trace with these flows alone."""
        return TraceFeatures(self.views[:, rows], self.start_us[rows], self.duration_us[rows], self.context[rows])

    def __len__(self) -> int:
        return len(self.start_us)


@dataclass(frozen=True)
class TraceBatch:
    """Padded traces: `features` float32 [T, K, F], `times` float32 [T, K, 2], `context` uint8 [T, K, fields], `counts`
    int64 [T]."""

    features: Tensor
    times: Tensor
    context: Tensor
    counts: Tensor

    def rows(self, rows: NDArray[np.int64]) -> TraceBatch:
        """Some of its traces."""
        return TraceBatch(self.features[rows], self.times[rows], self.context[rows], self.counts[rows])


def gather_features(
    traces: Sequence[Trace], views: Sequence[NDArray[np.float32]], fields: Sequence[Field]
) -> list[TraceFeatures]:
    """Cut the features of all flows, trace after trace, float32 [n, F] in each view, into those of each trace.

    `fields`: the context that the network reads beside them.
    """
    ends = np.cumsum([len(trace.flows) for trace in traces])
    stacked = np.stack(views)
    return [
        TraceFeatures(
            stacked[:, end - len(trace.flows) : end],
            np.array([flow.start_us for flow in trace.flows], np.int64),
            np.array([flow.duration_us for flow in trace.flows], np.int64),
            trace_context(trace.flows, fields),
        )
        for trace, end in zip(traces, ends.tolist(), strict=True)
    ]


def context_features(traces: Sequence[LabelledTrace], fields: Sequence[Field]) -> list[TraceFeatures]:
    """The traces as a network reads them whose encoder is the context alone."""
    nothing = np.zeros((sum(len(trace.trace.flows) for trace in traces), 0), np.float32)
    return gather_features([trace.trace for trace in traces], [nothing], fields)


def to_batch(
    features: Sequence[NDArray[np.float32]], times: Sequence[NDArray[np.float32]], context: Sequence[NDArray[np.uint8]]
) -> TraceBatch:
    """Pad traces to one batch."""
    padded, clock, categories = (
        nn.utils.rnn.pad_sequence([torch.from_numpy(each) for each in table], batch_first=True)
        for table in (features, times, context)
    )
    return TraceBatch(padded, clock, categories, torch.tensor([len(each) for each in features]))


def kept_flows(count: int, how: TraceAugmentation, rng: np.random.Generator) -> NDArray[np.int64]:
    """The places of the flows of a trace of `count` that are kept, in order: some left out, or one stretch of it."""
    keep = np.arange(count)
    if count > 1 and rng.random() < how.part:
        length = int(count ** rng.random()) if how.short_parts else int(rng.integers(1, count))
        from_start = how.short_parts and rng.random() < 0.5
        start = 0 if from_start else int(rng.integers(0, count - length + 1))
        keep = keep[start : start + length]
    wanted = max(1, round(len(keep) * (1 - rng.uniform(0, how.drop_flows))))
    return np.sort(rng.choice(keep, min(wanted, how.most_flows), replace=False))


def disturb_trace(trace: TraceFeatures, how: TraceAugmentation, rng: np.random.Generator) -> TraceFeatures:
    """A copy with `kept_flows` alone; one view, each flow's drawn from those there are."""
    keep = kept_flows(len(trace), how, rng)
    views = trace.views[rng.integers(0, len(trace.views), len(keep)), keep][None]
    context = context_noise(trace.context[keep], how, rng)
    return TraceFeatures(views, trace.start_us[keep], trace.duration_us[keep], context)


def context_noise(context: NDArray[np.uint8], how: TraceAugmentation, rng: np.random.Generator) -> NDArray[np.uint8]:
    """The context of a trace's flows, uint8 [k, fields], without some fields: in all flows, and in some."""
    fields = context.shape[1]
    lost = (rng.random(fields) < how.drop_fields) | (rng.random(context.shape) < how.drop_values)
    return np.where(lost, np.uint8(ABSENT), context)


def trace_noise(
    start_us: NDArray[np.int64], duration_us: NDArray[np.int64], how: TraceAugmentation, rng: np.random.Generator
) -> NDArray[np.float32]:
    """The times of these flows as the networks read them, disturbed, float32 [k, 2]."""
    times = trace_times(start_us, duration_us)
    return times * np.exp(rng.normal(0, how.jitter_times, times.shape)).astype(np.float32)


def _drawn(
    traces: Sequence[TraceFeatures], rows: NDArray[np.int64], how: TraceAugmentation, rng: np.random.Generator
) -> TraceBatch:
    drawn = [disturb_trace(traces[row], how, rng) for row in rows]
    times = [trace_noise(trace.start_us, trace.duration_us, how, rng) for trace in drawn]
    batch = to_batch([trace.views[0] for trace in drawn], times, [trace.context for trace in drawn])
    kept = rng.random(batch.features.shape, np.float32) >= how.feature_dropout
    scaled = torch.from_numpy(kept / np.float32(1 - how.feature_dropout))
    return replace(batch, features=batch.features * scaled)


def class_weights(truth: NDArray[np.int64]) -> NDArray[np.float64]:
    """How often to draw each trace, float64 [n]: every class, and every capture of a class, equally often."""
    return draw_weights(truth, np.arange(len(truth)), 0.0, 0.0)


def trace_stage(
    network: TraceNetwork,
    traces: Sequence[TraceFeatures],
    truth: NDArray[np.int64],
    weights: NDArray[np.float64],
    config: TraceTrainingConfig,
) -> Stage:
    """Phase 1; each trace is drawn as often as `weights` [n] say."""
    labels = torch.from_numpy(truth)

    def share(batch: TraceBatch, rows: NDArray[np.int64], mine: NDArray[np.int64]) -> Tensor:
        part = batch.rows(mine)
        logits = network(part.features, part.times, part.counts, part.context).logits
        loss = functional.cross_entropy(logits, labels[rows[mine]], label_smoothing=config.label_smoothing)
        return loss * len(mine) / len(rows)

    def works(epoch: int) -> Iterator[Work]:
        for rows, batch in _epoch(traces, weights, config, epoch):
            computed = batch.features.shape[0] * batch.features.shape[1]
            yield Work(len(rows), int(batch.counts.sum()), computed, partial(share, batch, rows))

    return Stage("train-traces", works, train_mode)


def _epoch(
    traces: Sequence[TraceFeatures], weights: NDArray[np.float64], config: TraceTrainingConfig, epoch: int
) -> Iterator[tuple[NDArray[np.int64], TraceBatch]]:
    rng = np.random.default_rng([config.seed, 2, epoch])
    phase: Phase = config.traces
    drawn = rng.choice(len(traces), phase.draws, p=weights)
    for start in range(0, phase.draws, phase.batch):
        rows = drawn[start : start + phase.batch]
        if len(rows) == 1:  # batch normalisation needs two
            rows = rows.repeat(2)
        yield rows, _drawn(traces, rows, config.trace_augmentation, rng)


@torch.no_grad()
def settle_norms(
    network: TraceNetwork, traces: Sequence[TraceFeatures], weights: NDArray[np.float64], config: TraceTrainingConfig
) -> TraceNetwork:
    """Give batch normalisation the statistics of these weights, over traces drawn as in training, by `weights` [n].

    The running mean of the weights never saw a batch, and the statistics collected on the way are of other weights.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm1d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over all batches
    network.train()
    done = 0
    for epoch in range(config.traces.epochs, config.traces.epochs + SETTLE_BATCHES):
        for _, batch in _epoch(traces, weights, config, epoch):
            network(batch.features, batch.times, batch.counts, batch.context)
            done += 1
        if done >= SETTLE_BATCHES:
            break
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return network.eval()


@dataclass(frozen=True)
class Scale:
    """Mean and deviation of each feature over flows, float32 [F] each."""

    mean: NDArray[np.float32]
    deviation: NDArray[np.float32]


def scale_of(traces: Sequence[TraceFeatures]) -> Scale:
    """The scale of the flows of these traces as they are."""
    flows = np.concatenate([trace.views[0] for trace in traces])
    return Scale(flows.mean(axis=0), np.maximum(flows.std(axis=0), LEAST_DEVIATION))


def standardise(traces: Sequence[TraceFeatures], scale: Scale) -> list[TraceFeatures]:
    """The traces with features of mean 0 and deviation 1, which phase 1 learns from in half the steps."""
    return [replace(trace, views=(trace.views - scale.mean) / scale.deviation) for trace in traces]


@torch.no_grad()
def fold_scale(network: TraceNetwork, scale: Scale) -> TraceNetwork:
    """Let a network that was trained on standardised features read features as they are, with the same outputs."""
    mean, deviation = torch.from_numpy(scale.mean), torch.from_numpy(scale.deviation)
    for way in ("", "_reverse"):
        weight = network.t_lstm.get_parameter(f"weight_ih_l0{way}")
        weight.div_(deviation)
        network.t_lstm.get_parameter(f"bias_ih_l0{way}").sub_(weight @ mean)
    if network.pooled is not None:
        network.pooled.linear.weight.div_(deviation)
        network.pooled.linear.bias.sub_(network.pooled.linear.weight @ mean)
    if network.time_linear is not None:
        network.time_linear.weight.mul_(deviation[:, None])
        network.time_linear.bias.mul_(deviation)
    if network.context is not None:
        network.context.linear.weight.mul_(deviation[:, None])
        network.context.linear.bias.mul_(deviation)
    return network


@torch.no_grad()
def sharpen(network: TraceNetwork) -> None:
    """Let the queries differ from the start: as drawn, every one attends to all flows alike for hundreds of steps."""
    network.ss_wk_linear1.weight.mul_(SHARPNESS)


def fit_traces(
    features: Sequence[TraceFeatures],
    truth: NDArray[np.int64],
    config: TraceTrainingConfig,
    files: RunFiles | None = None,
    report: Report = lambda _: None,
    weights: NDArray[np.float64] | None = None,
) -> TraceNetwork:
    """Phase 1 from scratch; the network given reads features as the encoder makes them.

    `weights` float64 [n] say how often each trace is drawn, by default every class equally often, and every trace of a
    class.

    Raises:
        TrainingError: the loss is not finite, or the state cannot be saved or read.
    """
    if weights is None:
        weights = class_weights(truth)
    scale = scale_of(features)
    scaled = standardise(features, scale)
    torch.manual_seed(config.seed)
    network = TraceNetwork(config.network)
    sharpen(network)
    stage = trace_stage(network, scaled, truth, weights, config)
    trained = train_stage(network, stage, config.loop(config.traces), files, report)
    settled = settle_norms(trained, scaled, weights, config)
    return fold_scale(settled, scale) if config.network.embedding_size else settled


@dataclass(frozen=True)
class TraceScored:
    """`logits` float32 [n, classes]; `importance` of the flows of each trace, float32 [k], sums to 1."""

    logits: NDArray[np.float32]
    importance: list[NDArray[np.float32]]


@torch.inference_mode()
def score_traces(network: TraceNetwork, traces: Sequence[TraceFeatures]) -> TraceScored:
    """Score traces as they are (their first view), in batches of like size."""
    network.eval()
    order = np.argsort([len(trace) for trace in traces], kind="stable")
    logits = np.zeros((len(traces), network.c_linear4.out_features), np.float32)
    importance: list[NDArray[np.float32]] = [np.zeros(0, np.float32)] * len(traces)
    for start in range(0, len(order), SCORE_BATCH_TRACES):
        rows = order[start : start + SCORE_BATCH_TRACES]
        part = [traces[row] for row in rows]
        times = [trace_times(trace.start_us, trace.duration_us) for trace in part]
        batch = to_batch([trace.views[0] for trace in part], times, [trace.context for trace in part])
        output = network(batch.features, batch.times, batch.counts, batch.context)
        logits[rows] = output.logits.numpy()
        for row, shares in zip(rows, output.importance.numpy(), strict=True):
            importance[row] = shares[: len(traces[row])]
    return TraceScored(logits, importance)
