"""Splits by capture: which captures a model learns from and which it is measured on. Never splits a capture."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np

from tapline.training.data.parquet import Sample

Held = Mapping[str, Mapping[str | None, int]]
"""For each capture how many flows of each label it holds, None for those without one."""


BACKGROUND = "background"
"""The label of flows that are none of those to learn, whatever else they are: always background, never measured."""


class SplitError(ValueError):
    """The samples cannot be split as asked; the message says what is missing."""


def held_by(samples: Iterable[Sample]) -> dict[str, Counter[str | None]]:
    """What the captures of these samples hold."""
    held: defaultdict[str, Counter[str | None]] = defaultdict(Counter)
    for sample in samples:
        held[sample.capture][sample.label] += 1
    return dict(held)


def known_labels(held: Held, min_captures: int, min_flows: int = 1) -> list[str]:
    """The labels, `BACKGROUND` apart, that occur in at least `min_captures` captures and `min_flows` flows, sorted."""
    captures, flows = Counter[str](), Counter[str]()
    for labels in held.values():
        for label, count in labels.items():
            if label is not None and label != BACKGROUND:
                captures[label] += 1
                flows[label] += count
    return sorted(label for label in captures if captures[label] >= min_captures and flows[label] >= min_flows)


def fold_of_captures(
    samples: Sequence[Sample], labels: Collection[str], folds: int, seed: int, unit: str = "capture"
) -> dict[str, int]:
    """`spread_captures` of the captures of these samples; `unit` is what errors call them."""
    return spread_captures(held_by(samples), labels, folds, seed, unit)


def spread_captures(
    all_held: Held, labels: Collection[str], folds: int, seed: int, unit: str = "capture"
) -> dict[str, int]:
    """A fold for every capture, so that each label's captures are spread as evenly as possible over the folds.

    Captures are placed rarest label first, each into the fold with the fewest captures of its labels, then the fewest
    flows. Captures without a sample of `labels` are spread at random.

    Raises:
        SplitError: a label has fewer than two captures, so that it cannot be learned and measured.
    """
    rng = np.random.default_rng(seed)
    held: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for capture, flows_of in all_held.items():
        for name, count in flows_of.items():
            held[capture][name if name in labels else ""] += count  # type: ignore[index]
    spread = Counter(label for counts in held.values() for label in counts if label)
    if lone := sorted(label for label in labels if spread[label] < 2):
        raise SplitError(
            f"label {lone[0]!r} has {spread[lone[0]]} {unit}(s): at least 2 are needed to split by {unit}; extract "
            "more of it, or leave it out (flows: finetune --min-captures 2)"
        )
    order = sorted(held)
    rng.shuffle(order)
    order.sort(key=lambda capture: min((spread[label] for label in held[capture] if label), default=len(held) + 1))
    by_label: list[Counter[str]] = [Counter() for _ in range(folds)]
    flows = [0] * folds
    fold_of: dict[str, int] = {}
    for capture in order:
        own = [label for label in held[capture] if label]

        def cost(fold: int, own: list[str] = own) -> tuple[float, int]:
            return sum(by_label[fold][label] / spread[label] for label in own), flows[fold]

        best = min(range(folds), key=cost)
        fold_of[capture] = best
        by_label[best].update(own)
        flows[best] += sum(held[capture].values())
    return fold_of


def check_tuned(folds: int, tuned: Collection[int]) -> None:
    """Check the folds that served to choose settings.

    Raises:
        SplitError: one of them is no fold, or none is left to be measured on.
    """
    if strange := [fold for fold in tuned if not 0 <= fold < folds]:
        raise SplitError(f"--tuned {strange[0]}: expected one of the folds 0 to {folds - 1}")
    if len(set(tuned)) == folds:
        raise SplitError("--tuned: every fold served to choose settings: leave one at least to be measured on")


def check_filled(folds: int, fold_of: Collection[int], unit: str = "capture") -> None:
    """Check that every fold has a capture, which errors call by its `unit`, given the fold of each.

    Raises:
        SplitError: there are more folds than captures.
    """
    if (filled := len(set(fold_of))) < folds:
        raise SplitError(f"--folds {folds}: the {unit}s fill {filled} of them: give {filled} or fewer")


def halve_labels(labels: Sequence[str], seed: int) -> tuple[set[str], set[str]]:
    """Two random halves of the labels: background to train on, and labels kept for measuring *unknown*."""
    shuffled = sorted(labels)
    np.random.default_rng(seed).shuffle(shuffled)
    return set(shuffled[::2]), set(shuffled[1::2])
