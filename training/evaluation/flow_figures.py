"""From the outcomes of folds of flows to the figures that the card and the manifest state."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any

import numpy as np

from tapline.training.evaluation.calibration import Calibrated, calibrate, capped_weights, label_shares
from tapline.training.evaluation.evaluation_record import Confusion, Evaluation, EvaluationSettings, FoldFigures
from tapline.training.evaluation.measured import Measured
from tapline.training.evaluation.outcomes import FlowOutcome, Logits
from tapline.training.loop.config import TrainingError
from tapline.training.loop.scores import Floats, Interval, Ints, auroc, interval, macro_f1, weighted_f1

MIN_FLOWS = 5
"""Macro-F1 counts the classes that a fold holds at least so many flows of."""

MIN_POOLED_FLOWS = 10
"""Where corpora were left out, macro-F1 of all flows together counts the classes with at least so many."""

CONFIDENT = 0.9
"""A mistake with more confidence than this is a confident one."""

FALSE_REJECTION = 0.05
"""Share of known flows that the unknown rule may reject."""

CONFUSIONS = 12

EARLY_F1_LOSS = 0.01
EARLY_ERROR_GAIN = 0.02
"""An early verdict may cost so much macro-F1, and be so much worse calibrated than at the best point."""

TREES, FOREST, PORTS, MAJORITY, INT8 = (
    "trees on lengths and bytes",
    "forest on flow statistics",
    "table of server ports",
    "always the most frequent",
    "the same model, int8",
)


def calibrated_elsewhere(
    outcomes: Sequence[FlowOutcome], n_label: int, false_rejection: float = FALSE_REJECTION
) -> dict[int, Calibrated]:
    """For each fold what is fitted on the other ones: temperature 1 and no threshold where there are none."""
    others = {outcome.fold: [other for other in outcomes if other is not outcome] for outcome in outcomes}
    return {
        fold: _calibrate(rest, n_label, false_rejection) if rest else Calibrated(1.0, 0.0)
        for fold, rest in others.items()
    }


def _calibrate(outcomes: Sequence[FlowOutcome], n_label: int, false_rejection: float = FALSE_REJECTION) -> Calibrated:
    """Temperature and threshold from flows that the models of these folds were not trained on."""
    truth = np.concatenate([outcome.truth for outcome in outcomes])
    weights = capped_weights([capture for outcome in outcomes for capture in outcome.captures], truth)
    return calibrate(np.concatenate([o.logits for o in outcomes]), truth, weights, n_label, false_rejection)


def measured_flows(
    outcomes: Sequence[FlowOutcome],
    labels: Sequence[str],
    elsewhere: Mapping[int, Calibrated],
    threshold: float,
    logits: Sequence[Logits] | None = None,
    *,
    pooled: bool = False,
) -> Measured:
    """What was said of the flows of several folds, each with its temperature; `logits` in place of those of whole flows
    for each fold. `pooled`: macro-F1 is of all flows together, not the mean over folds."""

    def shares(outcome: FlowOutcome, logits: Logits) -> Floats:
        return label_shares(logits, elsewhere[outcome.fold].temperature, len(labels))

    rivals = {
        TREES: [o.trees for o in outcomes],
        FOREST: [o.forest for o in outcomes],
        MAJORITY: [np.full_like(o.truth, o.majority) for o in outcomes],
    }
    for name, said in ((PORTS, [o.ports for o in outcomes]), (INT8, [o.int8 for o in outcomes])):
        if all(len(each) == len(o.truth) for each, o in zip(said, outcomes, strict=True)):
            rivals[name] = said
    return Measured(
        title="Flow classifier",
        unit="flow",
        labels=labels,
        truth=np.concatenate([o.truth for o in outcomes]),
        probabilities=np.concatenate(
            [shares(*pair) for pair in zip(outcomes, logits or [o.logits for o in outcomes], strict=True)]
        ),
        captures=[capture for o in outcomes for capture in o.captures],
        folds=None if pooled else np.concatenate([np.full(len(o.truth), o.fold) for o in outcomes]),
        min_support=MIN_POOLED_FLOWS if pooled else MIN_FLOWS,
        threshold=threshold,
        unknown_confidence=np.concatenate([shares(o, o.unknown_logits).max(axis=1) for o in outcomes]),
        rivals={name: np.concatenate(said) for name, said in rivals.items()},
    )


def reported_folds(outcomes: Sequence[FlowOutcome], n_label: int, settings: EvaluationSettings) -> list[FlowOutcome]:
    """The folds that make the headline: not tuned on, and with a class to measure; corpora are measured together.

    Raises:
        TrainingError: there is none.
    """
    pooled = is_pooled(settings)
    counted = [o for o in outcomes if o.fold not in settings.tuned and (pooled or _classes(o.truth, n_label))]
    if not counted or (pooled and not _classes(np.concatenate([o.truth for o in counted]), n_label, MIN_POOLED_FLOWS)):
        raise TrainingError(
            f"no fold to report holds a class with {MIN_FLOWS} flows: take fewer folds (--folds) or label more captures"
        )
    return counted


def is_pooled(settings: EvaluationSettings) -> bool:
    """Whether figures are of all flows together: corpora differ too much in what they hold for a mean over them."""
    return settings.by == "corpus"


def _classes(truth: Ints, n_label: int, least: int = MIN_FLOWS) -> int:
    """How many classes are counted."""
    return int((np.bincount(truth, minlength=n_label) >= least).sum())


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
    elsewhere, reported = (
        calibrated_elsewhere(outcomes, len(labels), false_rejection),
        reported_folds(outcomes, len(labels), settings),
    )
    final, pooled = _calibrate(outcomes, len(labels), false_rejection), is_pooled(settings)
    of_fold = partial(measured_flows, labels=labels, elsewhere=elsewhere)
    measure = partial(of_fold, threshold=final.threshold, pooled=pooled)
    everything = measure(reported)
    each = {
        o.fold: of_fold([o], threshold=elsewhere[o.fold].threshold if pooled else final.threshold) for o in outcomes
    }
    folds = {outcome.fold: _fold_figures(outcome, each[outcome.fold], settings) for outcome in outcomes}
    counted = [outcome.fold for outcome in reported]
    packets = ((str(n), measure(reported, logits=[o.prefixes[n] for o in reported])) for n in reported[0].prefixes)
    content = ((str(n), measure(reported, logits=[o.contents[n] for o in reported])) for n in reported[0].contents)
    packets_f1, packets_error = _curve(chain(packets, [("all", everything)]))
    content_f1, content_error = _curve(content)
    return Evaluation(
        folds=list(folds.values()),
        **_scores(everything, [each[fold] for fold in counted]),
        **_unknown_scores(everything, [each[fold] for fold in counted], [folds[fold] for fold in counted]),
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


def _curve(shown: Iterable[tuple[str, Measured]]) -> tuple[dict[str, float], dict[str, float]]:
    """Macro-F1, the mean over folds, and the calibration error, all folds together, by what the model was shown."""
    f1: dict[str, float] = {}
    error: dict[str, float] = {}
    for point, cut in shown:
        f1[point], error[point] = cut.macro_f1(cut.predicted), cut.calibration_error()
    return f1, error


def early_packets(f1: Mapping[str, float], error: Mapping[str, float]) -> int:
    """The fewest payload packets after which an early verdict is worth giving, the most that were measured if none are.

    `f1` is macro-F1 after so many packets, and `all`; `error` the calibration error after so many.
    """
    points = [point for point in f1 if point != "all"]
    most_error = min(error[point] for point in points) + EARLY_ERROR_GAIN
    good = [int(point) for point in points if f1[point] >= f1["all"] - EARLY_F1_LOSS and error[point] <= most_error]
    return min(good, default=max(map(int, points)))


def _scores(everything: Measured, folds: Sequence[Measured]) -> dict[str, Any]:
    """F1, accuracy and calibration of the model and of its rivals, with bootstrap intervals: means over the folds, or
    of all flows together where `everything` is one."""
    parts = [everything] if everything.folds is None else folds
    said, trees, n_label = everything.predicted, everything.rivals[TREES], len(everything.labels)
    model_draws, trees_draws = everything.draws(said), everything.draws(trees)
    weights = [capped_weights(part.captures, part.truth) for part in parts]
    ports = everything.rivals.get(PORTS)

    def capped_f1(predicted: Callable[[Measured], Ints]) -> float:
        each = zip(parts, weights, strict=True)
        least = everything.min_support
        return float(np.mean([macro_f1(part.truth, predicted(part), n_label, least, w) for part, w in each]))

    return {
        "macro_f1": everything.macro_f1(said),
        "macro_f1_interval": interval(model_draws),
        "macro_f1_trees": everything.macro_f1(trees),
        "macro_f1_trees_interval": interval(trees_draws),
        "gain_interval": interval(model_draws - trees_draws),
        "macro_f1_forest": everything.macro_f1(everything.rivals[FOREST]),
        "macro_f1_int8": everything.macro_f1(everything.rivals[INT8]) if INT8 in everything.rivals else None,
        "macro_f1_ports": None if ports is None else everything.macro_f1(ports),
        "gain_on_ports_interval": None if ports is None else interval(model_draws - everything.draws(ports)),
        "macro_f1_majority": everything.macro_f1(everything.rivals[MAJORITY]),
        "weighted_f1": float(np.mean([weighted_f1(part.truth, part.predicted, n_label) for part in parts])),
        "macro_f1_capped": capped_f1(lambda fold: fold.predicted),
        "macro_f1_capped_trees": capped_f1(lambda fold: fold.rivals[TREES]),
        "accuracy": float(np.mean([part.accuracy for part in parts])),
        "calibration_error": everything.calibration_error(),
        "calibration_error_capped": everything.calibration_error(np.concatenate(weights)),
    }


def _unknown_scores(everything: Measured, folds: Sequence[Measured], figures: Sequence[FoldFigures]) -> dict[str, Any]:
    """How well labels that were never learned are told: means over folds, or where `everything` is one, over flows."""
    pooled = everything.folds is None
    strange = everything.unknown_confidence
    return {
        "unknown_auroc": everything.unknown_auroc if pooled else _mean_of_those([f.unknown_auroc for f in figures]),
        "unknown_auroc_trees": _mean_of_those([f.unknown_auroc_trees for f in figures]),
        "unknown_rejected": _mean_of_those(
            [f.unknown_rejected for f in folds], [len(f.unknown_confidence) for f in folds] if pooled else None
        ),
        "known_rejected": _mean_of_those(
            [f.known_rejected for f in folds], [len(f.truth) for f in folds] if pooled else None
        ),
        "unknown_confident": float((strange > CONFIDENT).mean()) if len(strange) else None,
    }


def _fold_figures(outcome: FlowOutcome, measured: Measured, settings: EvaluationSettings) -> FoldFigures:
    return FoldFigures(
        fold=outcome.fold,
        tuned=outcome.fold in settings.tuned,
        captures=len(set(outcome.captures)),
        flows=len(outcome.truth),
        classes=_classes(outcome.truth, len(measured.labels)),
        macro_f1=_or_none(macro_f1(outcome.truth, measured.predicted, len(measured.labels), MIN_FLOWS)),
        macro_f1_trees=_or_none(macro_f1(outcome.truth, outcome.trees, len(measured.labels), MIN_FLOWS)),
        accuracy=measured.accuracy,
        accuracy_trees=float((outcome.trees == outcome.truth).mean()),
        calibration_error=measured.calibration_error(),
        unknown_auroc=measured.unknown_auroc,
        unknown_auroc_trees=_or_none(auroc(outcome.trees_confidence, outcome.trees_unknown_confidence)),
        macro_f1_ports=_or_none(measured.macro_f1(measured.rivals[PORTS])) if PORTS in measured.rivals else None,
        corpus=outcome.corpus,
        **_corpus_intervals(outcome, measured),
    )


def _corpus_intervals(outcome: FlowOutcome, measured: Measured) -> dict[str, Interval]:
    """Of a corpus that was left out: macro-F1's interval and that of its gain on the port table."""
    if not outcome.corpus or not _classes(outcome.truth, len(measured.labels)):
        return {}
    draws = measured.draws(measured.predicted)
    gain = draws - measured.draws(measured.rivals[PORTS])
    return {"macro_f1_interval": interval(draws), "gain_on_ports_interval": interval(gain)}


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value


def _mean_of_those(values: Sequence[float | None], weights: Sequence[int] | None = None) -> float | None:
    """The mean of the values that are there, each weighing as much or as `weights` say; None without any."""
    there = [(value, weights[place] if weights else 1) for place, value in enumerate(values) if value is not None]
    total = sum(weight for _, weight in there)
    return sum(value * weight for value, weight in there) / total if total else None
