"""From the outcomes of folds of flows to the figures that the card and the manifest state."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tapline.training.evaluation.calibration import Calibrated, calibrate, capped_weights, label_shares
from tapline.training.evaluation.evaluation_record import Confusion, Evaluation, EvaluationSettings, FoldFigures
from tapline.training.evaluation.measured import Measured
from tapline.training.evaluation.outcomes import FlowOutcome, Logits
from tapline.training.loop.config import TrainingError
from tapline.training.loop.scores import Floats, Ints, auroc, interval, macro_f1, weighted_f1

MIN_FLOWS = 5
"""Macro-F1 counts the classes that a fold holds at least so many flows of."""

FALSE_REJECTION = 0.05
"""Share of known flows that the unknown rule may reject."""

CONFUSIONS = 12

EARLY_F1_LOSS = 0.01
EARLY_ERROR_GAIN = 0.02
"""An early verdict may cost so much macro-F1, and be so much worse calibrated than at the best point."""

TREES, FOREST, MAJORITY, INT8 = (
    "trees on lengths and bytes",
    "forest on flow statistics",
    "always the most frequent",
    "the same model, int8",
)


@dataclass(frozen=True)
class Judged:
    """What was measured of a fold of flows, calibrated with the temperature of the other folds."""

    outcome: FlowOutcome
    temperature: float
    measured: Measured


def judge_all(outcomes: Sequence[FlowOutcome], labels: Sequence[str]) -> list[Judged]:
    """Every fold, calibrated with the temperature of the others."""
    return [_judge(outcome, [o for o in outcomes if o is not outcome], labels) for outcome in outcomes]


def _judge(outcome: FlowOutcome, others: Sequence[FlowOutcome], labels: Sequence[str]) -> Judged:
    n_label, truth = len(labels), outcome.truth
    temperature = _calibrate_flows(others, n_label).temperature if others else 1.0
    rivals = {TREES: outcome.trees, FOREST: outcome.forest, MAJORITY: np.full_like(truth, outcome.majority)}
    measured = Measured(
        title="Flow classifier",
        unit="flow",
        labels=labels,
        truth=truth,
        probabilities=label_shares(outcome.logits, temperature, n_label),
        captures=outcome.captures,
        folds=np.full(len(truth), outcome.fold),
        min_support=MIN_FLOWS,
        unknown_confidence=label_shares(outcome.unknown_logits, temperature, n_label).max(axis=1),
        rivals=rivals | ({INT8: outcome.int8} if len(outcome.int8) == len(truth) else {}),
    )
    return Judged(outcome, temperature, measured)


def _calibrate_flows(
    outcomes: Sequence[FlowOutcome], n_label: int, false_rejection: float = FALSE_REJECTION
) -> Calibrated:
    """Temperature and threshold from flows that the models of these folds were not trained on."""
    truth = np.concatenate([outcome.truth for outcome in outcomes])
    weights = capped_weights([capture for outcome in outcomes for capture in outcome.captures], truth)
    return calibrate(np.concatenate([o.logits for o in outcomes]), truth, weights, n_label, false_rejection)


def reported_folds(judged: Sequence[Judged], settings: EvaluationSettings) -> list[Judged]:
    """The folds that make the headline: not tuned on, and with a class to measure."""
    counted = [fold for fold in judged if fold.outcome.fold not in settings.tuned and _counted(fold.measured).any()]
    if not counted:
        raise TrainingError(
            f"no fold to report holds a class with {MIN_FLOWS} flows: take fewer folds (--folds) or label more captures"
        )
    return counted


def _counted(measured: Measured) -> NDArray[np.bool_]:
    return np.asarray(np.bincount(measured.truth, minlength=len(measured.labels)) >= MIN_FLOWS)


def together(parts: Sequence[Measured]) -> Measured:
    """What was measured of several folds, beside the rivals that all of them have."""
    rivals = [name for name in parts[0].rivals if all(name in part.rivals for part in parts)]
    return replace(
        parts[0],
        truth=np.concatenate([part.truth for part in parts]),
        probabilities=np.concatenate([part.probabilities for part in parts]),
        captures=[capture for part in parts for capture in part.captures],
        folds=np.concatenate([part.folds for part in parts if part.folds is not None]),
        unknown_confidence=np.concatenate([part.unknown_confidence for part in parts]),
        rivals={name: np.concatenate([part.rivals[name] for part in parts]) for name in rivals},
    )


def evaluate(
    outcomes: Sequence[FlowOutcome],
    labels: Sequence[str],
    settings: EvaluationSettings,
    false_rejection: float = FALSE_REJECTION,
) -> Evaluation:
    """All figures of a cross-validation of flows; the unknown rule rejects the share `false_rejection` of known ones.

    Raises:
        TrainingError: no fold beside those in `tuned` holds a class with `MIN_FLOWS` flows.
    """
    judged = judge_all(outcomes, labels)
    final = _calibrate_flows(outcomes, len(labels), false_rejection)
    counted = reported_folds(judged, settings)
    folds = [_fold_figures(fold, settings) for fold in judged]
    numbers = {fold.outcome.fold for fold in counted}
    reported = [fold for fold in folds if fold.fold in numbers]
    everything = together([fold.measured for fold in counted])
    packets_f1, packets_error = _curve(counted, lambda outcome: {**outcome.prefixes, "all": outcome.logits})
    content_f1, content_error = _curve(counted, lambda outcome: outcome.contents)
    return Evaluation(
        folds=folds,
        **_scores(everything, [fold.measured for fold in counted]),
        unknown_auroc=_mean_of_those([fold.unknown_auroc for fold in reported]),
        unknown_auroc_trees=_mean_of_those([fold.unknown_auroc_trees for fold in reported]),
        unknown_rejected=_mean_of_those(
            [_share_below(fold.measured.unknown_confidence, final.threshold) for fold in counted]
        ),
        known_rejected=float(np.mean([_share_below(fold.measured.confidence, final.threshold) for fold in counted])),
        macro_f1_by_packets=packets_f1,
        calibration_error_by_packets=packets_error,
        early_packets=early_packets(packets_f1, packets_error),
        macro_f1_by_content_bytes=content_f1,
        calibration_error_by_content_bytes=content_error,
        false_rejection=false_rejection,
        classes=everything.class_scores,
        confusions=[Confusion(m.label, m.called, m.count, m.captures) for m in everything.mistakes(CONFUSIONS)],
        temperature=final.temperature,
        threshold=final.threshold,
    )


def early_packets(f1: Mapping[str, float], error: Mapping[str, float]) -> int:
    """The fewest payload packets after which an early verdict is worth giving, the most that were measured if none are.

    `f1` is macro-F1 after so many packets, and `all`; `error` the calibration error after so many.
    """
    points = [point for point in f1 if point != "all"]
    most_error = min(error[point] for point in points) + EARLY_ERROR_GAIN
    good = [int(point) for point in points if f1[point] >= f1["all"] - EARLY_F1_LOSS and error[point] <= most_error]
    return min(good, default=max(map(int, points)))


def _scores(everything: Measured, folds: Sequence[Measured]) -> dict[str, Any]:
    """F1, accuracy and calibration of the model and of its rivals over the folds, with bootstrap intervals."""
    said, trees, n_label = everything.predicted, everything.rivals[TREES], len(everything.labels)
    model_draws, trees_draws = everything.draws(said), everything.draws(trees)
    weights = [capped_weights(fold.captures, fold.truth) for fold in folds]

    def capped_f1(predicted: Callable[[Measured], Ints]) -> float:
        each = zip(folds, weights, strict=True)
        return float(np.mean([macro_f1(fold.truth, predicted(fold), n_label, MIN_FLOWS, w) for fold, w in each]))

    return {
        "macro_f1": everything.macro_f1(said),
        "macro_f1_interval": interval(model_draws),
        "macro_f1_trees": everything.macro_f1(trees),
        "macro_f1_trees_interval": interval(trees_draws),
        "gain_interval": interval(model_draws - trees_draws),
        "macro_f1_forest": everything.macro_f1(everything.rivals[FOREST]),
        "macro_f1_int8": everything.macro_f1(everything.rivals[INT8]) if INT8 in everything.rivals else None,
        "macro_f1_majority": everything.macro_f1(everything.rivals[MAJORITY]),
        "weighted_f1": float(np.mean([weighted_f1(fold.truth, fold.predicted, n_label) for fold in folds])),
        "macro_f1_capped": capped_f1(lambda fold: fold.predicted),
        "macro_f1_capped_trees": capped_f1(lambda fold: fold.rivals[TREES]),
        "accuracy": float(np.mean([fold.accuracy for fold in folds])),
        "calibration_error": everything.calibration_error(),
        "calibration_error_capped": everything.calibration_error(np.concatenate(weights)),
    }


def _fold_figures(fold: Judged, settings: EvaluationSettings) -> FoldFigures:
    outcome, measured = fold.outcome, fold.measured
    return FoldFigures(
        fold=outcome.fold,
        tuned=outcome.fold in settings.tuned,
        captures=len(set(outcome.captures)),
        flows=len(outcome.truth),
        classes=int(_counted(measured).sum()),
        macro_f1=_or_none(macro_f1(outcome.truth, measured.predicted, len(measured.labels), MIN_FLOWS)),
        macro_f1_trees=_or_none(macro_f1(outcome.truth, outcome.trees, len(measured.labels), MIN_FLOWS)),
        accuracy=measured.accuracy,
        accuracy_trees=float((outcome.trees == outcome.truth).mean()),
        calibration_error=measured.calibration_error(),
        unknown_auroc=_or_none(auroc(measured.confidence, measured.unknown_confidence)),
        unknown_auroc_trees=_or_none(auroc(outcome.trees_confidence, outcome.trees_unknown_confidence)),
    )


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value


def _mean_of_those(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return float(np.mean(there)) if there else None


def _share_below(confidence: Floats, threshold: float) -> float | None:
    return float((confidence < threshold).mean()) if len(confidence) else None


def _curve(
    folds: Sequence[Judged], shown: Callable[[FlowOutcome], Mapping[Any, Logits]]
) -> tuple[dict[str, float], dict[str, float]]:
    """Macro-F1, the mean over folds, and the calibration error, all folds together, by what the model was shown."""
    f1: dict[str, float] = {}
    error: dict[str, float] = {}
    for point in shown(folds[0].outcome):
        cut = together([_shown(fold, shown(fold.outcome)[point]) for fold in folds])
        f1[str(point)], error[str(point)] = cut.macro_f1(cut.predicted), cut.calibration_error()
    return f1, error


def _shown(fold: Judged, logits: Logits) -> Measured:
    return replace(fold.measured, probabilities=label_shares(logits, fold.temperature, len(fold.measured.labels)))
