"""How far apart two counts of verdicts are, by SciPy's statistics, and from where on somebody should look.

Nothing here is on the way of a verdict, and SciPy is loaded when something is compared first: it takes some 70 MiB.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence

import numpy as np

from tapline.models.baseline import CONFIDENCE_BINS
from tapline.service.drift.counts import Counts
from tapline.service.drift.model_drift import MIN_VERDICTS, Against, DriftMeasure, Measure

NEVER = 1.0
"""A limit that no distance is beyond."""

LIMITS: dict[Measure, float] = {"labels": 0.3, "confidence": 0.08, "unknown": 0.1, "embedding": 0.25}
"""Two days of one network stay well below; some three tenths of other traffic reach them (docs/drift.md has the
figures)."""

_CENTRES = (np.arange(CONFIDENCE_BINS) + 0.5) / CONFIDENCE_BINS
_NAMED = 3


def has_scipy() -> bool:
    """Whether anything can be compared here."""
    return importlib.util.find_spec("scipy") is not None


def compare(now: Counts, before: Sequence[Counts], against: Against, *, training: bool = False) -> list[DriftMeasure]:
    """What moved from any of several earlier counts, each measure from the one to which it is nearest.

    `training`: `before` is what the model was made from, which is no network's: its distances never are beyond a limit.
    Counts of too few verdicts, or embeddings, are left out, and so is a measure of which nothing is left.
    """
    found: list[DriftMeasure] = []
    if now.verdicts < MIN_VERDICTS:
        return found
    enough = [counts for counts in before if counts.verdicts >= MIN_VERDICTS]
    for measure in _MEASURES:
        kept = enough if measure != "embedding" else _with_embeddings(now, enough)
        if not kept:
            continue
        distance, words = _MEASURES[measure]
        far = [distance(now, counts) for counts in kept]
        limit = NEVER if training else LIMITS[measure]
        nearest = kept[int(np.argmin(far))]
        found.append(DriftMeasure(measure, against, round(min(1.0, *far), 4), limit, words(now, nearest)))
    return found


def _with_embeddings(now: Counts, before: Sequence[Counts]) -> list[Counts]:
    """Those that counted enough embeddings along the axes of `now`, which did, too."""
    if now.embeddings < MIN_VERDICTS:
        return []
    return [one for one in before if len(one.axes) == len(now.axes) and one.embeddings >= MIN_VERDICTS]


def _labels(now: Counts, before: Counts) -> float:
    """Jensen-Shannon distance of the mixes of labels (Endres and Schindelin, 2003), base 2."""
    from scipy.spatial.distance import jensenshannon

    names = sorted(now.labels.keys() | before.labels.keys())
    shares = [[counts.labels.get(name, 0) for name in names] for counts in (now, before)]
    return float(jensenshannon(*shares, base=2))


def _confidence(now: Counts, before: Counts) -> float:
    """Wasserstein distance of confidences: by how much they would have to move, on average."""
    from scipy.stats import wasserstein_distance

    return float(wasserstein_distance(_CENTRES, _CENTRES, now.confidence, before.confidence))


def _unknown(now: Counts, before: Counts) -> float:
    """The same of `unknown` as 0 and 1: by how much the share moved."""
    from scipy.stats import wasserstein_distance

    weights = [[counts.verdicts - counts.unknown, counts.unknown] for counts in (now, before)]
    return float(wasserstein_distance((0, 1), (0, 1), *weights))


def _embedding(now: Counts, before: Counts) -> float:
    """Mean Jensen-Shannon distance, base 2, along the axes of the baseline."""
    from scipy.spatial.distance import jensenshannon

    return float(np.mean(jensenshannon(np.array(now.axes, float), np.array(before.axes, float), base=2, axis=1)))


def _label_words(now: Counts, before: Counts) -> str:
    moved = {
        name: (now.labels.get(name, 0) / now.verdicts, before.labels.get(name, 0) / before.verdicts)
        for name in now.labels.keys() | before.labels.keys()
    }
    most = sorted(moved, key=lambda name: (-abs(moved[name][0] - moved[name][1]), name))[:_NAMED]
    return "mix of labels: " + ", ".join(f"{name} {_moved(*moved[name])}" for name in most)


def _confidence_words(now: Counts, before: Counts) -> str:
    means = [float(np.average(_CENTRES, weights=counts.confidence)) for counts in (now, before)]
    return f"mean confidence {_moved(*means)}"


def _unknown_words(now: Counts, before: Counts) -> str:
    return f"unknown {_moved(now.unknown / now.verdicts, before.unknown / before.verdicts)}"


def _embedding_words(now: Counts, before: Counts) -> str:
    return f"what the network computes, of {now.embeddings:,} samples"


def _moved(now: float, before: float) -> str:
    return f"{now:.1%} (was {before:.1%})"


_MEASURES: dict[Measure, tuple[Callable[[Counts, Counts], float], Callable[[Counts, Counts], str]]] = {
    "labels": (_labels, _label_words),
    "confidence": (_confidence, _confidence_words),
    "unknown": (_unknown, _unknown_words),
    "embedding": (_embedding, _embedding_words),
}
"""How far two counts are apart, and what moved, in words."""
