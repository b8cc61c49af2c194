"""Labelled traces from extracted flows, one for each capture, and their folds. What a trace is belongs to
`models.trace`; reading and labelling flows to `training.data.extraction`."""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import msgspec
import numpy as np
from numpy.typing import NDArray

from tapline.models.flow import Flow
from tapline.models.trace import Trace, TraceSettings, make_traces, subject_kind_of
from tapline.training.data.parquet import Sample
from tapline.training.data.split import fold_of_captures

LOOK_ALIKE = {
    "iKettle2": "SmarterCoffee",
    "EdimaxPlug2101W": "EdimaxPlug1101W",
    "EdnetCam2": "EdnetCam1",
    "EdimaxCam2": "EdimaxCam1",
    "WeMoSwitch2": "WeMoSwitch",
    "WeMoInsightSwitch2": "WeMoInsightSwitch",
}
"""Devices of IoT SENTINEL that are the same hardware as another one, with that other one's label."""


def look_alike(labels: Collection[str]) -> bool:
    """Whether both labels of a pair in `LOOK_ALIKE` are among these: merging the pairs then changes figures."""
    return any(label in labels and other in labels for label, other in LOOK_ALIKE.items())


_DAY = re.compile(r"\d{4}-\d\d-\d\d")

MIN_CAPTURES = 2
"""Captures that a label needs to be learned: with one it could not be measured."""


class TraceDataError(ValueError):
    """There are no traces to learn from; the message says what is missing."""


@dataclass(frozen=True)
class LabelledTrace:
    """The trace of one capture."""

    label: str
    capture: str
    trace: Trace


@dataclass
class LeftOut:
    """What the traces do not hold of the captures: flows of other subjects or windows, flows cut, captures without, and
    labels of too few captures to be learned."""

    flows: int = 0
    cut: int = 0
    flows_by_label: Counter[str] = field(default_factory=Counter)
    captures: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class TraceCorpus:
    """Traces in the order of their capture's name; `labels` sorted, the place of a label is its class index. `rare` are
    the traces of labels with fewer captures than are needed to be learned."""

    traces: list[LabelledTrace]
    labels: list[str]
    left_out: LeftOut
    rare: list[LabelledTrace] = field(default_factory=list)

    @property
    def truth(self) -> NDArray[np.int64]:
        """Class index of each trace, int64 [n]."""
        index = {label: number for number, label in enumerate(self.labels)}
        return np.array([index[trace.label] for trace in self.traces], np.int64)

    def by_address(self, settings: TraceSettings) -> int:
        """How many traces bear an address though they were asked for by MAC: their link has none."""
        return sum(subject_kind_of(each.trace.subject, settings.subject) != settings.subject for each in self.traces)

    @cached_property
    def sha256(self) -> str:
        """A hash of everything that is learned from and measured on: labels, captures, every flow of every trace."""
        digest = hashlib.sha256(msgspec.json.encode(self.labels))
        for trace in self.traces:
            digest.update(msgspec.msgpack.encode(trace))
        return digest.hexdigest()

    def merged(self, pairs: Mapping[str, str]) -> NDArray[np.int64]:
        """For each class the index of the class that it counts for when `pairs` are merged, int64 [classes]."""
        index = {label: number for number, label in enumerate(self.labels)}
        return np.array([index.get(pairs.get(label, label), index[label]) for label in self.labels], np.int64)


def make_trace_corpus(
    samples: Iterable[Sample], settings: TraceSettings, min_captures: int = MIN_CAPTURES
) -> TraceCorpus:
    """The trace with most flows of every labelled capture: the subject that the capture was made of. It has the label
    of most flows of the capture. Labels of fewer than `min_captures` captures are not learned.

    Raises:
        TraceDataError: no flow has a label, or none has packet heads; fewer than two labels.
    """
    captures: defaultdict[str, list[Flow]] = defaultdict(list)
    said: defaultdict[str, Counter[str]] = defaultdict(Counter)
    heads = 0
    for sample in samples:
        if sample.label is not None:
            name = f"{sample.corpus}/{sample.capture}"
            captures[name].append(sample.flow)
            said[name][sample.label] += 1
            heads += bool(sample.flow.heads)
    if captures and not heads:
        raise TraceDataError("the flows have no packet heads: extract again with --heads header or --heads full")
    label_of = {name: labels.most_common(1)[0][0] for name, labels in said.items()}
    left_out = LeftOut()
    traces = []
    for capture in sorted(captures):
        made = make_traces(captures[capture], settings)
        if not made:
            left_out.captures.append(capture)
            continue
        trace = max(made, key=lambda trace: len(trace.flows))  # the first of several that have as many
        missing = sum(len(other.flows) for other in made) - len(trace.flows)
        left_out.flows += missing
        left_out.cut += trace.cut
        left_out.flows_by_label[label_of[capture]] += missing
        traces.append(LabelledTrace(label_of[capture], capture, trace))
    counts = Counter(trace.label for trace in traces)
    labels = sorted(label for label, count in counts.items() if count >= min_captures)
    left_out.labels = sorted(set(counts) - set(labels))
    rare = [trace for trace in traces if trace.label not in labels]
    traces = [trace for trace in traces if trace.label in labels]
    if len(labels) < 2:
        raise TraceDataError(
            f"traces of {len(labels)} label(s) in {min_captures} captures or more: expected 2 labels or more; "
            "label more captures"
        )
    return TraceCorpus(traces, labels, left_out, rare)


def name_of(capture: str) -> str:
    """The name of the file of a capture, without folders."""
    return capture.rpartition("/")[2]


def day_of(capture: str) -> str:
    """The day that the name of a capture begins with, as 2017-05-24; the capture itself where it begins with none."""
    found = _DAY.match(name_of(capture))
    return found[0] if found else capture


def folds_of(corpus: TraceCorpus, folds: int, seed: int, *, by_day: bool = False) -> NDArray[np.int64]:
    """The fold of each trace, int64 [n], the captures of every label spread as evenly as possible.

    `by_day`: all captures of one day are in one fold: they share servers, and whatever else was about that day.

    Raises:
        SplitError: a label has fewer than two captures.
    """
    groups = [day_of(trace.capture) if by_day else trace.capture for trace in corpus.traces]
    samples = [
        Sample("", group, trace.label, trace.trace.flows[0]) for group, trace in zip(groups, corpus.traces, strict=True)
    ]
    fold_of = fold_of_captures(samples, corpus.labels, folds, seed, "day" if by_day else "capture")
    return np.array([fold_of[group] for group in groups], np.int64)


def day_folds(corpus: TraceCorpus, folds: int) -> NDArray[np.int64]:
    """`folds_of` by day."""
    return folds_of(corpus, folds, 0, by_day=True)


def few_of_each(
    truth: NDArray[np.int64], rows: NDArray[np.int64], captures: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """At most `captures` random rows of each class among `rows`, sorted."""
    shuffled = rng.permutation(rows)
    kept = [shuffled[truth[shuffled] == index][:captures] for index in np.unique(truth[rows])]
    return np.sort(np.concatenate(kept))


def flows_of(traces: Sequence[LabelledTrace]) -> list[Flow]:
    """All flows, trace after trace."""
    return [flow for trace in traces for flow in trace.trace.flows]
