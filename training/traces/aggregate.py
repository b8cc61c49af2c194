"""Phase 1: aggregation and head learn the labels of traces from the features of a frozen flow encoder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from tapline.models.checkpoint import TracegramNetwork
from tapline.models.trace_features import trace_times
from tapline.models.tracegram import TraceNetwork
from tapline.training.data.batches import draw_weights
from tapline.training.loop.trainer import Report, RunFiles, Stage, Work, train_stage
from tapline.training.traces.bag import fit_bag
from tapline.training.traces.features import TraceFeatures, disturb_trace, trace_noise
from tapline.training.traces.packet_encoder import train_mode
from tapline.training.traces.trace_config import Phase, TraceAugmentation, TraceTrainingConfig

SCORE_BATCH_TRACES = 64
SETTLE_BATCHES = 40
LEAST_DEVIATION = 1e-3
SHARPNESS = 8.0


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


def to_batch(
    features: Sequence[NDArray[np.float32]], times: Sequence[NDArray[np.float32]], context: Sequence[NDArray[np.uint8]]
) -> TraceBatch:
    """Pad traces to one batch."""
    padded, clock, categories = (
        nn.utils.rnn.pad_sequence([torch.from_numpy(each) for each in table], batch_first=True)
        for table in (features, times, context)
    )
    return TraceBatch(padded, clock, categories, torch.tensor([len(each) for each in features]))


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


def without_bag(network: TracegramNetwork) -> TracegramNetwork:
    """What phase 1 trains: the bag is fitted by itself, or both would learn the same by heart."""
    return msgspec.structs.replace(network, bag=False)


def with_bag(
    network: TraceNetwork,
    features: Sequence[TraceFeatures],
    truth: NDArray[np.int64],
    weights: NDArray[np.float64],
    config: TraceTrainingConfig,
) -> TraceNetwork:
    """The network with the bag of its settings, where they have one."""
    if config.network.bag:
        network.bag = fit_bag(config.network, features, truth, weights, config.bag, config.seed)
    return network


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
    network = TraceNetwork(without_bag(config.network))
    sharpen(network)
    stage = trace_stage(network, scaled, truth, weights, config)
    trained = train_stage(network, stage, config.loop(config.traces), files, report)
    settled = settle_norms(trained, scaled, weights, config)
    if config.network.embedding_size:
        settled = fold_scale(settled, scale)
    return with_bag(settled, features, truth, weights, config)


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
