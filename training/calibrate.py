"""Calibration and the unknown rule, fitted on logits of flows that the model was not trained on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

Floats = NDArray[np.float64]


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


def capture_weights(captures: list[str], power: float = 0.5) -> Floats:
    """A weight for each flow, so that a capture of n flows weighs `n ** power`."""
    _, group, counts = np.unique(np.asarray(captures), return_inverse=True, return_counts=True)
    return np.asarray(counts[group].astype(np.float64) ** (power - 1))


def fit_temperature(logits: NDArray[np.float32], truth: NDArray[np.int64], weights: Floats) -> float:
    """The temperature of least weighted log-loss (Guo et al., ICML 2017)."""
    rows = np.arange(len(truth))

    def loss(log_temperature: float) -> float:
        shares = softmax(logits, float(np.exp(log_temperature)))
        return float(-(weights * np.log(shares[rows, truth] + 1e-12)).sum())

    return float(np.exp(minimize_scalar(loss, bounds=(-2.0, 2.0), method="bounded").x))


def rejection_threshold(confidence: Floats, weights: Floats, false_rejection: float) -> float:
    """The confidence below which the weighted share `false_rejection` of known flows lies."""
    order = np.argsort(confidence)
    share = np.cumsum(weights[order]) / weights.sum()
    return float(confidence[order][min(int(np.searchsorted(share, false_rejection)), len(order) - 1)])
