"""Calibration and the unknown rule, fitted on logits of flows that the model was not trained on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

Floats = NDArray[np.float64]

MOST_FLOWS = 20
"""Flows of a class that one capture may count for: the hundreds of alike flows of a scan are one observation."""


@dataclass(frozen=True)
class Calibrated:
    """The temperature, and the confidence under which a verdict is *unknown*."""

    temperature: float
    threshold: float


def softmax(logits: NDArray[np.float32], temperature: float = 1.0) -> Floats:
    """Shares of the classes, float64 [n, classes]."""
    scaled = logits.astype(np.float64) / temperature
    shares = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return np.asarray(shares / shares.sum(axis=1, keepdims=True))


def label_shares(logits: NDArray[np.float32], temperature: float, n_label: int) -> Floats:
    """Shares of the labels, float64 [n, labels], as `models.verdict.probabilities`: background takes its own first."""
    return softmax(logits, temperature)[:, :n_label]


def capped_weights(captures: Sequence[str], truth: NDArray[np.int64]) -> Floats:
    """A weight for each flow, so that the flows of a class in one capture weigh no more than `MOST_FLOWS` together."""
    groups = list(zip(captures, truth.tolist(), strict=True))
    flows = Counter(groups)
    return np.array([min(1.0, MOST_FLOWS / flows[group]) for group in groups])


def fit_temperature(logits: NDArray[np.float32], truth: NDArray[np.int64], weights: Floats, n_label: int) -> float:
    """The temperature of the least Brier score of the confidence: its square distance from being right, weighted.

    The usual fit, least log-loss (Guo et al., ICML 2017), is led by the few flows that are wrong with certainty, those
    of a capture unlike all others. Equal means of confidence and accuracy do no better as a goal: where a background
    class takes the share of flows whose nearest label is right, no temperature reaches it. Where all is right there
    would be no end to certainty, so that right and wrong are 1 and 0 but for one thing each (Platt, 1999).
    """
    right = logits[:, :n_label].argmax(axis=1) == truth
    good, bad = float(weights[right].sum()), float(weights[~right].sum())
    wanted = np.where(right, (good + 1) / (good + 2), 1 / (bad + 2))

    def score(log_temperature: float) -> float:
        confidence = label_shares(logits, float(np.exp(log_temperature)), n_label).max(axis=1)
        return float(np.average((confidence - wanted) ** 2, weights=weights))

    return float(np.exp(minimize_scalar(score, bounds=(-2.0, 2.0), method="bounded").x))


def rejection_threshold(confidence: Floats, weights: Floats, false_rejection: float) -> float:
    """The confidence below which the weighted share `false_rejection` of known flows lies."""
    order = np.argsort(confidence)
    share = np.cumsum(weights[order]) / weights.sum()
    return float(confidence[order][min(int(np.searchsorted(share, false_rejection)), len(order) - 1)])


def calibrate(
    logits: NDArray[np.float32], truth: NDArray[np.int64], weights: Floats, n_label: int, false_rejection: float
) -> Calibrated:
    """Temperature and threshold, which rejects the share `false_rejection` of these things, all of known labels."""
    temperature = fit_temperature(logits, truth, weights, n_label)
    confidence = label_shares(logits, temperature, n_label).max(axis=1)
    return Calibrated(temperature, rejection_threshold(confidence, weights, false_rejection))
