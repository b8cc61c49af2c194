"""What was measured of a classifier of flows or traces, and the figures of it. How a report looks belongs to `page`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import msgspec
import numpy as np
from numpy.typing import NDArray

from tapline.training.data.store import Ids, no_ids
from tapline.training.loop.scores import (
    CALIBRATION_BINS,
    ClassScore,
    Floats,
    Interval,
    Ints,
    Predictions,
    auroc,
    calibration_bins,
    calibration_error,
    class_scores,
    interval,
    macro_f1_draws,
    mean_macro_f1,
    weighted_f1,
)

CONFUSIONS = 15


@dataclass(frozen=True)
class Curve:
    """Macro-F1 and calibration error at each point of what the model was shown; `axis` says what was counted.
    `confidence`: its mean, or empty."""

    title: str
    axis: str
    points: Sequence[str]
    macro_f1: Sequence[float]
    calibration_error: Sequence[float]
    note: str = ""
    confidence: Sequence[float] = ()


@dataclass(frozen=True)
class ReportTable:
    """A table of a report beside its figures: cells as text, words and numbers."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    text: str = ""


@dataclass(frozen=True)
class Measured:
    """What a model said of n things that it was not trained on, `unit` being `flow` or `trace`.

    * `truth` int64 [n], `probabilities` float64 [n, labels]: calibrated; a row adds up to less than 1 where a
      background class takes the rest. `captures`: what resembles each other, drawn together by the bootstrap.
    * `folds` int64 [n]: macro-F1 is the mean over them; without, it is of all things together. It counts the classes
      with `min_support` things in the fold.
    * `unknown_confidence` float64 [m]: the confidence on things of classes that were never learned; `threshold`: below
      it a verdict is *unknown*. `rivals`: the predicted class, int64 [n], of simpler models by name.
    * `confident_mistakes`: those that the model was sure of, where they were counted.
    * `ids` uint64 [n]: which things they are (`data.store.id_of`), empty where nobody says.
    * `tables`: what else the report shows; `facts`: what it says first, by name; `notes`: sentences at its end.
    """

    title: str
    unit: str
    labels: Sequence[str]
    truth: Ints
    probabilities: Floats
    captures: Sequence[str]
    folds: Ints | None = None
    min_support: int = 1
    threshold: float = 0.0
    unknown_confidence: Floats = field(default_factory=lambda: np.zeros(0))
    rivals: Mapping[str, Ints] = field(default_factory=dict)
    curves: Sequence[Curve] = ()
    confident_mistakes: Sequence[ConfidentMistake] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()
    ids: Ids = field(default_factory=no_ids)
    tables: Sequence[ReportTable] = ()

    @cached_property
    def predicted(self) -> Ints:
        """The label said, int64 [n]."""
        return np.asarray(self.probabilities.argmax(axis=1))

    @cached_property
    def confidence(self) -> Floats:
        """The confidence in it, float64 [n]."""
        return np.asarray(self.probabilities.max(axis=1))

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Whether it is right, bool [n]."""
        return np.asarray(self.predicted == self.truth)

    @property
    def accuracy(self) -> float:
        """The share that is right."""
        return float(self.correct.mean())

    @property
    def known_rejected(self) -> float:
        """The share that is called *unknown* wrongly."""
        return float((self.confidence < self.threshold).mean())

    @property
    def unknown_rejected(self) -> float | None:
        """The share of the unknown things that is called so, None without any."""
        return float((self.unknown_confidence < self.threshold).mean()) if len(self.unknown_confidence) else None

    @property
    def unknown_auroc(self) -> float | None:
        """That of the confidence in known against unknown things, None without any."""
        return auroc(self.confidence, self.unknown_confidence) if len(self.unknown_confidence) else None

    @property
    def class_scores(self) -> list[ClassScore]:
        """One row per label."""
        return class_scores(self.truth, self.predicted, self.labels, self.captures)

    def by_fold(self, predicted: Ints) -> list[Predictions]:
        """Predictions of each fold, of all together without folds."""
        if self.folds is None:
            return [Predictions(self.truth, predicted, self.captures)]
        names = np.asarray(self.captures)
        return [
            Predictions(self.truth[rows], predicted[rows], names[rows].tolist())
            for rows in (self.folds == fold for fold in np.unique(self.folds))
        ]

    def macro_f1(self, predicted: Ints) -> float:
        """Macro-F1, the mean over folds."""
        return mean_macro_f1(self.by_fold(predicted), len(self.labels), self.min_support)

    def draws(self, predicted: Ints) -> Floats:
        """Bootstrap draws of macro-F1 over captures."""
        return macro_f1_draws(self.by_fold(predicted), len(self.labels), self.min_support)

    def calibration_error(self, weights: Floats | None = None) -> float:
        """Expected calibration error, each thing weighing as much, or as `weights` float64 [n] say."""
        return calibration_error(self.confidence, self.correct, weights)

    def mistakes(self, most: int | None = None) -> list[Mistake]:
        """What is taken for what, the most frequent first, of equals the first to come."""
        found: dict[tuple[int, int], list[str]] = {}
        for truth, said, capture in zip(self.truth.tolist(), self.predicted.tolist(), self.captures, strict=True):
            if truth != said:
                found.setdefault((truth, said), []).append(capture)
        largest = sorted(found.items(), key=lambda pair: -len(pair[1]))[:most]
        return [
            Mistake(self.labels[truth], self.labels[said], len(captures), len(set(captures)))
            for (truth, said), captures in largest
        ]


class Model(msgspec.Struct, frozen=True):
    """One model: macro-F1 with its interval, and what the measured one gains on it."""

    name: str
    macro_f1: float
    interval: Interval
    gain: float
    gain_interval: Interval


class Bin(msgspec.Struct, frozen=True):
    """One bin of the reliability diagram."""

    low: float
    count: int
    confidence: float
    accuracy: float


class Risk(msgspec.Struct, frozen=True):
    """The share of wrong verdicts among the most confident share `coverage` of all."""

    coverage: float
    risk: float


class Mistake(msgspec.Struct, frozen=True):
    """So many things of `label` in so many captures were called `called`."""

    label: str
    called: str
    count: int
    captures: int


class ConfidentMistake(msgspec.Struct, frozen=True):
    """So many things of `label`, in so many captures of these corpora, were called `called` with more confidence than
    `confident_mistakes.CONFIDENT`; `learned` where the fold's model had learned the label."""

    label: str
    called: str
    learned: bool
    count: int
    captures: int
    corpora: list[str]


