"""The folds of an evaluation of flows, by captures, whole corpora, or the parts of a split, and the model of a fold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tapline.models.checkpoint import Mm4flowNetwork
from tapline.models.encode import Mm4flowFeatures
from tapline.models.mm4flow import Mm4flow
from tapline.training.data.batches import TrainingSet
from tapline.training.data.corpus import Corpus, make_training_set
from tapline.training.data.partition import PARTS, Partition
from tapline.training.data.split import BACKGROUND, SplitError, check_filled, halve_labels, spread_captures
from tapline.training.data.store import StoredSamples
from tapline.training.evaluation.evaluation_record import EvaluationSettings
from tapline.training.flows.finetune import fit
from tapline.training.loop.config import TrainingConfig, network_sizes
from tapline.training.loop.new_networks import new_model
from tapline.training.loop.processes import ALONE, Group
from tapline.training.loop.trainer import Report

MIN_CORPUS_FLOWS = 20
"""A corpus is left out once where it holds at least so many flows to be measured on."""


@dataclass(frozen=True)
class Fold:
    """What a fold of flows learns from, and what it is measured on: flows of known labels, and of labels never
    learned. `corpus` is what was left out, "" for captures of any."""

    number: int
    data: TrainingSet
    background: bool
    held: StoredSamples
    strange: StoredSamples
    corpus: str = ""


def network_of(corpus: Corpus, config: TrainingConfig, *, background: bool) -> Mm4flowNetwork:
    """The sizes of the network for these labels."""
    return network_sizes(config, len(corpus.labels) + background)


class _Known:
    """The samples of labels to learn, and which others are like one of them to a model that reads `features`."""

    def __init__(self, corpus: Corpus, features: Mm4flowFeatures) -> None:
        self._kinds = corpus.samples.flows.kinds(features.payload_lengths, features.content_bytes)
        self.rows = corpus.samples.with_label(corpus.labels)

    def new(self, aside: NDArray[np.bool_], learned: NDArray[np.bool_] | None = None) -> NDArray[np.bool_]:
        """Those `aside` without their like among the `learned` samples, None: the known ones that are not aside."""
        learned = ~aside & self.rows if learned is None else learned
        return aside & ~np.isin(self._kinds, self._kinds[learned])


def flow_folds(corpus: Corpus, config: TrainingConfig, settings: EvaluationSettings) -> Iterator[Fold]:
    """The folds of the captures. Half of the rare protocols, another half each time, is background to train on.

    Flows that the model cannot tell from one of a label that it learned from are not measured.

    Raises:
        SplitError: a label has fewer than two captures.
        TrainingError: a label has no flow to train on in some fold.
    """
    samples, known = corpus.samples, _Known(corpus, config.features)
    fold_of = spread_captures(corpus.known().held(), corpus.labels, settings.folds, settings.seed)
    check_filled(settings.folds, fold_of.values())
    for fold in range(settings.folds):
        rare, unseen = halve_labels(corpus.rare, fold)
        background = corpus.background(rare)
        aside = samples.in_captures(capture for capture, of in fold_of.items() if of == fold)
        data = make_training_set(corpus, samples.take(~aside), background, config)
        held = samples.take(known.new(aside) & known.rows)
        yield Fold(fold, data, bool(background), held, samples.take(samples.with_label(unseen)))


def corpus_folds(corpus: Corpus, config: TrainingConfig, settings: EvaluationSettings) -> Iterator[Fold]:
    """A fold for each corpus with `MIN_CORPUS_FLOWS` flows to measure: all others are learned from, half of their rare
    protocols, another half each time, as background.

    Flows that the model cannot tell from one of a label that it learned from are not measured. A label that no other
    corpus bears, or that is in the other half of the rare ones, was never learned.

    Raises:
        SplitError: fewer than two corpora have flows enough.
    """
    samples, of = corpus.samples, corpus.samples.corpora()
    names = dict(zip(of.tolist(), (name.partition("/")[0] for name in samples.captures_of()), strict=True))
    known = _Known(corpus, config.features)

    def is_held(aside: NDArray[np.bool_]) -> NDArray[np.bool_]:
        return known.new(aside) & np.isin(samples.labels, samples.labels[~aside & known.rows])

    flows = {number: int(is_held(of == number).sum()) for number in names}
    measured = [number for number in names if flows[number] >= MIN_CORPUS_FLOWS]
    if len(measured) < 2:
        held = ", ".join(f"{name} {flows[number]}" for number, name in names.items())
        raise SplitError(
            f"two corpora with {MIN_CORPUS_FLOWS} flows are needed, of labels that others bear too and without their "
            f"like there, and these hold: {held}; label more, and extract each corpus from a folder of its own"
        )
    for fold, number in enumerate(measured):
        aside = of == number
        background = corpus.background(halve_labels(corpus.rare, settings.seed + fold)[0])
        data = make_training_set(corpus, samples.take(~aside), background, config, some_absent=True)
        learned = ~aside & samples.with_label({*corpus.labels, *background})
        never = ~np.isin(samples.labels, samples.labels[learned]) & ~samples.with_label([BACKGROUND])
        strange = samples.take(known.new(aside, learned) & never)
        yield Fold(fold, data, bool(background), samples.take(is_held(aside)), strange, names[number])


def parts_of(corpus: Corpus, config: TrainingConfig, partition: Partition) -> Iterator[Fold]:
    """Validation and test of a split, as folds of which the first may have served to choose settings.

    Raises:
        SplitError: one of them has no known flow.
    """
    rare, unseen = halve_labels(corpus.rare, 0)
    background = corpus.background(rare)
    known, strange = corpus.known(), corpus.samples.take(corpus.samples.with_label(unseen))
    parts, strange_parts = partition.parts(known), partition.parts(strange)
    data = make_training_set(corpus, corpus.samples.take(partition.parts(corpus.samples) == 0), background, config)
    for fold, part in enumerate((1, 2)):
        held = known.take(parts == part)
        if not len(held):
            raise SplitError(
                f"the split has no known flow for {PARTS[part]}: split again, with more captures of each label; or "
                "train and evaluate without --split"
            )
        yield Fold(fold, data, bool(background), held, strange.take(strange_parts == part))


def train_fold(
    fold: Fold,
    corpus: Corpus,
    config: TrainingConfig,
    encoders: Mapping[str, Tensor] | None,
    report: Report,
    group: Group = ALONE,
) -> Mm4flow:
    """The model of a fold.

    Raises:
        TrainingError: the encoders are of another size, or the loss is not finite.
    """
    model = new_model(network_of(corpus, config, background=fold.background), config.seed, encoders)
    return fit(model, fold.data, config, report, group=group)
