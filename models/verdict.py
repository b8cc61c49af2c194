"""From logits to verdicts: calibration, the unknown rule, the alternatives. Every path gives verdicts through here."""

from __future__ import annotations

from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from tapline.models.checkpoint import Calibration, Unknown

ALTERNATIVES = 3
"""Labels beside the first that a verdict names."""


UNKNOWN = "unknown"
"""The word under which verdicts that are unknown are counted and shown."""


class Alternative(msgspec.Struct, frozen=True, gc=False):
    """A label that was considered, with its calibrated confidence."""

    label: str
    confidence: float


class Verdict(msgspec.Struct, frozen=True, gc=False, omit_defaults=False):
    """What a model says of a flow or a trace.

    `confidence` is calibrated. With `unknown` True the model says that it has not learned this kind of traffic; `label`
    is then merely the nearest that it knows. `scores` are all logits by label, where asked for. `final` is False for a
    flow that still lives.
    """

    label: str
    confidence: float
    unknown: bool
    alternatives: list[Alternative]
    model: str
    version: str
    final: bool = True
    scores: dict[str, float] | msgspec.UnsetType = msgspec.UNSET


class Judge(Protocol):
    """What of a checkpoint, of flows or of traces, makes verdicts of its logits."""

    @property
    def name(self) -> str:
        """Its name."""
        ...

    @property
    def version(self) -> str:
        """Its version."""
        ...

    @property
    def labels(self) -> list[str]:
        """The labels, in the order of the logits."""
        ...

    @property
    def calibration(self) -> Calibration:
        """How logits become confidence."""
        ...

    @property
    def unknown(self) -> Unknown:
        """When a verdict says *unknown*."""
        ...


def probabilities(logits: NDArray[np.float32], checkpoint: Judge) -> NDArray[np.float64]:
    """Calibrated probabilities of the labels, float64 [n, labels], of finite logits float32 [n, classes].

    The background class, where there is one, takes its share first: the labels then add up to less than 1.
    """
    scaled = logits.astype(np.float64) / checkpoint.calibration.temperature
    exponentials = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    shares = np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True))
    return shares[:, : len(checkpoint.labels)]


def verdicts(logits: NDArray[np.float32], checkpoint: Judge, *, with_scores: bool = False) -> list[Verdict | None]:
    """One verdict for each row of logits float32 [n, classes]; None where one of them is no finite number."""
    finite = np.asarray(np.isfinite(logits).all(axis=1))
    judged = iter(_verdicts(logits[finite], checkpoint, with_scores=with_scores))
    return [next(judged) if is_finite else None for is_finite in finite.tolist()]


def _verdicts(logits: NDArray[np.float32], checkpoint: Judge, *, with_scores: bool) -> list[Verdict]:
    shares = probabilities(logits, checkpoint)
    order = np.argsort(-shares, axis=1, kind="stable")[:, : ALTERNATIVES + 1]
    ranked = np.take_along_axis(shares, order, axis=1).round(6).tolist()
    labels = checkpoint.labels
    found = []
    for row, (indices, confidences) in enumerate(zip(order.tolist(), ranked, strict=True)):
        best, *others = [
            Alternative(labels[index], confidence) for index, confidence in zip(indices, confidences, strict=True)
        ]
        scores = dict(zip(labels, logits[row].tolist(), strict=False)) if with_scores else msgspec.UNSET
        found.append(
            Verdict(
                label=best.label,
                confidence=best.confidence,
                unknown=best.confidence < checkpoint.unknown.threshold,
                alternatives=others,
                model=checkpoint.name,
                version=checkpoint.version,
                scores=scores,
            )
        )
    return found
