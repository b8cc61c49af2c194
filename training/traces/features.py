"""The flows of traces as networks read them, and how they are disturbed in training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tapline.models.trace import Trace
from tapline.models.trace_context import ABSENT, Field, trace_context
from tapline.models.trace_features import trace_times
from tapline.training.data.labelled_traces import LabelledTrace
from tapline.training.traces.trace_config import TraceAugmentation


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
