"""Does importance hold? The confidence that a trace loses without its most important flows, beside random ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tapline.models.tracegram import TraceNetwork
from tapline.training.evaluation.calibration import softmax
from tapline.training.evaluation.evaluation_record import Faithfulness
from tapline.training.loop.scores import interval
from tapline.training.traces.aggregate import score_traces
from tapline.training.traces.features import TraceFeatures

REMOVED_SHARE = 0.25
MIN_FLOWS = 4
RANDOM_DRAWS = 5
BOOTSTRAP_ROUNDS = 1000


@dataclass(frozen=True)
class Removals:
    """Of n traces of `MIN_FLOWS` flows or more: their row among those given, and the fall of the confidence in the
    label said, float64 [n], without the most important quarter of the flows and without as many random ones."""

    rows: NDArray[np.int64]
    top: NDArray[np.float64]
    random: NDArray[np.float64]


def remove_flows(
    network: TraceNetwork, traces: Sequence[TraceFeatures], temperature: float, seed: int, labels: int | None = None
) -> Removals:
    """Score every trace as it is, without its most important flows, and without random ones.

    `labels`: so many classes can be said, the first ones; None: all.
    """
    rng = np.random.default_rng(seed)
    rows = np.array([row for row, trace in enumerate(traces) if len(trace) >= MIN_FLOWS], np.int64)
    whole = [traces[row] for row in rows]
    scored = score_traces(network, whole)
    shares = softmax(scored.logits, temperature)
    said = shares[:, :labels].argmax(axis=1)

    def fall(kept: Sequence[NDArray[np.int64]]) -> NDArray[np.float64]:
        parts = [trace.part(rest) for trace, rest in zip(whole, kept, strict=True)]
        after = softmax(score_traces(network, parts).logits, temperature)
        each = np.arange(len(said))
        return np.asarray(shares[each, said] - after[each, said])

    removed = [max(1, round(REMOVED_SHARE * len(trace))) for trace in whole]
    top = fall([np.sort(np.argsort(-each)[count:]) for each, count in zip(scored.importance, removed, strict=True)])
    random = [
        fall([np.sort(rng.permutation(len(trace))[count:]) for trace, count in zip(whole, removed, strict=True)])
        for _ in range(RANDOM_DRAWS)
    ]
    return Removals(rows, top, np.mean(random, axis=0))


def faithfulness(top: NDArray[np.float64], random: NDArray[np.float64], seed: int = 0) -> Faithfulness | None:
    """Figures of removals, each float64 [n], None without any; every trace is of a capture of its own."""
    if not len(top):
        return None
    rng = np.random.default_rng(seed)
    difference = top - random
    draws = difference[rng.integers(0, len(difference), (BOOTSTRAP_ROUNDS, len(difference)))].mean(axis=1)
    return Faithfulness(
        len(top), REMOVED_SHARE, float(top.mean()), float(random.mean()), float(difference.mean()), interval(draws)
    )
