"""Cross-validation by capture, beside simpler models on the same folds. Trains; the figures belong to `report`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tapline.models.checkpoint import Mm4flowNetwork
from tapline.models.mm4flow import Mm4flow
from tapline.training.data.batches import TrainingSet, first_content, prefix
from tapline.training.data.corpus import Corpus, make_training_set
from tapline.training.data.split import check_filled, halve_labels, spread_captures
from tapline.training.data.store import StoredFlows, StoredSamples
from tapline.training.evaluation.calibration import Floats
from tapline.training.evaluation.flow_rivals import columns, fit_forest, fit_trees, statistics
from tapline.training.export.quantise import int8_logits
from tapline.training.flows.finetune import fit, predict
from tapline.training.loop.config import TrainingConfig, network_sizes
from tapline.training.loop.new_networks import new_model
from tapline.training.loop.processes import ALONE, Group
from tapline.training.loop.trainer import StepReport

PREFIXES = (1, 2, 4, 8, 16, 32)
"""Payload packets after which an early verdict is measured."""
CONTENTS = (0, 4, 8, 16, 32, 64)
"""Content bytes each way that a verdict is measured with."""

Logits = NDArray[np.float32]


class EvaluationSettings(msgspec.Struct, frozen=True):
    """How a configuration is measured. Folds in `tuned` served to choose settings and are left out of the headline.

    `int8` measures the quantised model of each fold too.
    """

    folds: int = 5
    seed: int = 0
    tuned: tuple[int, ...] = ()
    int8: bool = False


@dataclass(frozen=True)
class FoldOutcome:
    """What one fold yields: n known flows of captures, and m flows of protocols, that were kept from training.

    `logits` float32 [n, classes], `prefixes` and `contents` the same after so many packets and with so many content
    bytes, `unknown_logits` float32 [m, classes]; of the trees the predicted class, the confidence in it, and the
    confidence on the unknown flows; of the forest the predicted class; `majority` is the most frequent class. `int8` is
    the class that the quantised model predicts, empty where it was not asked for.
    """

    fold: int
    captures: list[str]
    truth: NDArray[np.int64]
    logits: Logits
    prefixes: dict[int, Logits]
    contents: dict[int, Logits]
    unknown_captures: list[str]
    unknown_logits: Logits
    trees: NDArray[np.int64]
    trees_confidence: Floats
    trees_unknown_confidence: Floats
    forest: NDArray[np.int64]
    majority: int
    int8: NDArray[np.int64]


def network_of(corpus: Corpus, config: TrainingConfig, *, background: bool) -> Mm4flowNetwork:
    """The sizes of the network for these labels."""
    return network_sizes(config, len(corpus.labels) + background)


@dataclass(frozen=True)
class Fold:
    """What a fold learns from, and what it is measured on: flows of known labels, and of labels never learned."""

    number: int
    data: TrainingSet
    background: bool
    held: StoredSamples
    strange: StoredSamples


def folds_of(corpus: Corpus, config: TrainingConfig, settings: EvaluationSettings) -> Iterator[Fold]:
    """The folds of the captures. Half of the rare protocols, another half each time, is background to train on.

    Raises:
        SplitError: a label has fewer than two captures.
        TrainingError: a label has no flow to train on in some fold.
    """
    samples = corpus.samples
    fold_of = spread_captures(corpus.known().held(), corpus.labels, settings.folds, settings.seed)
    check_filled(settings.folds, fold_of.values())
    for fold in range(settings.folds):
        background, unseen = halve_labels(corpus.rare, fold)
        aside = samples.in_captures(capture for capture, of in fold_of.items() if of == fold)
        data = make_training_set(corpus, samples.take(~aside), background, config)
        held = samples.take(aside & samples.with_label(corpus.labels))
        yield Fold(fold, data, bool(background), held, samples.take(samples.with_label(unseen)))


def cross_validate(
    corpus: Corpus,
    config: TrainingConfig,
    settings: EvaluationSettings,
    encoders: Mapping[str, Tensor] | None = None,
    report: Callable[[StepReport], None] = lambda _: None,
    group: Group = ALONE,
) -> list[FoldOutcome]:
    """Train and measure on every fold.

    Raises:
        SplitError: a label has fewer than two captures.
        TrainingError: a label has no flow to train on in some fold, or the loss is not finite.
    """
    outcomes = []
    for fold in folds_of(corpus, config, settings):
        model = new_model(network_of(corpus, config, background=fold.background), config.seed, encoders)
        model = fit(model, fold.data, config, report, group=group)
        outcomes.append(measure(fold, corpus, config, model, int8=settings.int8))
    return outcomes


def measure(fold: Fold, corpus: Corpus, config: TrainingConfig, model: Mm4flow, *, int8: bool = False) -> FoldOutcome:
    """Measure a model trained on the data of a fold, and simpler ones, on its held and its strange flows."""
    data, held, strange = fold.data, fold.held, fold.strange
    seen = data.truth < len(corpus.labels)
    flows, truth = data.flows, data.truth[seen]
    assert isinstance(flows, StoredFlows)
    known = flows.take(seen)
    trees = fit_trees(known, truth, config.seed, config.threads)
    forest = fit_forest(known, truth, config.seed, config.threads)
    shares = trees.predict_proba(columns(held.flows))
    unknown_shares = trees.predict_proba(columns(strange.flows)) if len(strange) else np.zeros((0, 1))
    features = config.features
    return FoldOutcome(
        fold=fold.number,
        captures=held.captures_of(),
        truth=corpus.truth(held),
        logits=predict(model, held.flows, features),
        prefixes={n: predict(model, [prefix(flow, n) for flow in held.flows], features) for n in PREFIXES},
        contents={n: predict(model, [first_content(flow, n) for flow in held.flows], features) for n in CONTENTS},
        unknown_captures=strange.captures_of(),
        unknown_logits=predict(model, strange.flows, features),
        trees=trees.classes_[shares.argmax(axis=1)],
        trees_confidence=shares.max(axis=1),
        trees_unknown_confidence=unknown_shares.max(axis=1),
        forest=forest.predict(statistics(held.flows)),
        majority=int(np.bincount(truth).argmax()),
        int8=_int8_classes(fold, corpus, config, model) if int8 else np.zeros(0, np.int64),
    )


def _int8_classes(fold: Fold, corpus: Corpus, config: TrainingConfig, model: Mm4flow) -> NDArray[np.int64]:
    network = network_of(corpus, config, background=fold.background)
    logits = int8_logits(model, network, fold.held.flows, config.features)
    return np.asarray(logits[:, : len(corpus.labels)].argmax(axis=1), np.int64)
