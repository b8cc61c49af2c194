"""The mistakes that a model was sure of, by pairs of labels: of known flows, and of flows of labels never learned."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from tapline.training.evaluation.calibration import Calibrated, label_shares
from tapline.training.evaluation.measured import ConfidentMistake, Measured
from tapline.training.evaluation.outcomes import FlowOutcome

CONFIDENT = 0.9
"""A mistake with more confidence than this is a confident one."""

MOST_CONFIDENT_MISTAKES = 5
"""Pairs of labels with more of them than so many are told."""

_Pair = tuple[str, str, bool]


def confident_mistakes(
    outcomes: Sequence[FlowOutcome], measured: Mapping[int, Measured], elsewhere: Mapping[int, Calibrated]
) -> list[ConfidentMistake]:
    """The pairs of true and called label with more than `MOST_CONFIDENT_MISTAKES` flows that were named with confidence
    above `CONFIDENT`, and not as *unknown*; the most frequent first. What was `measured` of a fold, and what it was
    calibrated with, by its number."""
    found: defaultdict[_Pair, list[str]] = defaultdict(list)
    for outcome in outcomes:
        of_fold = measured[outcome.fold]
        for pair, capture in (*_known(of_fold), *_strange(outcome, of_fold, elsewhere[outcome.fold])):
            found[pair].append(capture)
    frequent = [(pair, captures) for pair, captures in found.items() if len(captures) > MOST_CONFIDENT_MISTAKES]
    return [
        ConfidentMistake(
            *pair, len(captures), len(set(captures)), sorted({capture.partition("/")[0] for capture in captures})
        )
        for pair, captures in sorted(frequent, key=lambda each: (-len(each[1]), each[0]))
    ]


def _known(measured: Measured) -> Iterator[tuple[_Pair, str]]:
    sure = (measured.confidence > CONFIDENT) & (measured.confidence >= measured.threshold) & ~measured.correct
    for row in sure.nonzero()[0].tolist():
        truth, said = int(measured.truth[row]), int(measured.predicted[row])
        yield (measured.labels[truth], measured.labels[said], True), measured.captures[row]


def _strange(outcome: FlowOutcome, measured: Measured, calibrated: Calibrated) -> Iterator[tuple[_Pair, str]]:
    shares = label_shares(outcome.unknown_logits, calibrated.temperature, len(measured.labels))
    confidence = shares.max(axis=1)
    sure = (confidence > CONFIDENT) & (confidence >= measured.threshold)
    for row, label in enumerate(outcome.unknown_labels):  # none in outcomes of before they were kept
        if sure[row]:
            yield (label, measured.labels[int(shares[row].argmax())], False), outcome.unknown_captures[row]
