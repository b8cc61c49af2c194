"""From the outcomes of cross-validation to figures: every number that the card and the manifest state."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from tapline.training.evaluation.calibration import (
    Calibrated,
    Floats,
    capped_weights,
    fit_temperature,
    rejection_threshold,
    softmax,
)
from tapline.training.evaluation.flow_cross_validation import EvaluationSettings, FoldOutcome, Logits
from tapline.training.loop.config import TrainingError
from tapline.training.loop.scores import (
    ClassScore,
    Interval,
    Predictions,
    auroc,
    calibration_error,
    class_scores,
    interval,
    macro_f1,
    macro_f1_draws,
    weighted_f1,
)

MIN_FLOWS = 5
"""Macro-F1 counts the classes that a fold holds at least so many flows of."""

FALSE_REJECTION = 0.05
"""Share of known flows that the unknown rule may reject."""

CONFUSIONS = 12

EARLY_F1_LOSS = 0.01
EARLY_ERROR_GAIN = 0.02
"""An early verdict may cost so much macro-F1, and be so much worse calibrated than at the best point."""


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

    `macro_f1` is the mean over folds, its interval a bootstrap over the captures of each fold. `..._by_packets`: after
    so many payload packets, and `all`; `..._by_content_bytes`: with so many content bytes each way; `early_packets`:
    see the function. The trees read lengths and bytes, the forest flow statistics; `majority` names the most frequent
    class whatever comes. Each fold is calibrated with the temperature fitted on the other folds; `temperature` and
    `threshold` are those of all folds together, for the checkpoint. `capped`: where the flows of a class in one capture
    weigh no more than `training.evaluation.calibration.MOST_FLOWS` together.
    """

    folds: list[FoldFigures]
    macro_f1: float
    macro_f1_interval: Interval
    macro_f1_trees: float
    macro_f1_trees_interval: Interval
    gain_interval: Interval
    macro_f1_forest: float
    macro_f1_majority: float
    weighted_f1: float
    macro_f1_capped: float
    macro_f1_capped_trees: float
    calibration_error_capped: float
    accuracy: float
    calibration_error: float
    unknown_auroc: float | None
    unknown_auroc_trees: float | None
    unknown_rejected: float | None
    known_rejected: float
    macro_f1_by_packets: dict[str, float]
    calibration_error_by_packets: dict[str, float]
    macro_f1_by_content_bytes: dict[str, float]
    calibration_error_by_content_bytes: dict[str, float]
    early_packets: int
    false_rejection: float
    classes: list[ClassScore]
    confusions: list[Confusion]
    temperature: float
    threshold: float
    macro_f1_int8: float | None = None


@dataclass(frozen=True)
class Judged:
    """A fold after calibration: shares of the labels float64 [n, labels], the predicted class, its confidence, and the
    confidence on unknown flows."""

    outcome: FoldOutcome
    temperature: float
    shares: Floats
    predicted: NDArray[np.int64]
    confidence: Floats
    unknown_confidence: Floats


def judge_all(outcomes: Sequence[FoldOutcome], n_label: int) -> list[Judged]:
    """Every fold, calibrated with the temperature of the others."""
    return [_judge(outcome, [o for o in outcomes if o is not outcome], n_label) for outcome in outcomes]


