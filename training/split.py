"""Splits by capture: which captures a model learns from and which it is measured on. Never splits a capture."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Sequence

import numpy as np

from training.samples import Sample


class SplitError(ValueError):
    """The samples cannot be split as asked; the message says what is missing."""


def known_labels(samples: Sequence[Sample], min_captures: int) -> list[str]:
    """The labels that occur in at least `min_captures` captures, sorted."""
    captures: defaultdict[str, set[str]] = defaultdict(set)
    for sample in samples:
        if sample.label is not None:
            captures[sample.label].add(sample.capture)
    return sorted(label for label, names in captures.items() if len(names) >= min_captures)


def fold_of_captures(samples: Sequence[Sample], labels: Collection[str], folds: int, seed: int) -> dict[str, int]:
    """A fold for every capture, so that each label's captures are spread as evenly as possible over the folds.

    Captures are placed rarest label first, each into the fold with the fewest captures of its labels, then the fewest
    flows. Captures without a sample of `labels` are spread at random.

    Raises:
        SplitError: a label has fewer than two captures, so that it cannot be learned and measured.
    """
    rng = np.random.default_rng(seed)
    held: defaultdict[str, Counter[str]] = defaultdict(Counter)
    spread: Counter[str] = Counter()
    for sample in samples:
        label = sample.label or ""
        held[sample.capture][label if label in labels else ""] += 1
    for counts in held.values():
        spread.update(label for label in counts if label)
    if lone := sorted(label for label in labels if spread[label] < 2):
        raise SplitError(
            f"label {lone[0]!r} has {spread[lone[0]]} capture(s): at least 2 are needed to split by capture"
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


def halve_labels(labels: Sequence[str], seed: int) -> tuple[set[str], set[str]]:
    """Two random halves of the labels: background to train on, and labels kept for measuring *unknown*."""
    shuffled = sorted(labels)
    np.random.default_rng(seed).shuffle(shuffled)
    return set(shuffled[::2]), set(shuffled[1::2])
