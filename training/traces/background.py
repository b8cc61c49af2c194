"""Traces of anything but the labels: which they are, and which half of them a fold learns.

They teach a network what it does not know (outlier exposure, Hendrycks et al., ICLR 2019; `models.checkpoint.Unknown`).
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import msgspec

from tapline.models.flow import Flow
from tapline.models.trace import TraceSettings, make_traces
from tapline.training.data.labelled_traces import LabelledTrace, TraceDataError
from tapline.training.data.parquet import Sample

MOST_TRACES = 8
"""Traces of a capture that are kept, those with most flows: a scan shows hundreds of hosts that are all alike."""

MIN_CAPTURES = 2
"""One half of the captures is learned, the other one measured."""


@dataclass(frozen=True)
class Halves:
    """The background that a fold learns, and what it is measured on."""

    learned: list[LabelledTrace]
    measured: list[LabelledTrace]


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
