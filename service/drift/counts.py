"""What is remembered of a model's verdicts: histograms of a bounded size, hour by hour."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import msgspec
import numpy as np
from numpy.typing import NDArray

from tapline.models.baseline import CONFIDENCE_BINS, EMBEDDING_BINS, MAX_AXES, Baseline
from tapline.models.verdict import Verdict

HOUR_SECONDS = 3600
DAY_HOURS = 24
WEEK_DAYS = 7
KEPT_HOURS = DAY_HOURS * (1 + WEEK_DAYS)
"""The day that is looked at, and the seven before."""

_Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
_Bins = Annotated[list[_Count], msgspec.Meta(min_length=EMBEDDING_BINS, max_length=EMBEDDING_BINS)]


class Counts(msgspec.Struct, forbid_unknown_fields=True):
    """Verdicts by label (`unknown` for unknown ones) and by confidence, and embeddings along the axes of a baseline, of
    which there may be fewer: they are sampled."""

    verdicts: _Count = 0
    unknown: _Count = 0
    labels: dict[Annotated[str, msgspec.Meta(max_length=128)], _Count] = {}
    confidence: Annotated[list[_Count], msgspec.Meta(min_length=CONFIDENCE_BINS, max_length=CONFIDENCE_BINS)] = (
        msgspec.field(default_factory=lambda: [0] * CONFIDENCE_BINS)
    )
    axes: Annotated[list[_Bins], msgspec.Meta(max_length=MAX_AXES)] = []

    def add(self, verdict: Verdict) -> None:
        """Count a verdict."""
        self.verdicts += 1
        self.unknown += verdict.unknown
        self.labels[verdict.label] = self.labels.get(verdict.label, 0) + 1
        self.confidence[min(int(verdict.confidence * CONFIDENCE_BINS), CONFIDENCE_BINS - 1)] += 1

    def add_embeddings(self, counts: NDArray[np.int64]) -> None:
        """Add embeddings, counted by axis and bin, int64 [axes, bins]."""
        if len(self.axes) == len(counts):
            counts = counts + np.array(self.axes, np.int64).reshape(counts.shape)
        self.axes = counts.tolist()

    @property
    def embeddings(self) -> int:
        """How many embeddings were counted."""
        return sum(self.axes[0]) if self.axes else 0


class Hour(Counts, forbid_unknown_fields=True, kw_only=True):
    """The counts of one hour, by its number since 1970."""

    hour: _Count


def total(parts: Iterable[Counts]) -> Counts:
    """All of them together."""
    found = Counts()
    for part in parts:
        found.verdicts += part.verdicts
        found.unknown += part.unknown
        for label, count in part.labels.items():
            found.labels[label] = found.labels.get(label, 0) + count
        found.confidence = [a + b for a, b in zip(found.confidence, part.confidence, strict=True)]
        if part.axes:
            found.add_embeddings(np.array(part.axes, np.int64))
    return found


def of_baseline(baseline: Baseline) -> Counts:
    """The counts of a baseline."""
    axes = [list(axis.counts) for axis in baseline.axes]
    return Counts(baseline.verdicts, baseline.unknown, dict(baseline.labels), list(baseline.confidence), axes)
