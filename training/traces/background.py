"""Traces of anything but the labels: which they are, and which half of them a fold learns.

They teach a network what it does not know (outlier exposure, Hendrycks et al., ICLR 2019; `models.checkpoint.Unknown`).
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from tapline.models.checkpoint import TracegramNetwork
from tapline.models.flow import Flow
from tapline.models.trace import TraceSettings, make_traces
from tapline.training.data.batches import draw_weights
from tapline.training.data.labelled_traces import LabelledTrace, TraceDataError
from tapline.training.data.parquet import Sample
from tapline.training.traces.aggregate import class_weights
from tapline.training.traces.trace_config import TraceTrainingConfig

MOST_TRACES = 8
"""Traces of a capture that are kept, those with most flows: a scan shows hundreds of hosts that are all alike."""

MIN_CAPTURES = 2
"""One half of the captures is learned, the other one measured."""


@dataclass(frozen=True)
class Halves:
    """The background that a fold learns, and what it is measured on."""

    learned: list[LabelledTrace]
    measured: list[LabelledTrace]


def make_background(
    samples: Iterable[Sample], settings: TraceSettings, learned: Collection[str]
) -> list[LabelledTrace]:
    """The traces of all captures, labels unread, those with most flows of each; their label is "".

    Raises:
        TraceDataError: a capture is among `learned`, the names of those that labels are learned from; or there are
            traces of fewer than two captures.
    """
    captures: defaultdict[str, list[Flow]] = defaultdict(list)
    for sample in samples:
        captures[f"{sample.corpus}/{sample.capture}"].append(sample.flow)
    if shared := sorted(captures.keys() & set(learned)):
        raise TraceDataError(
            f"background: {len(shared)} capture(s) have the name of one that a label is learned from, as {shared[0]}: "
            "give captures that bear none of the labels"
        )
    traces = []
    for capture in sorted(captures):
        made = sorted(make_traces(captures[capture], settings), key=lambda trace: -len(trace.flows))
        traces += [LabelledTrace("", capture, trace) for trace in made[:MOST_TRACES]]
    if (found := len({trace.capture for trace in traces})) < MIN_CAPTURES:
        raise TraceDataError(
            f"background: traces of {found} capture(s), expected {MIN_CAPTURES} or more: give more captures, extracted "
            "with --heads header or --heads full"
        )
    return traces


def halve_background(background: Sequence[LabelledTrace], fold: int) -> Halves:
    """Two halves of the captures, another pair in each fold, the same whatever ran before."""

    def place(capture: str) -> bytes:
        return hashlib.sha256(f"{fold} {capture}".encode()).digest()

    captures = sorted({trace.capture for trace in background}, key=place)
    learned = set(captures[: (len(captures) + 1) // 2])
    return Halves(
        [trace for trace in background if trace.capture in learned],
        [trace for trace in background if trace.capture not in learned],
    )


@dataclass(frozen=True)
class Learned:
    """What is learned of n traces: class index of each, `truth` int64 [n], the traces to draw, `rows` int64 [m], and
    how often each, `weights` float64 [m], which sum to 1."""

    truth: NDArray[np.int64]
    rows: NDArray[np.int64]
    weights: NDArray[np.float64]


def network_with(network: TracegramNetwork, *, background: bool) -> TracegramNetwork:
    """The network of so many labels, with a class more for background."""
    return msgspec.structs.replace(network, n_class=network.n_class + background)


def learned_with(
    truth: NDArray[np.int64], train: NDArray[np.int64], background: Sequence[LabelledTrace], config: TraceTrainingConfig
) -> Learned:
    """The traces `train`, every label drawn equally often, and behind them the background, every corpus of it and every
    capture of a corpus equally often; its share is the settings'."""
    weights = class_weights(truth[train])
    if not background:
        return Learned(truth, train, weights)
    corpora, captures = (
        np.unique(names, return_inverse=True)[1]
        for names in (
            [trace.capture.partition("/")[0] for trace in background],
            [trace.capture for trace in background],
        )
    )
    strange = draw_weights(corpora, captures, 0.0, 0.0)
    return Learned(
        np.concatenate((truth, np.full(len(background), config.network.n_class))),
        np.concatenate((train, len(truth) + np.arange(len(background)))),
        np.concatenate((weights * (1 - config.background_share), strange * config.background_share)),
    )


def background_hash(background: Sequence[LabelledTrace]) -> str:
    """A hash of every flow of every trace."""
    digest = hashlib.sha256()
    for trace in background:
        digest.update(msgspec.msgpack.encode(trace))
    return digest.hexdigest()
