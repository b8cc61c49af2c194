"""From which confidence on a student answers: where it agrees with the whole network as often as is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from tapline.models.checkpoint import Checkpoint
from tapline.models.flow import Flow
from tapline.models.verdict import context_terms, flow_probabilities

NEVER = 1.0
"""The threshold of a student that agrees too seldom: of confidence 1, to the last bit, no flow is."""

_DIGITS = 6


class Gate(msgspec.Struct, frozen=True):
    """A threshold, and what lies above it: the share of flows that the student answers there, and of these the share
    of which it says what the whole network does."""

    threshold: float
    answered: float
    agreement: float


@dataclass(frozen=True)
class Agreed:
    """Of n flows, by the rule of a checkpoint: the class that the network says, int64 [n], one more than the labels for
    *unknown*; whether the student says the same, bool [n]; its confidence, float64 [n], 0 where it says *unknown*."""

    said: NDArray[np.int64]
    same: NDArray[np.bool_]
    confidence: NDArray[np.float64]


def agreed(
    checkpoint: Checkpoint,
    flows: Sequence[Flow],
    network: NDArray[np.float32],
    student: NDArray[np.float32],
    *,
    ports: bool,
) -> Agreed:
    """How the verdicts of a network and of its student go together, by their logits, float32 [n, classes]."""
    terms, threshold = context_terms(checkpoint), checkpoint.rule(ports=ports).threshold
    found = []
    for logits in (network, student):
        shares = flow_probabilities(logits, flows, checkpoint, terms, ports=ports)
        confidence = shares.max(axis=1)
        found.append((np.where(confidence < threshold, len(checkpoint.labels), shares.argmax(axis=1)), confidence))
    (said, _), (heard, confidence) = found
    unknown = heard == len(checkpoint.labels)
    return Agreed(said, said == heard, np.where(unknown, 0.0, confidence))


def find_threshold(outcome: Agreed, weights: NDArray[np.float64], agreement: float) -> Gate:
    """The lowest threshold above which the student agrees as often as is asked for; flows count by their weights.

    Returns:
        The gate; `NEVER` where there is none.
    """
    order = np.argsort(-outcome.confidence, kind="stable")
    total, same = np.cumsum(weights[order]), np.cumsum((weights * outcome.same)[order])
    last = np.append(outcome.confidence[order][1:] < outcome.confidence[order][:-1], True)  # of those equally sure
    good = np.flatnonzero(last & (same >= agreement * total) & (outcome.confidence[order] > 0))
    if not len(good):
        return Gate(NEVER, 0.0, 1.0)
    end = int(good[-1])
    threshold = np.ceil(outcome.confidence[order][end] * 10**_DIGITS) / 10**_DIGITS
    return measured(outcome, weights, float(threshold))


def measured(outcome: Agreed, weights: NDArray[np.float64], threshold: float) -> Gate:
    """What lies above a threshold."""
    answered = (outcome.confidence >= threshold) & (outcome.confidence > 0)
    total = float((weights * answered).sum())
    share = float((weights * (answered & outcome.same)).sum()) / total if total else 1.0
    return Gate(threshold, round(total / float(weights.sum()), 4), round(share, 5))
