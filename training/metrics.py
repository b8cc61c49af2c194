"""Figures of merit: macro-F1, calibration error, AUROC of *unknown*, bootstrap intervals over captures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
CALIBRATION_BINS = 15


@dataclass(frozen=True)
class Interval:
    """95 % of the draws of a bootstrap."""

    low: float
    high: float


@dataclass(frozen=True)
class ClassScore:
    """Precision, recall and F1 of one class; `support` flows in `captures` captures were measured."""

    label: str
    captures: int
    support: int
    precision: float
    recall: float
    f1: float


def f1_scores(truth: Ints, predicted: Ints, n_class: int) -> Floats:
    """F1 of each class, float [n_class]; 0 where a class is neither there nor predicted."""
    hit = np.bincount(truth[truth == predicted], minlength=n_class)
    total = np.bincount(truth, minlength=n_class) + np.bincount(predicted, minlength=n_class)
    return np.asarray(2 * hit / np.maximum(total, 1), np.float64)


def macro_f1(truth: Ints, predicted: Ints, n_class: int, min_flows: int) -> float:
    """Mean F1 over the classes with at least `min_flows` flows in `truth`; NaN when there is none."""
    counted = np.bincount(truth, minlength=n_class) >= min_flows
    return float(f1_scores(truth, predicted, n_class)[counted].mean()) if counted.any() else float("nan")


def class_scores(truth: Ints, predicted: Ints, labels: Sequence[str], captures: Sequence[str]) -> list[ClassScore]:
    """One row per label that occurs in `truth`, most flows first."""
    f1 = f1_scores(truth, predicted, len(labels))
    names = np.asarray(captures)
    rows = []
    for index, label in enumerate(labels):
        mine, said = truth == index, predicted == index
        if mine.any():
            hit = int((mine & said).sum())
            rows.append(
                ClassScore(
                    label,
                    len(set(names[mine].tolist())),
                    int(mine.sum()),
                    hit / max(int(said.sum()), 1),
                    hit / int(mine.sum()),
                    float(f1[index]),
                )
            )
    return sorted(rows, key=lambda row: -row.support)


def calibration_error(confidence: Floats, correct: NDArray[np.bool_], weights: Floats | None = None) -> float:
    """Expected calibration error over equal-width bins (Guo et al., ICML 2017)."""
    weights = np.ones(len(confidence)) if weights is None else weights
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(np.int64), CALIBRATION_BINS - 1)
    gaps = np.bincount(bins, weights * (confidence - correct), minlength=CALIBRATION_BINS)
    return float(np.abs(gaps).sum() / weights.sum())


def auroc(known: Floats, unknown: Floats) -> float:
    """Probability that a known flow scores above an unknown one, ties counted half; NaN without either."""
    if not len(known) or not len(unknown):
        return float("nan")
    everything = np.concatenate((known, unknown))
    _, inverse, counts = np.unique(everything, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse][: len(known)]
    return float((ranks.sum() - len(known) * (len(known) + 1) / 2) / (len(known) * len(unknown)))


def bootstrap_draws(
    captures: Sequence[str], measure: Callable[[Ints], float], rounds: int = 500, seed: int = 0
) -> Floats:
    """`measure(flow indices)` for captures drawn with replacement, float [rounds]; the same draws for the same seed."""
    names, group = np.unique(np.asarray(captures), return_inverse=True)
    members = [np.flatnonzero(group == index) for index in range(len(names))]
    rng = np.random.default_rng(seed)
    return np.array(
        [
            measure(np.concatenate([members[index] for index in rng.integers(0, len(names), len(names))]))
            for _ in range(rounds)
        ]
    )