def evaluate(
    outcomes: Sequence[FoldOutcome],
    labels: Sequence[str],
    settings: EvaluationSettings,
    false_rejection: float = FALSE_REJECTION,
) -> Evaluation:
    """All figures of a cross-validation; the unknown rule rejects the share `false_rejection` of known flows.

    Raises:
        TrainingError: no fold beside those in `tuned` holds a class with `MIN_FLOWS` flows.
    """
    n_label = len(labels)
    judged = judge_all(outcomes, n_label)
    final = calibrate(outcomes, n_label, false_rejection)
    counted = reported_folds(judged, n_label, settings)
    folds = [_fold_figures(fold, n_label, settings) for fold in judged]
    reported = {fold.outcome.fold for fold in counted}
    by_packets = _curve(counted, n_label, lambda outcome: outcome.prefixes)
    by_content = _curve(counted, n_label, lambda outcome: outcome.contents)
    whole = _curve(counted, n_label, lambda outcome: {"all": outcome.logits})
    return Evaluation(
        folds=folds,
        **_scores(counted, n_label),
        calibration_error=_pooled_calibration(counted),
        calibration_error_capped=_pooled_calibration(counted, capped=True),
        unknown_auroc=_mean_of_those([fold.unknown_auroc for fold in folds if fold.fold in reported]),
        unknown_auroc_trees=_mean_of_those([fold.unknown_auroc_trees for fold in folds if fold.fold in reported]),
        unknown_rejected=_mean_of_those([_share_below(fold.unknown_confidence, final.threshold) for fold in counted]),
        known_rejected=float(np.mean([(fold.confidence < final.threshold).mean() for fold in counted])),
        macro_f1_by_packets=by_packets.macro_f1 | whole.macro_f1,
        calibration_error_by_packets=by_packets.calibration_error | whole.calibration_error,
        early_packets=early_packets(by_packets.macro_f1 | whole.macro_f1, by_packets.calibration_error),
        macro_f1_by_content_bytes=by_content.macro_f1,
        calibration_error_by_content_bytes=by_content.calibration_error,
        false_rejection=false_rejection,
        classes=_classes(counted, labels),
        confusions=_confusions(counted, labels),
        temperature=final.temperature,
        threshold=final.threshold,
    )


def early_packets(f1: Mapping[str, float], error: Mapping[str, float]) -> int:
    """The fewest payload packets after which an early verdict is worth giving, the most that were measured if none are.

    `f1` is macro-F1 after so many packets, and `all`; `error` the calibration error after so many.
    """
    points = [int(point) for point in f1 if point != "all"]
    good = [
        point
        for point in points
        if f1[str(point)] >= f1["all"] - EARLY_F1_LOSS and error[str(point)] <= min(error.values()) + EARLY_ERROR_GAIN
    ]
    return min(good, default=max(points))


def _scores(folds: Sequence[Judged], n_label: int) -> dict[str, Any]:
    """F1 and accuracy of the model and of its rivals, means over the folds, with bootstrap intervals."""

    def mean_f1(said: Callable[[Judged], NDArray[np.int64]]) -> float:
        return float(np.mean([macro_f1(fold.outcome.truth, said(fold), n_label, MIN_FLOWS) for fold in folds]))

    model_draws, trees_draws = (_draws(folds, n_label, trees=trees) for trees in (False, True))
    return {
        "macro_f1": mean_f1(lambda fold: fold.predicted),
        "macro_f1_interval": interval(model_draws),
        "macro_f1_trees": mean_f1(lambda fold: fold.outcome.trees),
        "macro_f1_trees_interval": interval(trees_draws),
        "gain_interval": interval(model_draws - trees_draws),
        "macro_f1_forest": mean_f1(lambda fold: fold.outcome.forest),
        "macro_f1_int8": mean_f1(lambda fold: fold.outcome.int8) if has_int8(folds) else None,
        "macro_f1_majority": mean_f1(lambda fold: np.full_like(fold.outcome.truth, fold.outcome.majority)),
        "weighted_f1": float(np.mean([weighted_f1(fold.outcome.truth, fold.predicted, n_label) for fold in folds])),
        "macro_f1_capped": float(np.mean([_capped_f1(fold.outcome, fold.predicted, n_label) for fold in folds])),
        "macro_f1_capped_trees": float(
            np.mean([_capped_f1(fold.outcome, fold.outcome.trees, n_label) for fold in folds])
        ),
        "accuracy": float(np.mean([(fold.predicted == fold.outcome.truth).mean() for fold in folds])),
    }


def has_int8(folds: Sequence[Judged]) -> bool:
    """Whether the quantised models were measured too."""
    return all(len(fold.outcome.int8) == len(fold.outcome.truth) for fold in folds)


