"""From what was said of labelled things to the figures of a checkpoint: known labels, never learned ones, groups."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from tapline.models.verdict import Verdict
from tapline.training.checking.check_record import CheckFigures, GroupFigures, NeverLearned, SuspicionOf
from tapline.training.checking.label_names import LabelNames
from tapline.training.checking.other_tools import rival_name, tool_figures
from tapline.training.checking.said import Said
from tapline.training.data.label_map import LabelError
from tapline.training.evaluation.confident_mistakes import (
    CONFIDENT,
    ConfidentPair,
    frequent_mistakes,
    known_mistakes,
)
from tapline.training.evaluation.flow_measured import MIN_FLOWS, WITHOUT
from tapline.training.evaluation.measured import ConfidentMistake, Measured
from tapline.training.evaluation.wording import many
from tapline.training.loop.scores import Floats, Interval, Ints, interval, macro_f1, weighted_f1

OWN_PORTS = "what the checkpoint knows of ports, alone"
MOST_CALLED = 5

_Value = TypeVar("_Value")


@dataclass(frozen=True)
class Known:
    """What was said, with the things of labels that the checkpoint knows: bool [n] of all, and as `Measured`."""

    said: Said
    is_known: NDArray[np.bool_]
    measured: Measured

    def of_known(self, values: Sequence[_Value]) -> list[_Value]:
        """Those of the known things, of values for all."""
        return [value for value, known in zip(values, self.is_known.tolist(), strict=True) if known]


def known_things(said: Said, labels: Sequence[str], title: str, threshold: float, names: LabelNames) -> Known:
    """The things of known labels as they were measured, beside ports and other tools.

    Raises:
        LabelError: none has a label that the checkpoint knows.
    """
    place = {label: number for number, label in enumerate(labels)}
    is_known = np.array([label in place for label in said.labels], np.bool_)
    if not is_known.any():
        had, of = ", ".join(sorted(set(said.labels))[:8]), ", ".join(labels)
        raise LabelError(
            f"of {many(len(said.labels), f'labelled {said.unit}')} none bears a label of {title}: the table says "
            f"{had}, and it knows {of}: say which are which with --map NAME=LABEL"
        )
    rows = np.flatnonzero(is_known).tolist()
    verdicts = [said.verdicts[row] for row in rows]
    truth = np.array([place[said.labels[row]] for row in rows], np.int64)
    support = int(np.bincount(truth).max())
    strange = [verdict.confidence for verdict, known in zip(said.verdicts, is_known.tolist(), strict=True) if not known]
    rivals = _own_rivals(said, rows, place)
    for tool in said.tools:
        words = [tool.words[row] for row in rows]
        rivals[rival_name(tool, words)] = np.array([_place_of(word, place, names) for word in words], np.int64)
    measured = Measured(
        title=title,
        unit=said.unit,
        labels=labels,
        truth=truth,
        probabilities=_confidences(verdicts, place),
        captures=[said.captures[row] for row in rows],
        min_support=min(MIN_FLOWS, support) if said.unit == "flow" else 1,
        threshold=threshold,
        unknown_confidence=np.array(strange, np.float64),
        rivals=rivals,
        ids=np.array([said.ids[row] for row in rows], np.uint64),
    )
    confident = _confident(said, is_known, measured)
    return Known(said, is_known, replace(measured, confident_mistakes=confident))


def _place_of(word: str | None, place: Mapping[str, int], names: LabelNames) -> int:
    """The class that a tool's word means, one more than the last for none of them, or no word."""
    return place.get(names.of(word) or "", len(place)) if word is not None else len(place)


def _own_rivals(said: Said, rows: Sequence[int], place: Mapping[str, int]) -> dict[str, Ints]:
    """What ports say alone, and the model without them, where the checkpoint knows ports."""
    if not said.without_ports:
        return {}
    ports = [said.verdicts[row].port_label for row in rows]
    without = [place[said.without_ports[row].nearest] for row in rows]
    return {
        WITHOUT: np.array(without, np.int64),
        OWN_PORTS: np.array([place.get(port, len(place)) if isinstance(port, str) else len(place) for port in ports]),
    }


def _confidences(verdicts: Sequence[Verdict], place: Mapping[str, int]) -> Floats:
    """Float64 [n, labels]: the confidence of each verdict at its nearest label; of others a verdict tells three."""
    table = np.zeros((len(verdicts), len(place)))
    for row, verdict in enumerate(verdicts):
        table[row, place[verdict.nearest]] = verdict.confidence
    return table


