"""The record of a model's drift: what was compared, what came of it, and whether somebody should look."""

from __future__ import annotations

from typing import Literal

import msgspec

Measure = Literal["labels", "confidence", "unknown", "embedding"]
"""What is compared: the mix of labels, confidence, the share of unknown, the distance of embeddings."""

MIN_VERDICTS = 300
"""Fewer are not compared: two samples of the same traffic would seem to differ."""

Against = Literal["baseline", "last week"]
"""What it is compared with: what the checkpoint was measured on, or this service's own last week."""


class DriftMeasure(msgspec.Struct, frozen=True):
    """One comparison: `distance` from 0 (the same) to 1, and whether it is beyond `limit`."""

    measure: Measure
    against: Against
    distance: float
    limit: float
    reason: str

    @property
    def drifted(self) -> bool:
        """Whether it is beyond the limit."""
        return self.distance > self.limit


class ModelDrift(msgspec.Struct, frozen=True):
    """What was seen of one model from `start_us` to `end_us`, `verdicts` in number of the `min_verdicts` that are
    wanted, beside what was expected; `problem` says why `measures` is empty."""

    model: str
    version: str
    start_us: int
    end_us: int
    verdicts: int
    measures: list[DriftMeasure]
    min_verdicts: int = MIN_VERDICTS
    problem: str | None = None

    @property
    def drifted(self) -> list[DriftMeasure]:
        """The comparisons that are beyond their limits."""
        return [measure for measure in self.measures if measure.drifted]
