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

ConfidentPair = tuple[str, str, bool]
"""The true label, what it was called, and whether the model had learned the label."""


def confident_mistakes(
    outcomes: Sequence[FlowOutcome], measured: Mapping[int, Measured], elsewhere: Mapping[int, Calibrated]
) -> list[ConfidentMistake]:
    """The pairs of true and called label with more than `MOST_CONFIDENT_MISTAKES` flows that were named with confidence
    above `CONFIDENT`, and not as *unknown*; the most frequent first. What was `measured` of a fold, and what it was
    calibrated with, by its number."""
    found: defaultdict[ConfidentPair, list[str]] = defaultdict(list)
    for outcome in outcomes:
        of_fold = measured[outcome.fold]
        for pair, capture in (*known_mistakes(of_fold), *_strange(outcome, of_fold, elsewhere[outcome.fold])):
            found[pair].append(capture)
    return frequent_mistakes(found)


def frequent_mistakes(found: Mapping[ConfidentPair, Sequence[str]]) -> list[ConfidentMistake]:
    """Of confident mistakes by pair, the capture of each, those of frequent pairs."""
    frequent = [(pair, captures) for pair, captures in found.items() if len(captures) > MOST_CONFIDENT_MISTAKES]
    return [
        ConfidentMistake(
            *pair, len(captures), len(set(captures)), sorted({capture.partition("/")[0] for capture in captures})
        )
        for pair, captures in sorted(frequent, key=lambda each: (-len(each[1]), each[0]))
    ]


def known_mistakes(measured: Measured) -> Iterator[tuple[ConfidentPair, str]]:
    """The confident mistakes on things of known labels, each with its capture."""
    sure = (measured.confidence > CONFIDENT) & (measured.confidence >= measured.threshold) & ~measured.correct
    for row in sure.nonzero()[0].tolist():
        truth, said = int(measured.truth[row]), int(measured.predicted[row])
        yield (measured.labels[truth], measured.labels[said], True), measured.captures[row]


def _strange(outcome: FlowOutcome, measured: Measured, calibrated: Calibrated) -> Iterator[tuple[ConfidentPair, str]]:
    shares = label_shares(outcome.unknown_logits, calibrated.temperature, len(measured.labels))
    confidence = shares.max(axis=1)
    sure = (confidence > CONFIDENT) & (confidence >= measured.threshold)
    for row, label in enumerate(outcome.unknown_labels):  # none in outcomes of before they were kept
        if sure[row]:
            yield (label, measured.labels[int(shares[row].argmax())], False), outcome.unknown_captures[row]