def _confident(said: Said, is_known: NDArray[np.bool_], measured: Measured) -> list[ConfidentMistake]:
    found: defaultdict[ConfidentPair, list[str]] = defaultdict(list)
    for pair, capture in known_mistakes(measured):
        found[pair].append(capture)
    for row in np.flatnonzero(~is_known).tolist():
        verdict = said.verdicts[row]
        if verdict.confidence > CONFIDENT and not verdict.unknown:
            found[said.labels[row], verdict.nearest, False].append(said.captures[row])
    return frequent_mistakes(found)


def check_figures(known: Known, names: LabelNames) -> CheckFigures:
    """All figures."""
    said, measured = known.said, known.measured
    unknown = np.array([verdict.unknown for verdict in said.verdicts], np.bool_)
    called_unknown = unknown[known.is_known]
    strange = unknown[~known.is_known]
    groups = _Groups(known, called_unknown)
    rivals = {name: measured.macro_f1(predicted) for name, predicted in measured.rivals.items()}
    return CheckFigures(
        things=len(measured.truth),
        captures=len(set(measured.captures)),
        macro_f1=measured.macro_f1(measured.predicted),
        interval=interval_of(measured, measured.draws(measured.predicted)),
        min_support=measured.min_support,
        accuracy=measured.accuracy,
        weighted_f1=weighted_f1(measured.truth, measured.predicted, len(measured.labels)),
        calibration_error=measured.calibration_error(),
        called_unknown=float(called_unknown.mean()),
        never_learned=len(strange),
        never_learned_called_unknown=float(strange.mean()) if len(strange) else None,
        unknown_auroc=measured.unknown_auroc,
        classes=measured.class_scores,
        corpora=groups.by([capture.partition("/")[0] for capture in said.captures]),
        by_capture=groups.by(said.captures),
        strange=_never_learned(known),
        suspicion=_suspicion(said),
        tools=[tool_figures(known.of_known(tool.words), tool, measured, names) for tool in said.tools],
        macro_f1_ports=rivals.get(OWN_PORTS),
        macro_f1_without_ports=rivals.get(WITHOUT),
    )


def interval_of(measured: Measured, draws: Floats) -> Interval | None:
    """What 95 % of draws over captures lie between, None of a single capture, which draws nothing."""
    return interval(draws) if len(set(measured.captures)) > 1 else None


@dataclass(frozen=True)
class _Groups:
    """Figures by what things are grouped by."""

    known: Known
    called_unknown: NDArray[np.bool_]

    def by(self, names: Sequence[str]) -> list[GroupFigures]:
        """One for each name of things, given for all, in the order of the names."""
        measured, of_known = self.known.measured, np.array(self.known.of_known(names), np.str_)
        strange = Counter(n for n, known in zip(names, self.known.is_known.tolist(), strict=True) if not known)
        return [self._one(measured, name, of_known == name, strange[name]) for name in sorted(set(names))]

    def _one(self, measured: Measured, name: str, rows: NDArray[np.bool_], strange: int) -> GroupFigures:
        if not rows.any():
            return GroupFigures(name, 0, 0.0, None, 0.0, strange)
        truth, said = measured.truth[rows], measured.predicted[rows]
        f1 = macro_f1(truth, said, len(measured.labels), measured.min_support)
        unknown = float(self.called_unknown[rows].mean())
        score = None if math.isnan(f1) else f1
        return GroupFigures(name, len(truth), float((truth == said).mean()), score, unknown, strange)


def _never_learned(known: Known) -> list[NeverLearned]:
    """One for each label that the checkpoint does not know, the most frequent first."""
    said = known.said
    by_label: defaultdict[str, list[int]] = defaultdict(list)
    for row in np.flatnonzero(~known.is_known).tolist():
        by_label[said.labels[row]].append(row)
    return [
        NeverLearned(
            label,
            len(rows),
            len({said.captures[row] for row in rows}),
            sum(said.verdicts[row].unknown for row in rows) / len(rows),
            Counter(v.nearest for row in rows if not (v := said.verdicts[row]).unknown).most_common(MOST_CALLED),
        )
        for label, rows in sorted(by_label.items(), key=lambda each: (-len(each[1]), each[0]))
    ]


def _suspicion(said: Said) -> list[SuspicionOf]:
    """Of each label the share that is called suspicious, nothing where the checkpoint tells none."""
    by_label: defaultdict[str, list[bool]] = defaultdict(list)
    for label, suspicious in zip(said.labels, said.suspicious, strict=False):  # flows have none
        if suspicious is not None:
            by_label[label].append(suspicious)
    return [SuspicionOf(label, len(each), sum(each) / len(each)) for label, each in sorted(by_label.items())]