class Figures(msgspec.Struct, frozen=True):
    """Every figure of a report; the measured model is the first of `models`."""

    title: str
    unit: str
    measured: int
    captures: int
    classes: int
    accuracy: float
    weighted_f1: float
    calibration_error: float
    unknown_auroc: float | None
    unknown_rejected: float | None
    known_rejected: float
    threshold: float
    models: list[Model]
    bins: list[Bin]
    risk: list[Risk]
    class_scores: list[ClassScore]
    mistakes: list[Mistake]
    confident_mistakes: list[ConfidentMistake] = []


def figures_of(measured: Measured) -> Figures:
    """All figures."""
    confidence, correct = measured.confidence, measured.correct
    return Figures(
        title=measured.title,
        unit=measured.unit,
        measured=len(measured.truth),
        captures=len(set(measured.captures)),
        classes=len(np.unique(measured.truth)),
        accuracy=measured.accuracy,
        weighted_f1=weighted_f1(measured.truth, measured.predicted, len(measured.labels)),
        calibration_error=measured.calibration_error(),
        unknown_auroc=measured.unknown_auroc,
        unknown_rejected=measured.unknown_rejected,
        known_rejected=measured.known_rejected,
        threshold=measured.threshold,
        models=compared(measured),
        bins=_bins(confidence, correct),
        risk=_risk(confidence, correct),
        class_scores=measured.class_scores,
        mistakes=measured.mistakes(CONFUSIONS),
        confident_mistakes=list(measured.confident_mistakes),
    )


def compared(measured: Measured) -> list[Model]:
    """The measured model and its rivals, each with its interval and what the first gains on it."""
    own, own_draws = measured.macro_f1(measured.predicted), measured.draws(measured.predicted)
    models = [Model("this model", own, interval(own_draws), 0.0, Interval(0.0, 0.0))]
    for name, predicted in measured.rivals.items():
        score, draws = measured.macro_f1(predicted), measured.draws(predicted)
        models.append(Model(name, score, interval(draws), own - score, interval(own_draws - draws)))
    return models


def _bins(confidence: Floats, correct: NDArray[np.bool_]) -> list[Bin]:
    place = calibration_bins(confidence)
    return [
        Bin(index / CALIBRATION_BINS, int(mine.sum()), float(confidence[mine].mean()), float(correct[mine].mean()))
        for index in range(CALIBRATION_BINS)
        if (mine := place == index).any()
    ]


def _risk(confidence: Floats, correct: NDArray[np.bool_]) -> list[Risk]:
    order = np.argsort(-confidence, kind="stable")
    wrong = np.cumsum(~correct[order]) / np.arange(1, len(order) + 1)
    places = np.unique(np.linspace(1, len(order), min(len(order), 200)).astype(np.int64))
    return [Risk(float(place / len(order)), float(wrong[place - 1])) for place in places.tolist()]
