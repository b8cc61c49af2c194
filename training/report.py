"""From the outcomes of cross-validation to figures: every number that the card and the manifest state."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from training.calibrate import Calibrated, Floats, capture_weights, fit_temperature, rejection_threshold, softmax
from training.evaluate import EvaluationSettings, FoldOutcome, Logits
from training.finetune import TrainingError
from training.metrics import (
    ClassScore,
    Interval,
    auroc,
    bootstrap_draws,
    calibration_error,
    class_scores,
    f1_scores,
    macro_f1,
)

MIN_FLOWS = 5
"""Macro-F1 counts the classes that a fold holds at least so many flows of."""

FALSE_REJECTION = 0.05
"""Share of known flows that the unknown rule may reject."""

CONFUSIONS = 12


class Confusion(msgspec.Struct, frozen=True):
    """So many flows of `label` in so many captures were called `called`."""

    label: str
    called: str
    flows: int
    captures: int


class FoldFigures(msgspec.Struct, frozen=True):
    """One fold: sizes, the model, the trees. `tuned` folds served to choose settings.

    Macro-F1 is None in a fold without a class of `MIN_FLOWS` flows, AUROC where there is no unknown flow.
    """

    fold: int
    tuned: bool
    captures: int
    flows: int
    classes: int
    macro_f1: float | None
    macro_f1_trees: float | None
    accuracy: float
    accuracy_trees: float
    calibration_error: float
    unknown_auroc: float | None
    unknown_auroc_trees: float | None


class Evaluation(msgspec.Struct, frozen=True):
    """Everything measured on captures kept from training. The headline is over the folds that chose no setting.

    `macro_f1` is the mean over folds, its interval a bootstrap over the captures of each fold. `macro_f1_by_packets`:
    after so many payload packets, and `all`. Each fold is calibrated with the temperature fitted on the other folds;
    `temperature` and `threshold` are those of all folds together, for the checkpoint.
    """

    folds: list[FoldFigures]
    macro_f1: float
    macro_f1_interval: Interval
    macro_f1_trees: float
    macro_f1_trees_interval: Interval
    gain_interval: Interval
    accuracy: float
    calibration_error: float
    unknown_auroc: float | None
    unknown_auroc_trees: float | None
    unknown_rejected: float | None
    known_rejected: float
    macro_f1_by_packets: dict[str, float]
    classes: list[ClassScore]
    confusions: list[Confusion]
    temperature: float
    threshold: float


@dataclass(frozen=True)
class _Judged:
    """A fold after calibration: predicted class, its confidence, the confidence on unknown flows."""

    outcome: FoldOutcome
    predicted: NDArray[np.int64]
    confidence: Floats
    unknown_confidence: Floats


def evaluate(outcomes: Sequence[FoldOutcome], labels: Sequence[str], settings: EvaluationSettings) -> Evaluation:
    """All figures of a cross-validation.

    Raises:
        TrainingError: no fold beside those in `tuned` holds a class with `MIN_FLOWS` flows.
    """
    judged = [_judge(outcome, [o for o in outcomes if o is not outcome], len(labels)) for outcome in outcomes]
    final = calibrate(outcomes, len(labels))
    counted = _reported(judged, len(labels), settings)
    threshold = final.threshold
    folds = [_fold_figures(fold, len(labels), settings) for fold in judged]
    reported = {fold.outcome.fold for fold in counted}

    def mean(measure: Callable[[_Judged], float]) -> float:
        return float(np.mean([measure(fold) for fold in counted]))

    def f1(fold: _Judged) -> float:
        return macro_f1(fold.outcome.truth, fold.predicted, len(labels), MIN_FLOWS)

    def f1_trees(fold: _Judged) -> float:
        return macro_f1(fold.outcome.truth, fold.outcome.trees, len(labels), MIN_FLOWS)

    model_draws, trees_draws = (_draws(counted, len(labels), trees=trees) for trees in (False, True))
    return Evaluation(
        folds=folds,
        macro_f1=mean(f1),
        macro_f1_interval=_interval(model_draws),
        macro_f1_trees=mean(f1_trees),
        macro_f1_trees_interval=_interval(trees_draws),
        gain_interval=_interval(model_draws - trees_draws),
        accuracy=mean(lambda fold: float((fold.predicted == fold.outcome.truth).mean())),
        calibration_error=_pooled_calibration(counted),
        unknown_auroc=_mean_of_those([fold.unknown_auroc for fold in folds if fold.fold in reported]),
        unknown_auroc_trees=_mean_of_those([fold.unknown_auroc_trees for fold in folds if fold.fold in reported]),
        unknown_rejected=_mean_of_those([_share_below(fold.unknown_confidence, threshold) for fold in counted]),
        known_rejected=mean(lambda fold: float((fold.confidence < threshold).mean())),
        macro_f1_by_packets={**_by_packets(counted, len(labels)), "all": mean(f1)},
        classes=_classes(counted, labels),
        confusions=_confusions(counted, labels),
        temperature=final.temperature,
        threshold=threshold,
    )


def calibrate(outcomes: Sequence[FoldOutcome], n_label: int) -> Calibrated:
    """Temperature and threshold from flows that the models of these folds were not trained on."""
    logits = np.concatenate([outcome.logits for outcome in outcomes])
    truth = np.concatenate([outcome.truth for outcome in outcomes])
    weights = capture_weights([capture for outcome in outcomes for capture in outcome.captures])
    temperature = fit_temperature(logits, truth, weights)
    confidence = softmax(logits, temperature)[:, :n_label].max(axis=1)
    return Calibrated(temperature, rejection_threshold(confidence, weights, FALSE_REJECTION))


def _reported(judged: list[_Judged], n_label: int, settings: EvaluationSettings) -> list[_Judged]:
    """The folds that make the headline: not tuned on, and with a class to measure."""
    counted = [
        fold
        for fold in judged
        if fold.outcome.fold not in settings.tuned
        and (np.bincount(fold.outcome.truth, minlength=n_label) >= MIN_FLOWS).any()
    ]
    if not counted:
        raise TrainingError(
            f"no fold to report holds a class with {MIN_FLOWS} flows: take fewer folds (--folds) or label more captures"
        )
    return counted


def _judge(outcome: FoldOutcome, others: Sequence[FoldOutcome], n_label: int) -> _Judged:
    temperature = calibrate(others, n_label).temperature if others else 1.0
    shares = softmax(outcome.logits, temperature)[:, :n_label]
    unknown = softmax(outcome.unknown_logits, temperature)[:, :n_label]
    return _Judged(outcome, shares.argmax(axis=1), shares.max(axis=1), unknown.max(axis=1))


def _fold_figures(fold: _Judged, n_label: int, settings: EvaluationSettings) -> FoldFigures:
    outcome = fold.outcome
    correct = fold.predicted == outcome.truth
    return FoldFigures(
        fold=outcome.fold,
        tuned=outcome.fold in settings.tuned,
        captures=len(set(outcome.captures)),
        flows=len(outcome.truth),
        classes=int((np.bincount(outcome.truth, minlength=n_label) >= MIN_FLOWS).sum()),
        macro_f1=_or_none(macro_f1(outcome.truth, fold.predicted, n_label, MIN_FLOWS)),
        macro_f1_trees=_or_none(macro_f1(outcome.truth, outcome.trees, n_label, MIN_FLOWS)),
        accuracy=float(correct.mean()),
        accuracy_trees=float((outcome.trees == outcome.truth).mean()),
        calibration_error=calibration_error(fold.confidence, correct),
        unknown_auroc=_or_none(auroc(fold.confidence, fold.unknown_confidence)),
        unknown_auroc_trees=_or_none(auroc(outcome.trees_confidence, outcome.trees_unknown_confidence)),
    )


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value


def _mean_of_those(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return float(np.mean(there)) if there else None


def _share_below(confidence: Floats, threshold: float) -> float | None:
    return float((confidence < threshold).mean()) if len(confidence) else None


def _draws(folds: Sequence[_Judged], n_label: int, *, trees: bool, rounds: int = 500) -> Floats:
    """Bootstrap draws of the mean over folds, the same captures for the model and for the trees."""
    per_fold = []
    for fold in folds:
        truth, predicted = fold.outcome.truth, fold.outcome.trees if trees else fold.predicted
        counted = np.bincount(truth, minlength=n_label) >= MIN_FLOWS

        def measure(rows: NDArray[np.int64], t: NDArray[np.int64] = truth, p: NDArray[np.int64] = predicted,
                    counted: NDArray[np.bool_] = counted) -> float:  # fmt: skip
            there = counted & (np.bincount(t[rows], minlength=n_label) > 0)
            return float(f1_scores(t[rows], p[rows], n_label)[there].mean()) if there.any() else float("nan")

        per_fold.append(bootstrap_draws(fold.outcome.captures, measure, rounds))
    return np.asarray(np.nanmean(per_fold, axis=0))


def _interval(draws: Floats) -> Interval:
    low, high = np.nanpercentile(draws, [2.5, 97.5])
    return Interval(float(low), float(high))


def _pooled_calibration(folds: Sequence[_Judged]) -> float:
    confidence = np.concatenate([fold.confidence for fold in folds])
    correct = np.concatenate([fold.predicted == fold.outcome.truth for fold in folds])
    return calibration_error(confidence, correct)


def _by_packets(folds: Sequence[_Judged], n_label: int) -> dict[str, float]:
    def f1(outcome: FoldOutcome, logits: Logits) -> float:
        return macro_f1(outcome.truth, logits[:, :n_label].argmax(axis=1), n_label, MIN_FLOWS)

    packets = folds[0].outcome.prefixes
    return {
        str(count): float(np.mean([f1(fold.outcome, fold.outcome.prefixes[count]) for fold in folds]))
        for count in packets
    }


def _classes(folds: Sequence[_Judged], labels: Sequence[str]) -> list[ClassScore]:
    truth = np.concatenate([fold.outcome.truth for fold in folds])
    predicted = np.concatenate([fold.predicted for fold in folds])
    return class_scores(truth, predicted, labels, [capture for fold in folds for capture in fold.outcome.captures])


def _confusions(folds: Sequence[_Judged], labels: Sequence[str]) -> list[Confusion]:
    flows: Counter[tuple[int, int]] = Counter()
    captures: dict[tuple[int, int], set[str]] = {}
    for fold in folds:
        pairs = zip(fold.outcome.truth.tolist(), fold.predicted.tolist(), fold.outcome.captures, strict=True)
        for truth, predicted, capture in pairs:
            if truth != predicted:
                flows[truth, predicted] += 1
                captures.setdefault((truth, predicted), set()).add(capture)
    return [
        Confusion(labels[truth], labels[predicted], count, len(captures[truth, predicted]))
        for (truth, predicted), count in flows.most_common(CONFUSIONS)
    ]
