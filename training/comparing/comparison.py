"""Compares what was evaluated: which settings differ, figures side by side, and the difference on the same things."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from tapline.training.comparing.evaluated import Evaluated, FigureRow
from tapline.training.data.store import Ids
from tapline.training.evaluation.verdict_file import Verdicts
from tapline.training.loop.config import TrainingError
from tapline.training.loop.scores import Interval, Ints, Predictions, interval, macro_f1_draws, mean_macro_f1

ABSENT = "-"
"""The value of a setting that a side does not have."""


class Sides(msgspec.Struct, frozen=True):
    """One of those that are compared."""

    name: str
    kind: str
    how: str
    figures: FigureRow | None


class Setting(msgspec.Struct, frozen=True):
    """A setting that differs, with its value for each side."""

    name: str
    values: list[str]


class Paired(msgspec.Struct, frozen=True):
    """The side `number` beside the first one on the `common` flows or traces (`unit`) that both were measured on, of so
    many captures.

    `first` and `second` are their macro-F1, `gain` what the second has more, its interval over captures None of a
    single one; `only_second_right` and `only_first_right` where they say different things. `only_in_first` and
    `only_in_second` were measured by one alone; `relabelled` by both, under different labels. Where they cannot be
    compared `why` says so, and the rest is empty.
    """

    number: int
    why: str = ""
    unit: str = ""
    common: int = 0
    captures: int = 0
    first: float = 0.0
    second: float = 0.0
    gain: float = 0.0
    gain_interval: Interval | None = None
    only_first_right: int = 0
    only_second_right: int = 0
    only_in_first: int = 0
    only_in_second: int = 0
    relabelled: int = 0
    note: str = ""


class Comparison(msgspec.Struct, frozen=True):
    """Everything that is said of them; sides count from 1."""

    sides: list[Sides]
    settings: list[Setting]
    paired: list[Paired]
    note: str = ""


def compare(evaluated: Sequence[Evaluated]) -> Comparison:
    """Compare them, each with the first.

    Raises:
        TrainingError: there are fewer than two.
    """
    if len(evaluated) < 2:
        raise TrainingError("one alone is not compared: give two directories or more")
    names = Counter(each.name for each in evaluated)
    sides = [
        Sides(each.name if names[each.name] == 1 else f"{each.name} ({number})", each.kind, each.how, each.figures)
        for number, each in enumerate(evaluated, 1)
    ]
    first = evaluated[0]
    return Comparison(
        sides,
        _differing(evaluated),
        [_paired(number, first, each) for number, each in enumerate(evaluated[1:], 2)],
        _other_rules(evaluated),
    )


def _other_rules(evaluated: Sequence[Evaluated]) -> str:
    """What is said where macro-F1 of the sides counts other labels, "" where it counts the same."""
    rules: dict[int, list[str]] = {}
    for number, each in enumerate(evaluated, 1):
        if each.figures:
            rules.setdefault(each.figures.least, []).append(str(number))
    if len(rules) < 2:
        return ""
    told = ", ".join(f"{least} or more things in {' and '.join(numbers)}" for least, numbers in sorted(rules.items()))
    return f"macro-F1 counts other labels, those with {told}: these figures are not to be compared with each other"


def _differing(evaluated: Sequence[Evaluated]) -> list[Setting]:
    """Settings that two sides have otherwise, or that one of a kind has and another of it has not: a checkpoint lacks
    what a run trained with."""
    names = sorted({name for each in evaluated for name in each.settings})
    kinds = {kind: [each for each in evaluated if each.kind == kind] for kind in {each.kind for each in evaluated}}

    def differs(name: str) -> bool:
        if len({each.settings[name] for each in evaluated if name in each.settings}) > 1:
            return True
        return any(len({name in each.settings for each in of_kind}) > 1 for of_kind in kinds.values())

    return [Setting(name, [each.settings.get(name, ABSENT) for each in evaluated]) for name in names if differs(name)]


def _paired(number: int, first: Evaluated, second: Evaluated) -> Paired:
    for side, place in ((first, 1), (second, number)):
        if side.verdicts is None:
            again = "a checkpoint keeps figures alone" if side.kind == "checkpoint" else "evaluate it (again)"
            return Paired(number, f"{place} holds no verdicts on single flows or traces: {again}")
    assert first.verdicts is not None
    assert second.verdicts is not None
    one, two = first.verdicts, second.verdicts
    if one.about.unit != two.about.unit:
        return Paired(number, f"1 is of {one.about.unit}s and {number} of {two.about.unit}s")
    if one.about.how != two.about.how:
        return Paired(number, f"they were measured otherwise: 1 by {one.about.how}, {number} by {two.about.how}")
    return _on_common(number, one, two, other_data=_data(first) != _data(second))


def _data(side: Evaluated) -> tuple[str, str]:
    return side.settings.get("features", ""), side.settings.get("background", "")


def _on_common(number: int, one: Verdicts, two: Verdicts, *, other_data: bool) -> Paired:
    """The difference on the things that both were measured on under one label."""
    rows_one, rows_two = _common(one.ids, two.ids)
    truths = [np.array(each.about.labels)[each.truth[rows]] for each, rows in ((one, rows_one), (two, rows_two))]
    same = truths[0] == truths[1]
    apart = Paired(
        number,
        unit=one.about.unit,
        common=int(same.sum()),
        only_in_first=len(one.ids) - len(rows_one),
        only_in_second=len(two.ids) - len(rows_two),
        relabelled=int((~same).sum()),
    )
    unit = one.about.unit
    if not apart.common:
        return msgspec.structs.replace(
            apart, why=f"no {unit} was measured by both: other data, or another part of them"
        )
    rows_one, rows_two = rows_one[same], rows_two[same]
    labels = {label: place for place, label in enumerate(one.about.labels)}
    translated = np.array([labels.get(label, len(labels)) for label in two.about.labels], np.int64)
    truth, said = one.truth[rows_one], (one.predicted[rows_one], translated[two.predicted[rows_two]])
    captures = np.array(one.captures, np.str_)[rows_one]
    folds = one.folds[rows_one]
    if not np.array_equal(folds, two.folds[rows_two]):
        folds = np.zeros_like(folds)
    least = min(one.about.min_support, int(np.bincount(truth).max()))
    parts = [_by_fold(truth, each, captures, folds) for each in said]
    scores = [mean_macro_f1(part, len(labels), least) for part in parts]
    draws = [macro_f1_draws(part, len(labels), least) for part in parts]
    differ = said[0] != said[1]
    notes = [
        f"they learned from other data, and are compared on the {unit}s that both were measured on"
        if other_data
        else "",
        "macro-F1 is of all folds together: a thing was in different ones"
        if len(set(one.folds.tolist())) > 1 and not folds.any()
        else "",
    ]
    return msgspec.structs.replace(
        apart,
        captures=len(set(captures.tolist())),
        first=scores[0],
        second=scores[1],
        gain=scores[1] - scores[0],
        gain_interval=interval(draws[1] - draws[0]) if len(set(captures.tolist())) > 1 else None,
        only_first_right=int((differ & (said[0] == truth)).sum()),
        only_second_right=int((differ & (said[1] == truth)).sum()),
        note="; ".join(note for note in notes if note),
    )


def _common(one: Ids, two: Ids) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The places of the ids that are in both, in both, in the order of the first. Of equal ids the first counts."""
    _, places_one, places_two = np.intersect1d(one, two, return_indices=True)
    order = np.argsort(places_one)
    return places_one[order].astype(np.int64), places_two[order].astype(np.int64)


def _by_fold(truth: Ints, said: Ints, captures: NDArray[np.str_], folds: Ints) -> list[Predictions]:
    return [
        Predictions(truth[rows], said[rows], captures[rows].tolist())
        for rows in (folds == fold for fold in np.unique(folds))
    ]
