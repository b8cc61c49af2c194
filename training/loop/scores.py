"""Figures of merit: macro-F1, calibration error, AUROC of *unknown*, bootstrap intervals over captures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
CALIBRATION_BINS = 15
DRAWS, DRAWS_SEED = 500, 0
"""Of a bootstrap over captures: how many draws, and the seed of the first."""


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


def f1_scores(truth: Ints, predicted: Ints, n_class: int, weights: Floats | None = None) -> Floats:
    """F1 of each class, float [n_class]; 0 where a class is neither there nor predicted. `n_class` as prediction: none
    of them."""
    weights = np.ones(len(truth)) if weights is None else weights
    hit = np.bincount(truth, weights * (truth == predicted), minlength=n_class)
    total = (
        np.bincount(truth, weights, minlength=n_class) + np.bincount(predicted, weights, minlength=n_class)[:n_class]
    )
    return np.asarray(2 * hit / np.where(total > 0, total, 1.0))


def macro_f1(truth: Ints, predicted: Ints, n_class: int, min_flows: int, weights: Floats | None = None) -> float:
    """Mean F1 over the classes with at least `min_flows` flows in `truth`; NaN when there is none."""
    counted = np.bincount(truth, minlength=n_class) >= min_flows
    return float(f1_scores(truth, predicted, n_class, weights)[counted].mean()) if counted.any() else float("nan")


def weighted_f1(truth: Ints, predicted: Ints, n_class: int) -> float:
    """Mean F1 over the classes, each weighing as many flows as it has in `truth`."""
    support = np.bincount(truth, minlength=n_class)
    return float(np.average(f1_scores(truth, predicted, n_class), weights=support))


def class_scores(truth: Ints, predicted: Ints, labels: Sequence[str], captures: Sequence[str]) -> list[ClassScore]:
    """One row per label that occurs in `truth`, most flows first."""
    f1 = f1_scores(truth, predicted, len(labels))
    names = np.asarray(captures)
    rows = []
    for index, label in enumerate(labels):
        mine, said = truth == index, predicted == index
        if mine.any():
            hit, support, held = int((mine & said).sum()), int(mine.sum()), len(set(names[mine].tolist()))
            precision, recall = hit / max(int(said.sum()), 1), hit / support
            rows.append(ClassScore(label, held, support, precision, recall, float(f1[index])))
    return sorted(rows, key=lambda row: -row.support)


def calibration_bins(confidence: Floats) -> Ints:
    """The bin of equal width that each confidence falls into, int64 [n]."""
    return np.minimum((confidence * CALIBRATION_BINS).astype(np.int64), CALIBRATION_BINS - 1)


def calibration_error(confidence: Floats, correct: NDArray[np.bool_], weights: Floats | None = None) -> float:
    """Expected calibration error over equal-width bins (Guo et al., ICML 2017)."""
    weights = np.ones(len(confidence)) if weights is None else weights
    gaps = np.bincount(calibration_bins(confidence), weights * (confidence - correct), minlength=CALIBRATION_BINS)
    return float(np.abs(gaps).sum() / weights.sum())


def auroc(known: Floats, unknown: Floats) -> float:
    """Probability that a known flow scores above an unknown one, ties counted half; NaN without either."""
    if not len(known) or not len(unknown):
        return float("nan")
    everything = np.concatenate((known, unknown))
    _, inverse, counts = np.unique(everything, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse][: len(known)]
    return float((ranks.sum() - len(known) * (len(known) + 1) / 2) / (len(known) * len(unknown)))


@dataclass(frozen=True)
class Predictions:
    """What was said of n things of one fold, each of a capture: true and predicted class, int64 [n]."""

    truth: Ints
    predicted: Ints
    captures: Sequence[str]


def mean_macro_f1(folds: Sequence[Predictions], n_class: int, min_flows: int) -> float:
    """Macro-F1, the mean over the folds that have a class with `min_flows`."""
    return float(np.nanmean([macro_f1(p.truth, p.predicted, n_class, min_flows) for p in folds]))


def macro_f1_draws(folds: Sequence[Predictions], n_class: int, min_flows: int, rounds: int = DRAWS) -> Floats:
    """Bootstrap draws of macro-F1, the mean over folds, float [rounds].

    Captures are drawn with replacement in each fold, the same ones at every call with the same captures, so that the
    draws of two models can be subtracted. A class counts that has `min_flows` in the fold and is in the draw; a draw is
    NaN in which no fold has one.
    """
    per_fold = []
    for fold in folds:
        counted = np.bincount(fold.truth, minlength=n_class) >= min_flows

        def measure(rows: Ints, fold: Predictions = fold, counted: NDArray[np.bool_] = counted) -> float:
            truth = fold.truth[rows]
            there = counted & (np.bincount(truth, minlength=n_class) > 0)
            return float(f1_scores(truth, fold.predicted[rows], n_class)[there].mean()) if there.any() else float("nan")

        per_fold.append(bootstrap_draws(fold.captures, measure, rounds))
    stacked = np.array(per_fold)  # [folds, rounds]
    there = ~np.isnan(stacked)
    total = np.where(there, stacked, 0.0).sum(axis=0)
    return np.asarray(np.where(there.any(axis=0), total / np.maximum(there.sum(axis=0), 1), np.nan))


def interval(draws: Floats) -> Interval:
    """What 95 % of the draws lie between."""
    low, high = np.nanpercentile(draws, [2.5, 97.5])
    return Interval(float(low), float(high))


def bootstrap_draws(
    captures: Sequence[str], measure: Callable[[Ints], float], rounds: int = DRAWS, seed: int = DRAWS_SEED
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
