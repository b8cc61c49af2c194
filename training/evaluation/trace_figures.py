"""From the outcomes of folds of traces to the figures that the card and the manifest state.

They are of the labels alone: a background class takes its share of the confidence, and is never what is said.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from tapline.training.data.labelled_traces import LOOK_ALIKE, LabelledTrace, TraceCorpus
from tapline.training.data.store import id_of
from tapline.training.evaluation.attribution import faithfulness
from tapline.training.evaluation.calibration import Calibrated, calibrate, label_shares
from tapline.training.evaluation.evaluation_record import (
    BackgroundFigures,
    BackgroundShares,
    Confused,
    EarlyFigures,
    PrefixFigures,
    Score,
    TraceEvaluation,
    UnknownFigures,
    VariantFigures,
)
from tapline.training.evaluation.measured import Measured
from tapline.training.evaluation.outcomes import TraceOutcome
from tapline.training.loop.scores import Ints, auroc, interval
from tapline.training.traces.background import halve_background

FALSE_REJECTION = 0.02
"""Share of known traces that the unknown rule may reject: two devices that look alike share their confidence in halves,
and neither is unknown."""

PREFIXES = (1, 2, 4, 8, 16, 32)
"""Flows of a trace after which an early verdict is measured."""
EARLY_CONFIDENCES = (0.7, 0.8, 0.9, 0.95, 0.98, 0.99)
EARLY_MIN_FLOWS = 8
"""With fewer flows confidence is too high, above all for hosts of a kind that was never learned."""
EARLY_ACCURACY = 0.98
"""Share of early verdicts that must be right."""

REFERENCE = "trees-header"

LONG_FLOWS = 8
"""Flows from which a trace of background is counted as long: of shorter ones no model can say much."""
CONFIDENT = 0.9
"""A label with a higher confidence than this would be believed."""


def id_of_trace(each: LabelledTrace) -> int:
    """The number that names a trace."""
    return id_of(each.capture, f"{each.trace.subject} {each.trace.start_us}")


def measured_traces(
    corpus: TraceCorpus, outcomes: Sequence[TraceOutcome], final: Calibrated, flows: int = 0
) -> Measured:
    """What was said of the traces of several folds together, after so many flows of each (0: all)."""
    rows = np.concatenate([outcome.rows for outcome in outcomes])
    logits = np.concatenate([outcome.prefixes[flows] if flows else outcome.logits for outcome in outcomes])
    return Measured(
        title="Labels of traces",
        unit="trace",
        labels=corpus.labels,
        truth=corpus.truth[rows],
        probabilities=label_shares(logits, final.temperature, len(corpus.labels)),
        captures=[corpus.traces[row].capture for row in rows],
        threshold=final.threshold,
        ids=np.array([id_of_trace(corpus.traces[row]) for row in rows], np.uint64),
    )


def summarise(
    corpus: TraceCorpus,
    outcomes: Mapping[str, Mapping[int, TraceOutcome]],
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
    final = _calibrate_traces(corpus, list(outcomes[main].values()))
    held = list(by_variant[main].values())
    everything = measured_traces(corpus, held, final)
    strange = measured_traces(corpus, list(by_variant[unknown].values()), final) if unknown else None
    mistakes = sorted(everything.mistakes(), key=lambda mistake: (-mistake.count, mistake.label, mistake.called))
    return TraceEvaluation(
        main=main,
        folds=folds,
        tuned=list(tuned),
        traces=len(everything.truth),
        variants=[
            _variant(corpus, name, found, by_variant[references.get(name, REFERENCE)], final)
            for name, found in by_variant.items()
            if name != unknown
        ],
        prefixes=[_prefix(flows, measured_traces(corpus, held, final, flows)) for flows in (*PREFIXES, 0)],
        classes=everything.class_scores,
        mistakes=[Confused(mistake.label, mistake.called, mistake.count) for mistake in mistakes],
        calibration_error=everything.calibration_error(),
        temperature=final.temperature,
        threshold=final.threshold,
        known_rejected=everything.known_rejected,
        unknown=_unknown(strange, left_out) if strange else None,
        early=_early(corpus, held, final),
        faithfulness=faithfulness(np.concatenate([f.top for f in held]), np.concatenate([f.random for f in held])),
        background=_background(corpus, by_variant[main], background, final) if background else None,
    )


def _calibrate_traces(corpus: TraceCorpus, outcomes: Sequence[TraceOutcome]) -> Calibrated:
    """Temperature and threshold from every fold that was run, tuned ones too: no trace by a model that saw it."""
    truth = corpus.truth[np.concatenate([outcome.rows for outcome in outcomes])]
    logits = np.concatenate([outcome.logits for outcome in outcomes])
    return calibrate(logits, truth, np.ones(len(truth)), len(corpus.labels), FALSE_REJECTION)


def _variant(
    corpus: TraceCorpus,
    name: str,
    outcomes: Mapping[int, TraceOutcome],
    reference: Mapping[int, TraceOutcome],
    final: Calibrated,
) -> VariantFigures:
    """The figures of one variant by fold; `reference` are outcomes of the trees, on the same folds at least."""
    own = measured_traces(corpus, list(outcomes.values()), final)
    rival = measured_traces(corpus, [reference[fold] for fold in outcomes], final).predicted
    merge = corpus.merged(LOOK_ALIKE)
    merged, merged_said = replace(own, truth=merge[own.truth]), merge[own.predicted]
    score, draws = own.macro_f1(own.predicted), own.draws(own.predicted)
    return VariantFigures(
        name=name,
        folds=list(outcomes),
        traces=len(own.truth),
        all_classes=Score(score, interval(draws)),
        merged=Score(merged.macro_f1(merged_said), interval(merged.draws(merged_said))),
        accuracy=own.accuracy,
        gain=score - own.macro_f1(rival),
        gain_interval=interval(draws - own.draws(rival)),
    )


def _prefix(flows: int, cut: Measured) -> PrefixFigures:
    confidence = float(cut.confidence.mean())
    return PrefixFigures(flows, cut.macro_f1(cut.predicted), cut.calibration_error(), confidence)


def _unknown(measured: Measured, left_out: Sequence[str]) -> UnknownFigures | None:
    strange = np.isin(measured.truth, [measured.labels.index(label) for label in left_out])
    if strange.all() or not strange.any():
        return None
    known, unknown = measured.confidence[~strange], measured.confidence[strange]
    rejected = float((unknown < measured.threshold).mean())
    return UnknownFigures(sorted(left_out), len(unknown), auroc(known, unknown), rejected)


def _flows(corpus: TraceCorpus, outcomes: Sequence[TraceOutcome]) -> Ints:
    """How many flows each trace has, int64 [m]."""
    return np.array([len(corpus.traces[row].trace.flows) for each in outcomes for row in each.rows], np.int64)


def _early(corpus: TraceCorpus, held: Sequence[TraceOutcome], final: Calibrated) -> EarlyFigures:
    """The lowest confidence from which early verdicts are seen to be right often enough, else the highest tried."""
    flows = _flows(corpus, held)
    cuts = {seen: measured_traces(corpus, held, final, seen) for seen in PREFIXES if seen >= EARLY_MIN_FLOWS}
    truth = cuts[EARLY_MIN_FLOWS].truth
    for confidence in EARLY_CONFIDENCES:
        said = np.full(len(flows), -1)
        for seen, cut in cuts.items():
            sure = (said < 0) & (flows > seen) & (cut.confidence >= confidence)
            said[sure] = cut.predicted[sure]
        early = said >= 0
        accuracy = float((said == truth)[early].mean()) if early.any() else None
        if accuracy is not None and accuracy >= EARLY_ACCURACY:
            break
    return EarlyFigures(confidence, EARLY_MIN_FLOWS, float(early.mean()), accuracy)


def _background(
    corpus: TraceCorpus, held: Mapping[int, TraceOutcome], background: Sequence[LabelledTrace], final: Calibrated
) -> BackgroundFigures:
    """Of each fold the confidence in the half of the background that it did not learn, beside that in known traces."""
    folds = list(held.values())
    known, known_flows = measured_traces(corpus, folds, final).confidence, _flows(corpus, folds)
    shares = [label_shares(each.background, final.temperature, len(corpus.labels)) for each in folds]
    strange, strange_flows = np.concatenate(shares).max(axis=1), np.concatenate([f.background_flows for f in folds])
    measured = [trace for fold in held for trace in halve_background(background, fold).measured]

    def shares_from(flows: int) -> BackgroundShares | None:
        best, rest = strange[strange_flows >= flows], known[known_flows >= flows]
        traces = [each for each, n in zip(measured, strange_flows, strict=True) if n >= flows]
        if not traces or not len(rest):
            return None
        return BackgroundShares(
            len({(each.capture, each.trace.subject, each.trace.start_us) for each in traces}),
            len(traces),
            float((best < final.threshold).mean()),
            float((best > CONFIDENT).mean()),
            auroc(rest, best),
        )

    of_all = shares_from(0)
    if of_all is None:
        raise AssertionError("a fold measures one half of the background, and known traces")
    return BackgroundFigures(len({trace.capture for trace in measured}), of_all, shares_from(LONG_FLOWS))
