"""From the outcomes of cross-validation to the figures that the card and the manifest state.

They are of the labels alone: a background class takes its share of the confidence, and is never what is said.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from tapline.training.data.labelled_traces import LOOK_ALIKE, LabelledTrace, TraceCorpus
from tapline.training.evaluation.attribution import Faithfulness, faithfulness
from tapline.training.evaluation.calibration import Calibrated, fit_temperature, rejection_threshold, softmax
from tapline.training.evaluation.trace_cross_validation import PREFIXES, FoldOutcome
from tapline.training.loop.scores import (
    ClassScore,
    Floats,
    Interval,
    Ints,
    Predictions,
    auroc,
    calibration_error,
    class_scores,
    interval,
    macro_f1,
    macro_f1_draws,
)
from tapline.training.traces.background import BackgroundFigures, Confidences, background_figures

FALSE_REJECTION = 0.02
"""Share of known traces that the unknown rule may reject: two devices that look alike share their confidence in halves,
and neither is unknown."""

EARLY_CONFIDENCES = (0.7, 0.8, 0.9, 0.95, 0.98, 0.99)
EARLY_MIN_FLOWS = 8
"""With fewer flows confidence is too high, above all for hosts of a kind that was never learned."""
EARLY_ACCURACY = 0.98
"""Share of early verdicts that must be right."""

REFERENCE = "trees-header"


class Score(msgspec.Struct, frozen=True):
    """Macro-F1 with its 95 % bootstrap interval over captures."""

    macro_f1: float
    interval: Interval


class VariantFigures(msgspec.Struct, frozen=True):
    """One variant over the reported folds that it was measured on together: all classes, look-alike ones merged,
    accuracy, and its gain over the tree ensemble on header fields that learned from as many captures."""

    name: str
    folds: list[int]
    traces: int
    all_classes: Score
    merged: Score
    accuracy: float
    gain: float
    gain_interval: Interval


class PrefixFigures(msgspec.Struct, frozen=True):
    """After so many flows of a trace (0: all): macro-F1 and calibration error."""

    flows: int
    macro_f1: float
    calibration_error: float


class UnknownFigures(msgspec.Struct, frozen=True):
    """Labels that were not learned, `devices`: AUROC of the confidence, and the share that the threshold rejects."""

    devices: list[str]
    traces: int
    auroc: float
    rejected: float


class EarlyFigures(msgspec.Struct, frozen=True):
    """The early rule: from this confidence on, with so many flows; on held traces the share that gets an early verdict,
    and how often it is right; None where none gets one."""

    confidence: float
    min_flows: int
    share: float
    accuracy: float | None


class Confused(msgspec.Struct, frozen=True):
    """So many traces of `label` were called `called`."""

    label: str
    called: str
    traces: int


class TraceEvaluation(msgspec.Struct, frozen=True):
    """Everything measured on captures kept from training; the folds in `tuned` served to choose settings and are left
    out of every figure but temperature and thresholds. `unknown` and `faithfulness` are None where no trace shows
    them, `background` where none was learned."""

    main: str
    folds: int
    tuned: list[int]
    traces: int
    variants: list[VariantFigures]
    prefixes: list[PrefixFigures]
    classes: list[ClassScore]
    mistakes: list[Confused]
    calibration_error: float
    temperature: float
    threshold: float
    known_rejected: float
    unknown: UnknownFigures | None
    early: EarlyFigures
    faithfulness: Faithfulness | None
    background: BackgroundFigures | None = None


def variant_figures(
    corpus: TraceCorpus, name: str, outcomes: Mapping[int, FoldOutcome], reference: Mapping[int, FoldOutcome]
) -> VariantFigures:
    """The figures of one variant by fold; `reference` are outcomes of the trees, on the same folds at least."""
    rows, predicted = _together(corpus, list(outcomes.values()))
    _, rival = _together(corpus, [reference[fold] for fold in outcomes])
    merge = corpus.merged(LOOK_ALIKE)
    scores = [_score(corpus, rows, said, classes) for said, classes in ((predicted, None), (predicted, merge))]
    gains = _draws(corpus, rows, predicted) - _draws(corpus, rows, rival)
    return VariantFigures(
        name=name,
        folds=list(outcomes),
        traces=len(rows),
        all_classes=scores[0],
        merged=scores[1],
        accuracy=float((predicted == corpus.truth[rows]).mean()),
        gain=_macro(corpus, rows, predicted) - _macro(corpus, rows, rival),
        gain_interval=interval(gains),
    )


def summarise(
    corpus: TraceCorpus,
    outcomes: Mapping[str, Mapping[int, FoldOutcome]],
    main: str,
    folds: int,
    tuned: Sequence[int],
    references: Mapping[str, str],
    unknown: str | None = None,
    left_out: Sequence[str] = (),
    background: Sequence[LabelledTrace] = (),
) -> TraceEvaluation:
    """All figures of the outcomes of each variant, by fold.

    `references` names for each variant the trees that learned from as many captures; `unknown` the variant that left
    out the labels `left_out`; `background` what `main` learned of anything else.
    """
    reported = [fold for fold in range(folds) if fold not in tuned]
    by_variant = {name: {fold: found[fold] for fold in reported if fold in found} for name, found in outcomes.items()}
    final = _calibrate(corpus, list(outcomes[main].values()))
    held = list(by_variant[main].values())
    rows, predicted = _together(corpus, held)
    shares = _shares(corpus, _logits(held), final.temperature).max(axis=1)
    captures = [corpus.traces[row].capture for row in rows]
    figures = [
        variant_figures(corpus, name, found, by_variant[references.get(name, REFERENCE)])
        for name, found in by_variant.items()
        if name != unknown
    ]
    return TraceEvaluation(
        main=main,
        folds=folds,
        tuned=list(tuned),
        traces=len(rows),
        variants=figures,
        prefixes=_prefixes(corpus, held, final.temperature),
        classes=class_scores(corpus.truth[rows], predicted, corpus.labels, captures),
        mistakes=_mistakes(corpus, rows, predicted),
        calibration_error=calibration_error(shares, predicted == corpus.truth[rows]),
        temperature=final.temperature,
        threshold=final.threshold,
        known_rejected=float((shares < final.threshold).mean()),
        unknown=_unknown(corpus, list(by_variant[unknown].values()), left_out, final) if unknown else None,
        early=_early(corpus, held, final.temperature),
        faithfulness=_faithfulness(held),
        background=_background(corpus, by_variant[main], background, final) if background else None,
    )


def _calibrate(corpus: TraceCorpus, outcomes: Sequence[FoldOutcome]) -> Calibrated:
    """Temperature and threshold from every fold that was run, tuned ones too: no trace by a model that saw it."""
    logits, truth = _logits(outcomes), corpus.truth[_rows(outcomes)]
    ones = np.ones(len(truth))
    temperature = fit_temperature(logits, truth, ones, len(corpus.labels))
    confidence = _shares(corpus, logits, temperature).max(axis=1)
    return Calibrated(temperature, rejection_threshold(confidence, ones, FALSE_REJECTION))


def _rows(outcomes: Sequence[FoldOutcome]) -> Ints:
    return np.concatenate([outcome.rows for outcome in outcomes])


def _logits(outcomes: Sequence[FoldOutcome]) -> NDArray[np.float32]:
    return np.concatenate([outcome.logits for outcome in outcomes])


def _together(corpus: TraceCorpus, outcomes: Sequence[FoldOutcome]) -> tuple[Ints, Ints]:
    """Rows of the corpus and the label said of each, both int64 [m]."""
    return _rows(outcomes), np.asarray(_logits(outcomes)[:, : len(corpus.labels)].argmax(axis=1))


def _shares(corpus: TraceCorpus, logits: NDArray[np.float32], temperature: float) -> Floats:
    """Shares of the labels, float64 [n, labels], as `models.verdict.probabilities`: background takes its own first."""
    return softmax(logits, temperature)[:, : len(corpus.labels)]


def _macro(corpus: TraceCorpus, rows: Ints, predicted: Ints, classes: Ints | None = None) -> float:
    truth = corpus.truth[rows]
    if classes is not None:
        truth, predicted = classes[truth], classes[predicted]
    return macro_f1(truth, predicted, len(corpus.labels), 1)


def _draws(corpus: TraceCorpus, rows: Ints, predicted: Ints, classes: Ints | None = None) -> Floats:
    truth = corpus.truth[rows]
    if classes is not None:
        truth, predicted = classes[truth], classes[predicted]
    captures = [corpus.traces[row].capture for row in rows]
    return macro_f1_draws([Predictions(truth, predicted, captures)], len(corpus.labels), 1)


def _score(corpus: TraceCorpus, rows: Ints, predicted: Ints, classes: Ints | None) -> Score:
    return Score(_macro(corpus, rows, predicted, classes), interval(_draws(corpus, rows, predicted, classes)))


def _prefixes(corpus: TraceCorpus, held: Sequence[FoldOutcome], temperature: float) -> list[PrefixFigures]:
    rows = _rows(held)
    truth = corpus.truth[rows]
    figures = []
    for count in (*PREFIXES, 0):
        logits = np.concatenate([each.prefixes[count] if count else each.logits for each in held])
        shares = _shares(corpus, logits, temperature)
        said = shares.argmax(axis=1)
        error = calibration_error(shares.max(axis=1), said == truth)
        figures.append(PrefixFigures(count, _macro(corpus, rows, said), error))
    return figures


def _mistakes(corpus: TraceCorpus, rows: Ints, predicted: Ints) -> list[Confused]:
    wrong = np.flatnonzero(corpus.truth[rows] != predicted)
    pairs, counts = np.unique(
        np.stack((corpus.truth[rows][wrong], predicted[wrong]), axis=1), axis=0, return_counts=True
    )
    order = np.argsort(-counts, kind="stable")
    return [Confused(corpus.labels[pairs[i][0]], corpus.labels[pairs[i][1]], int(counts[i])) for i in order]


def _faithfulness(held: Sequence[FoldOutcome]) -> Faithfulness | None:
    top = np.concatenate([fold.top for fold in held])
    return faithfulness(top, np.concatenate([fold.random for fold in held])) if len(top) else None


def _unknown(
    corpus: TraceCorpus, outcomes: Sequence[FoldOutcome], left_out: Sequence[str], final: Calibrated
) -> UnknownFigures | None:
    rows = _rows(outcomes)
    strange = np.isin(corpus.truth[rows], [corpus.labels.index(label) for label in left_out])
    if strange.all() or not strange.any():
        return None
    confidence = _shares(corpus, _logits(outcomes), final.temperature).max(axis=1)
    return UnknownFigures(
        sorted(left_out),
        int(strange.sum()),
        auroc(confidence[~strange], confidence[strange]),
        float((confidence[strange] < final.threshold).mean()),
    )


def _background(
    corpus: TraceCorpus, held: Mapping[int, FoldOutcome], background: Sequence[LabelledTrace], final: Calibrated
) -> BackgroundFigures:
    folds = list(held.values())
    flows = np.array([len(corpus.traces[row].trace.flows) for row in _rows(folds)], np.int64)
    known = Confidences(_shares(corpus, _logits(folds), final.temperature).max(axis=1), flows)
    strange = {
        fold: Confidences(_shares(corpus, each.background, final.temperature).max(axis=1), each.background_flows)
        for fold, each in held.items()
    }
    return background_figures(background, strange, known, final.threshold)


def _early(corpus: TraceCorpus, held: Sequence[FoldOutcome], temperature: float) -> EarlyFigures:
    """The lowest confidence from which early verdicts are seen to be right often enough, else the highest tried."""
    rows = _rows(held)
    truth = corpus.truth[rows]
    flows = np.array([len(corpus.traces[row].trace.flows) for row in rows])
    found = None
    for confidence in EARLY_CONFIDENCES:
        said = np.full(len(rows), -1)
        for count in (each for each in PREFIXES if each >= EARLY_MIN_FLOWS):
            shares = _shares(corpus, np.concatenate([each.prefixes[count] for each in held]), temperature)
            sure = (said < 0) & (flows > count) & (shares.max(axis=1) >= confidence)
            said[sure] = shares.argmax(axis=1)[sure]
        early = said >= 0
        accuracy = float((said == truth)[early].mean()) if early.any() else None
        found = EarlyFigures(confidence, EARLY_MIN_FLOWS, float(early.mean()), accuracy)
        if accuracy is not None and accuracy >= EARLY_ACCURACY:
            break
    if found is None:
        raise AssertionError("there are confidences to try")
    return found
