"""Traces of anything but the labels: which they are, which half of them a fold learns, how verdicts on them count.

They teach a network what it does not know (outlier exposure, Hendrycks et al., ICLR 2019; `models.checkpoint.Unknown`).
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from tapline.models.flow import Flow
from tapline.models.trace import TraceSettings, make_traces
from tapline.training.data.labelled_traces import LabelledTrace, TraceDataError
from tapline.training.data.parquet import Sample
from tapline.training.loop.scores import Floats, Ints, auroc

MOST_TRACES = 8
"""Traces of a capture that are kept, those with most flows: a scan shows hundreds of hosts that are all alike."""

MIN_CAPTURES = 2
"""One half of the captures is learned, the other one measured."""

LONG_FLOWS = 8
"""Flows from which a trace is counted as long: of shorter ones no model can say much."""

CONFIDENT = 0.9
"""A label with a higher confidence than this would be believed."""


@dataclass(frozen=True)
class Halves:
    """The background that a fold learns, and what it is measured on."""

    learned: list[LabelledTrace]
    measured: list[LabelledTrace]


class BackgroundShares(msgspec.Struct, frozen=True):
    """Of so many traces, by models that learned other captures; a trace that several folds measured has as many
    `verdicts`. Shares are of verdicts: `rejected` as unknown, `confident` with a confidence above `CONFIDENT`. `auroc`
    is that of the confidence against known traces."""

    traces: int
    verdicts: int
    rejected: float
    confident: float
    auroc: float


class BackgroundFigures(msgspec.Struct, frozen=True):
    """Verdicts on the background of so many captures: of all traces, and of those of `LONG_FLOWS` flows or more beside
    known ones as long; None where one of the two has none."""

    captures: int
    all: BackgroundShares
    long: BackgroundShares | None


@dataclass(frozen=True)
class Confidences:
    """Confidence of the best label of traces, float64 [n], and how many flows each has, int64 [n]."""

    best: Floats
    flows: Ints

    def long(self) -> Confidences:
        """Those of `LONG_FLOWS` flows or more."""
        kept = self.flows >= LONG_FLOWS
        return Confidences(self.best[kept], self.flows[kept])


def make_background(
    samples: Iterable[Sample], settings: TraceSettings, learned: Collection[str]
) -> list[LabelledTrace]:
    """The traces of all captures, labels unread, those with most flows of each; their label is "".

    Raises:
        TraceDataError: a capture is among `learned`, the names of those that labels are learned from; or there are
            traces of fewer than two captures.
    """
    captures: defaultdict[str, list[Flow]] = defaultdict(list)
    for sample in samples:
        captures[f"{sample.corpus}/{sample.capture}"].append(sample.flow)
    if shared := sorted(captures.keys() & set(learned)):
        raise TraceDataError(
            f"background: {len(shared)} capture(s) have the name of one that a label is learned from, as {shared[0]}: "
            "give captures that bear none of the labels"
        )
    traces = []
    for capture in sorted(captures):
        made = sorted(make_traces(captures[capture], settings), key=lambda trace: -len(trace.flows))
        traces += [LabelledTrace("", capture, trace) for trace in made[:MOST_TRACES]]
    if (found := len({trace.capture for trace in traces})) < MIN_CAPTURES:
        raise TraceDataError(
            f"background: traces of {found} capture(s), expected {MIN_CAPTURES} or more: give more captures, extracted "
            "with --heads header or --heads full"
        )
    return traces


def halve_background(background: Sequence[LabelledTrace], fold: int) -> Halves:
    """Two halves of the captures, another pair in each fold, the same whatever ran before."""

    def place(capture: str) -> bytes:
        return hashlib.sha256(f"{fold} {capture}".encode()).digest()

    captures = sorted({trace.capture for trace in background}, key=place)
    learned = set(captures[: (len(captures) + 1) // 2])
    return Halves(
        [trace for trace in background if trace.capture in learned],
        [trace for trace in background if trace.capture not in learned],
    )


def background_hash(background: Sequence[LabelledTrace]) -> str:
    """A hash of every flow of every trace."""
    digest = hashlib.sha256()
    for trace in background:
        digest.update(msgspec.msgpack.encode(trace))
    return digest.hexdigest()


def background_figures(
    background: Sequence[LabelledTrace], folds: Mapping[int, Confidences], known: Confidences, threshold: float
) -> BackgroundFigures:
    """The figures of the confidences, by fold, in the half that it was measured on; `known` in labelled traces."""
    measured = [trace for fold in folds for trace in halve_background(background, fold).measured]
    strange = Confidences(
        np.concatenate([each.best for each in folds.values()]), np.concatenate([each.flows for each in folds.values()])
    )
    long = [trace for trace in measured if len(trace.trace.flows) >= LONG_FLOWS]
    return BackgroundFigures(
        len({trace.capture for trace in measured}),
        _shares(measured, strange, known, threshold),
        _shares(long, strange.long(), known.long(), threshold) if long and len(known.long().best) else None,
    )


def _shares(
    measured: Sequence[LabelledTrace], strange: Confidences, known: Confidences, threshold: float
) -> BackgroundShares:
    return BackgroundShares(
        len({(each.capture, each.trace.subject, each.trace.start_us) for each in measured}),
        len(measured),
        float((strange.best < threshold).mean()),
        float((strange.best > CONFIDENT).mean()),
        auroc(known.best, strange.best),
    )
