"""Cross-validation by capture, beside the tree ensemble on the same folds. Trains; the figures belong to `report`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from models.checkpoint import Mm4flowNetwork
from models.flow import Flow
from training.baseline import columns, fit_trees
from training.batches import prefix
from training.calibrate import Floats
from training.corpus import Corpus, make_training_set
from training.finetune import EpochReport, TrainingConfig, fit, new_model, predict
from training.samples import Sample
from training.split import fold_of_captures, halve_labels

PREFIXES = (1, 2, 4, 8)
"""Payload packets after which an early verdict is measured."""

Logits = NDArray[np.float32]


class EvaluationSettings(msgspec.Struct, frozen=True):
    """How a configuration is measured. Folds in `tuned` served to choose settings and are left out of the headline."""

    folds: int = 5
    seed: int = 0
    tuned: tuple[int, ...] = ()


@dataclass(frozen=True)
class FoldOutcome:
    """What one fold yields: n known flows of captures, and m flows of protocols, that were kept from training.

    `logits` float32 [n, classes], `prefixes` the same after so many packets, `unknown_logits` float32 [m, classes];
    of the trees the predicted class, the confidence in it, and the confidence on the unknown flows.
    """

    fold: int
    captures: list[str]
    truth: NDArray[np.int64]
    logits: Logits
    prefixes: dict[int, Logits]
    unknown_captures: list[str]
    unknown_logits: Logits
    trees: NDArray[np.int64]
    trees_confidence: Floats
    trees_unknown_confidence: Floats


def network_of(corpus: Corpus, config: TrainingConfig, *, background: bool) -> Mm4flowNetwork:
    """The sizes of the network for these labels."""
    return Mm4flowNetwork(
        d_model=config.d_model,
        n_layer=config.n_layer,
        n_head=config.n_head,
        dim_ff=config.dim_ff,
        n_class=len(corpus.labels) + background,
    )


def cross_validate(
    corpus: Corpus,
    config: TrainingConfig,
    settings: EvaluationSettings,
    encoders: Mapping[str, Tensor] | None = None,
    report: Callable[[EpochReport], None] = lambda _: None,
) -> list[FoldOutcome]:
    """Train and measure on every fold. Half of the rare protocols, another half each time, is background to train on.

    Raises:
        SplitError: a label has fewer than two captures.
        TrainingError: a label has no flow to train on in some fold, or the loss is not finite.
    """
    known = corpus.known()
    fold_of = fold_of_captures(known, corpus.labels, settings.folds, settings.seed)
    outcomes = []
    for fold in range(settings.folds):
        outcomes.append(_measure(corpus, config, fold_of, fold, encoders, report))
    return outcomes


def _measure(
    corpus: Corpus,
    config: TrainingConfig,
    fold_of: Mapping[str, int],
    fold: int,
    encoders: Mapping[str, Tensor] | None,
    report: Callable[[EpochReport], None],
) -> FoldOutcome:
    background, unseen = halve_labels(corpus.rare, fold)
    learned = set(corpus.labels)
    train = [sample for sample in corpus.samples if fold_of.get(sample.capture) != fold]
    held = [sample for sample in corpus.samples if fold_of.get(sample.capture) == fold and sample.label in learned]
    strange = [sample for sample in corpus.samples if sample.label in unseen]
    data = make_training_set(corpus, train, background, config)
    model = new_model(network_of(corpus, config, background=bool(background)), config.seed, encoders)
    model = fit(model, data, config, report)
    flows, strangers = _flows(held), _flows(strange)
    seen = data.truth < len(corpus.labels)
    trees = fit_trees(
        [flow for flow, known in zip(data.flows, seen, strict=True) if known], data.truth[seen], config.seed
    )
    shares = trees.predict_proba(columns(flows))
    unknown_shares = trees.predict_proba(columns(strangers)) if strangers else np.zeros((0, 1))
    return FoldOutcome(
        fold=fold,
        captures=[sample.capture for sample in held],
        truth=corpus.truth(held),
        logits=predict(model, flows, config.features),
        prefixes={n: predict(model, [prefix(flow, n) for flow in flows], config.features) for n in PREFIXES},
        unknown_captures=[sample.capture for sample in strange],
        unknown_logits=predict(model, strangers, config.features),
        trees=trees.classes_[shares.argmax(axis=1)],
        trees_confidence=shares.max(axis=1),
        trees_unknown_confidence=unknown_shares.max(axis=1),
    )


def _flows(samples: list[Sample]) -> list[Flow]:
    return [sample.flow for sample in samples]
