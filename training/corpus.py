"""What a run learns from: classes, background and held-out protocols, and the weighted training set they make."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from models.flow import Flow
from training.batches import draw_weights
from training.finetune import TrainingConfig, TrainingError, TrainingSet
from training.samples import Sample
from training.split import known_labels


class ClassCount(msgspec.Struct, frozen=True):
    """How much there is of a class."""

    label: str
    captures: int
    flows: int


@dataclass(frozen=True)
class Corpus:
    """Labelled samples, the labels to learn (their place is the class index) and the rarer ones, *unknown* material."""

    samples: list[Sample]
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

    def known(self) -> list[Sample]:
        """The samples of the labels to learn."""
        learned = set(self.labels)
        return [sample for sample in self.samples if sample.label in learned]

    def truth(self, samples: Sequence[Sample]) -> NDArray[np.int64]:
        """Class index of each sample, int64 [n]; one more than the last for a label that is not learned."""
        index = {label: number for number, label in enumerate(self.labels)}
        return np.array([index.get(sample.label or "", len(self.labels)) for sample in samples], np.int64)


def count_labels(samples: Iterable[Sample]) -> list[ClassCount]:
    """Captures and flows of every label, most captures first."""
    captures: defaultdict[str, set[str]] = defaultdict(set)
    flows: Counter[str] = Counter()
    for sample in samples:
        if sample.label is not None:
            captures[sample.label].add(sample.capture)
            flows[sample.label] += 1
    return sorted(
        (ClassCount(label, len(names), flows[label]) for label, names in captures.items()),
        key=lambda count: (-count.captures, -count.flows, count.label),
    )


def make_corpus(samples: Iterable[Sample], min_captures: int) -> Corpus:
    """Keep what has a label; labels in at least `min_captures` captures are learned.

    Raises:
        TrainingError: fewer than two labels occur in that many captures.
    """
    labelled = [sample for sample in samples if sample.label is not None]
    labels = known_labels(labelled, min_captures)
    if len(labels) < 2:
        raise TrainingError(
            f"{len(labels)} label(s) in at least {min_captures} captures: expected 2 or more; label more captures, "
            "or lower --min-captures"
        )
    rare = sorted({sample.label for sample in labelled if sample.label} - set(labels))
    return Corpus(labelled, labels, rare)


def make_training_set(
    corpus: Corpus, samples: Sequence[Sample], background: Collection[str], config: TrainingConfig
) -> TrainingSet:
    """The samples whose label is learned or in `background`, with the share of draws each gets.

    Raises:
        TrainingError: a label to learn has no sample among `samples`.
    """
    learned = set(corpus.labels)
    kept = [sample for sample in samples if sample.label in learned or sample.label in background]
    truth = corpus.truth(kept)
    if missing := sorted(learned - {sample.label for sample in kept if sample.label}):
        raise TrainingError(f"label {missing[0]!r} has no flow to train on")
    weights = draw_weights(
        [(sample.label or "", sample.capture) for sample in kept], config.class_power, config.capture_power
    )
    strange = truth == len(corpus.labels)
    if strange.any():
        known_share = weights[~strange].sum()
        weights[strange] *= config.background_share / len(corpus.labels) * known_share / weights[strange].sum()
    flows: list[Flow] = [sample.flow for sample in kept]
    return TrainingSet(flows, truth, weights / weights.sum())