def calibrate(outcomes: Sequence[FoldOutcome], n_label: int, false_rejection: float = FALSE_REJECTION) -> Calibrated:
    """Temperature and threshold from flows that the models of these folds were not trained on."""
    logits = np.concatenate([outcome.logits for outcome in outcomes])
    truth = np.concatenate([outcome.truth for outcome in outcomes])
    weights = capped_weights([capture for outcome in outcomes for capture in outcome.captures], truth)
    temperature = fit_temperature(logits, truth, weights, n_label)
    confidence = softmax(logits, temperature)[:, :n_label].max(axis=1)
    return Calibrated(temperature, rejection_threshold(confidence, weights, false_rejection))


def reported_folds(judged: list[Judged], n_label: int, settings: EvaluationSettings) -> list[Judged]:
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


def _judge(outcome: FoldOutcome, others: Sequence[FoldOutcome], n_label: int) -> Judged:
    temperature = calibrate(others, n_label).temperature if others else 1.0
    shares = softmax(outcome.logits, temperature)[:, :n_label]
    unknown = softmax(outcome.unknown_logits, temperature)[:, :n_label]
    return Judged(outcome, temperature, shares, shares.argmax(axis=1), shares.max(axis=1), unknown.max(axis=1))


def _fold_figures(fold: Judged, n_label: int, settings: EvaluationSettings) -> FoldFigures:
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


def _draws(folds: Sequence[Judged], n_label: int, *, trees: bool) -> Floats:
    """Bootstrap draws of the mean over folds, the same captures for the model and for the trees."""
    said = [
        Predictions(o.truth, o.trees if trees else fold.predicted, o.captures)
        for fold, o in ((fold, fold.outcome) for fold in folds)
    ]
    return macro_f1_draws(said, n_label, MIN_FLOWS)


def _capped_f1(outcome: FoldOutcome, predicted: NDArray[np.int64], n_label: int) -> float:
    weights = capped_weights(outcome.captures, outcome.truth)
    return macro_f1(outcome.truth, predicted, n_label, MIN_FLOWS, weights)


def _pooled_calibration(folds: Sequence[Judged], *, capped: bool = False) -> float:
    confidence = np.concatenate([fold.confidence for fold in folds])
    correct = np.concatenate([fold.predicted == fold.outcome.truth for fold in folds])
    weights = [capped_weights(fold.outcome.captures, fold.outcome.truth) for fold in folds]
    return calibration_error(confidence, correct, np.concatenate(weights) if capped else None)


@dataclass(frozen=True)
class _Curve:
    """Macro-F1, the mean over folds, and the calibration error, all folds together, by what the model was shown."""

    macro_f1: dict[str, float]
    calibration_error: dict[str, float]


def _curve(folds: Sequence[Judged], n_label: int, shown: Callable[[FoldOutcome], Mapping[Any, Logits]]) -> _Curve:
    f1: dict[str, float] = {}
    error: dict[str, float] = {}
    for point in shown(folds[0].outcome):
        shares = [softmax(shown(fold.outcome)[point], fold.temperature)[:, :n_label] for fold in folds]
        truths = [fold.outcome.truth for fold in folds]
        f1[str(point)] = float(
            np.mean([macro_f1(t, p.argmax(1), n_label, MIN_FLOWS) for t, p in zip(truths, shares, strict=True)])
        )
        pooled, truth = np.concatenate(shares), np.concatenate(truths)
        error[str(point)] = calibration_error(pooled.max(1), pooled.argmax(1) == truth)
    return _Curve(f1, error)


def _classes(folds: Sequence[Judged], labels: Sequence[str]) -> list[ClassScore]:
    truth = np.concatenate([fold.outcome.truth for fold in folds])
    predicted = np.concatenate([fold.predicted for fold in folds])
    return class_scores(truth, predicted, labels, [capture for fold in folds for capture in fold.outcome.captures])


def _confusions(folds: Sequence[Judged], labels: Sequence[str]) -> list[Confusion]:
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
