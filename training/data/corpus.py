"""What a run learns from: classes, background and held-out protocols, and the weighted training set they make."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from tapline.training.data.batches import TrainingSet, draw_weights
from tapline.training.data.split import BACKGROUND, known_labels
from tapline.training.data.store import StoredSamples
from tapline.training.loop.config import TrainingConfig, TrainingError


class ClassCount(msgspec.Struct, frozen=True):
    """How much there is of a class."""

    label: str
    captures: int
    flows: int


@dataclass(frozen=True)
class Corpus:
    """Labelled samples, the labels to learn (their place is the class index) and the rarer ones, *unknown* material."""

    samples: StoredSamples
    labels: list[str]
    rare: list[str]

    @property
    def all_counts(self) -> list[ClassCount]:
        """Captures and flows of every label."""
        return count_labels(self.samples)

    @property
    def counts(self) -> list[ClassCount]:
        """Captures and flows of each label to learn."""
        learned = set(self.labels)
        return [count for count in self.all_counts if count.label in learned]

    def background(self, rare: Collection[str]) -> set[str]:
        """The labels of a background: these rare ones, and `BACKGROUND` where there are flows of it."""
        return {*rare, *({BACKGROUND} & set(self.samples.label_names))}

    def known(self) -> StoredSamples:
        """The samples of the labels to learn."""
        return self.samples.take(self.samples.with_label(self.labels))

    def truth(self, samples: StoredSamples) -> NDArray[np.int64]:
        """Class index of each sample, int64 [n]; one more than the last for a label that is not learned."""
        index = {label: number for number, label in enumerate(self.labels)}
        class_of = [index.get(name, len(self.labels)) for name in samples.label_names]
        return np.array([*class_of, len(self.labels)], np.int64)[samples.labels]


def count_labels(samples: StoredSamples) -> list[ClassCount]:
    """Captures and flows of every label, most captures first."""
    found: dict[str, list[int]] = {}
    for counts in samples.held().values():
        for label, flows in counts.items():
            if label is not None:
                found.setdefault(label, []).append(flows)
    return sorted(
        (ClassCount(label, len(flows), sum(flows)) for label, flows in found.items()),
        key=lambda count: (-count.captures, -count.flows, count.label),
    )


def make_corpus(samples: StoredSamples, min_captures: int, min_flows: int = 1) -> Corpus:
    """Keep what has a label; labels in at least `min_captures` captures and `min_flows` flows are learned.

    Raises:
        TrainingError: fewer than two labels occur so often.
    """
    labels = known_labels(samples.held(), min_captures, min_flows)
    if len(labels) < 2:
        flows, lower = (f" and {min_flows} flows", " or --min-flows") if min_flows > 1 else ("", "")
        raise TrainingError(
            f"{len(labels)} label(s) in at least {min_captures} captures{flows}: expected 2 or more; label more "
            f"captures, or lower --min-captures{lower}"
        )
    labelled = samples.take(samples.labels >= 0)
    rare = sorted(labelled.labels_in(labelled.labels) - {BACKGROUND, *labels})
    return Corpus(labelled, labels, rare)


def make_training_set(
    corpus: Corpus,
    samples: StoredSamples,
    background: Collection[str],
    config: TrainingConfig,
    *,
    some_absent: bool = False,
) -> TrainingSet:
    """The samples whose label is learned or in `background`, with the share of draws each gets.

    Raises:
        TrainingError: a label to learn has no sample among `samples`, unless there may be `some_absent`.
    """
    kept = samples.take(samples.with_label({*corpus.labels, *background}))
    truth = corpus.truth(kept)
    there = np.bincount(truth, minlength=len(corpus.labels))[: len(corpus.labels)]
    if (there == 0).any() and not some_absent:
        raise TrainingError(f"label {corpus.labels[int(np.argmin(there))]!r} has no flow to train on")
    weights = draw_weights(kept.labels, kept.captures, config.class_power, config.capture_power)
    strange = truth == len(corpus.labels)
    if strange.any():
        known_share = weights[~strange].sum()
        weights[strange] *= config.background_share / len(corpus.labels) * known_share / weights[strange].sum()
    return TrainingSet(kept.flows, truth, weights / weights.sum(), kept.captures, len(corpus.labels))
