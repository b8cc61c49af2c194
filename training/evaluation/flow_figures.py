"""From the outcomes of folds of flows to the figures that the card and the manifest state."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any

import numpy as np

from tapline.training.evaluation.calibration import Calibrated, capped_weights
from tapline.training.evaluation.confident_mistakes import CONFIDENT, confident_mistakes
from tapline.training.evaluation.evaluation_record import (
    Confusion,
    Evaluation,
    EvaluationSettings,
    FoldFigures,
    WithoutPorts,
)
from tapline.training.evaluation.flow_measured import (
    CONTEXT_TREES,
    FALSE_REJECTION,
    FOREST,
    FORGED_PORTS,
    INT8,
    MAJORITY,
    MIN_FLOWS,
    MIN_POOLED_FLOWS,
    OWN,
    PORTS,
    RANDOM_PORTS,
    TREES,
    WITHOUT,
    ZEEK,
    calibrated_elsewhere,
    classes_of,
    fitted,
    is_pooled,
    measured_flows,
    ports_off,
    reported_folds,
)
from tapline.training.evaluation.measured import Measured, compared
from tapline.training.evaluation.outcomes import FlowOutcome
from tapline.training.loop.scores import Interval, Ints, auroc, interval, macro_f1, weighted_f1

CONFUSIONS = 12

EARLY_F1_LOSS = 0.01
EARLY_ERROR_GAIN = 0.02
"""An early verdict may cost so much macro-F1, and be so much worse calibrated than at the best point."""


@dataclass(frozen=True)
class _Judged:
    """Outcomes calibrated, each fold by the others: what was measured of all reported folds and of every fold by its
    number; `final` is fitted on all."""

    final: Calibrated
    elsewhere: Mapping[int, Calibrated]
    everything: Measured
    each: Mapping[int, Measured]


def _judge(
    outcomes: Sequence[FlowOutcome], labels: Sequence[str], settings: EvaluationSettings, false_rejection: float
) -> _Judged:
    pooled, final = is_pooled(settings), fitted(outcomes, len(labels), false_rejection)
    elsewhere = calibrated_elsewhere(outcomes, len(labels), false_rejection)
    measure = partial(measured_flows, labels=labels, elsewhere=elsewhere)
    each = {
        o.fold: measure([o], threshold=elsewhere[o.fold].threshold if pooled else final.threshold) for o in outcomes
    }
    reported = reported_folds(outcomes, len(labels), settings)
    return _Judged(final, elsewhere, measure(reported, threshold=final.threshold, pooled=pooled), each)


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
    judged = _judge(outcomes, labels, settings, false_rejection)
    off = _judge(without, labels, settings, false_rejection) if (without := ports_off(outcomes)) else None
    reported = reported_folds(outcomes, len(labels), settings)
    counted = [outcome.fold for outcome in reported]
    everything, folds = judged.everything, [judged.each[fold] for fold in counted]
    figures = {o.fold: _fold_figures(o, judged, off, settings) for o in outcomes}
    measure = partial(
        measured_flows, reported, labels, judged.elsewhere, judged.final.threshold, pooled=is_pooled(settings)
    )
    packets = ((str(n), measure(logits=[o.prefixes[n] for o in reported])) for n in reported[0].prefixes)
    content = ((str(n), measure(logits=[o.contents[n] for o in reported])) for n in reported[0].contents)
    packets_f1, packets_error = _curve(chain(packets, [("all", everything)]))
    content_f1, content_error = _curve(content)
    return Evaluation(
        folds=list(figures.values()),
        **_scores(everything, folds),
        **_unknown_scores(everything, folds),
        unknown_auroc_trees=_auroc_of_trees(reported, pooled=is_pooled(settings)),
        macro_f1_by_packets=packets_f1,
        calibration_error_by_packets=packets_error,
        early_packets=early_packets(packets_f1, packets_error),
        macro_f1_by_content_bytes=content_f1,
        calibration_error_by_content_bytes=content_error,
        false_rejection=false_rejection,
        classes=everything.class_scores,
        confusions=[Confusion(m.label, m.called, m.count, m.captures) for m in everything.mistakes(CONFUSIONS)],
        temperature=judged.final.temperature,
        threshold=judged.final.threshold,
        without_ports=_without_ports(off.everything, [off.each[f] for f in counted], off.final) if off else None,
        models=compared(everything),
        **_beside_zeek(everything, reported),
        confident_mistakes=confident_mistakes(reported, judged.each, judged.elsewhere),
    )


def _beside_zeek(everything: Measured, outcomes: Sequence[FlowOutcome]) -> dict[str, Any]:
    """The models that read what is in each packet or port, beside Zeek, on the flows that Zeek had a chance to name."""
    n_label = len(everything.labels)
    said = np.concatenate([o.zeek for o in outcomes])
    if len(said) != len(everything.truth):
        return {}
    there = said <= n_label
    if not classes_of(everything.truth[there], n_label, MIN_POOLED_FLOWS):
        return {}
    rivals = {name: everything.rivals[name] for name in (WITHOUT, PORTS, CONTEXT_TREES) if name in everything.rivals}
    part = replace(
        everything,
        truth=everything.truth[there],
        probabilities=everything.probabilities[there],
        captures=[capture for capture, kept in zip(everything.captures, there.tolist(), strict=True) if kept],
        folds=None,
        min_support=MIN_POOLED_FLOWS,
        rivals={name: each[there] for name, each in {ZEEK: said, **rivals}.items()},
    )
    return {"beside_zeek": compared(part), "zeek_flows": int(there.sum())}


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


def _unknown_scores(everything: Measured, folds: Sequence[Measured]) -> dict[str, Any]:
    """How well labels that were never learned are told: means over folds, or where `everything` is one, over flows."""
    pooled = everything.folds is None
    strange = [len(fold.unknown_confidence) for fold in folds]
    return {
        "unknown_auroc": everything.unknown_auroc if pooled else _mean_of_those([f.unknown_auroc for f in folds]),
        "unknown_rejected": _mean_of_those([f.unknown_rejected for f in folds], strange if pooled else None),
        "known_rejected": _mean_of_those(
            [f.known_rejected for f in folds], [len(f.truth) for f in folds] if pooled else None
        ),
        "unknown_confident": _mean_of_those([_named_surely(fold) for fold in folds], strange),
    }


def _auroc_of_trees(outcomes: Sequence[FlowOutcome], *, pooled: bool) -> float | None:
    """That of the confidence of the trees, got as `unknown_auroc` is: the mean over folds, or `pooled` of all flows."""
    known = [o.trees_confidence for o in outcomes]
    strange = [o.trees_unknown_confidence for o in outcomes]
    if pooled:
        known, strange = [np.concatenate(known)], [np.concatenate(strange)]
    return _mean_of_those([_or_none(auroc(*pair)) for pair in zip(known, strange, strict=True)])


def _named_surely(measured: Measured) -> float | None:
    """The share of flows of labels never learned that is named with confidence, None without any."""
    strange = measured.unknown_confidence
    return float(((strange > CONFIDENT) & (strange >= measured.threshold)).mean()) if len(strange) else None


def _without_ports(everything: Measured, folds: Sequence[Measured], calibrated: Calibrated) -> WithoutPorts:
    counted = classes_of(everything.truth, len(everything.labels), everything.min_support) > 0
    return WithoutPorts(
        macro_f1=everything.macro_f1(everything.predicted) if counted else None,
        macro_f1_interval=interval(everything.draws(everything.predicted)) if counted else None,
        calibration_error=everything.calibration_error(),
        temperature=calibrated.temperature,
        threshold=calibrated.threshold,
        **_unknown_scores(everything, folds),
    )


def _fold_figures(
    outcome: FlowOutcome, judged: _Judged, off: _Judged | None, settings: EvaluationSettings
) -> FoldFigures:
    fold, measured = outcome.fold, judged.each[outcome.fold]

    def f1(predicted: Ints) -> float | None:
        return _or_none(macro_f1(outcome.truth, predicted, len(measured.labels), MIN_FLOWS))

    def score(name: str) -> float | None:
        return f1(measured.rivals[name]) if name in measured.rivals else None

    return FoldFigures(
        fold=fold,
        tuned=fold in settings.tuned,
        captures=len(set(outcome.captures)),
        flows=len(outcome.truth),
        classes=classes_of(outcome.truth, len(measured.labels)),
        macro_f1=f1(measured.predicted),
        macro_f1_trees=score(TREES),
        accuracy=measured.accuracy,
        accuracy_trees=float((outcome.trees == outcome.truth).mean()),
        calibration_error=measured.calibration_error(),
        unknown_auroc=measured.unknown_auroc,
        unknown_auroc_trees=_auroc_of_trees([outcome], pooled=False),
        macro_f1_ports=score(PORTS),
        macro_f1_context_trees=score(CONTEXT_TREES),
        macro_f1_random_ports=score(f"{OWN}, {RANDOM_PORTS}"),
        macro_f1_forged_ports=score(f"{OWN}, {FORGED_PORTS}"),
        unknown_flows=len(measured.unknown_confidence),
        unknown_rejected=measured.unknown_rejected,
        unknown_confident=_named_surely(measured),
        without_ports=_without_ports(off.each[fold], [off.each[fold]], off.elsewhere[fold]) if off else None,
        corpus=outcome.corpus,
        **_corpus_intervals(outcome, measured),
    )


def _corpus_intervals(outcome: FlowOutcome, measured: Measured) -> dict[str, Interval]:
    """Of a corpus that was left out: macro-F1's interval and that of its gain on the port table."""
    if not outcome.corpus or not classes_of(outcome.truth, len(measured.labels)):
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
