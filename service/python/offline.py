"""The way of inputs through a classifier, one after the other: what the command line and the Python API share.

Flows and traces come out as they are decided; whoever takes them decides what becomes of them.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import islice

from tapline.models.flow import Flow
from tapline.models.verdict import Verdict
from tapline.service.inference.classifier import Classifier
from tapline.service.results.records import ClassifiedFlow, InputSummary, Summary, SummaryBuilder, classified
from tapline.service.sources.capture import CaptureError, ReadOptions
from tapline.service.sources.inputs import FlowInput, ReaderName, open_input
from tapline.service.traces.capture_traces import CaptureTraces
from tapline.service.traces.scorer import TraceScorer
from tapline.service.traces.trace_verdict import TraceVerdict

BATCH_FLOWS = 512


@dataclass(frozen=True, slots=True)
class Result:
    """A flow with its verdict, None where the engine failed on it; `input` names the file that it came from.

    Its packet heads are gone where traces have read them.
    """

    flow: Flow
    verdict: Verdict | None
    input: str

    @property
    def record(self) -> ClassifiedFlow:
        """The record that `tapline classify --format json` writes of it."""
        return classified(self.flow, self.verdict, self.input)


Opened = Callable[[str, ReaderName, ReadOptions], FlowInput]
"""Opens an input of a name, as `open_input` does."""

Shown = Callable[[str, FlowInput], AbstractContextManager[Iterable[Flow]]]
"""Gives the flows of an input of a name, and may show how far it has been read."""


class OfflineRun:
    """Classifies every input that can be read; iterated once, gives flows and traces as they are decided.

    Traces are those of one input each, at the latest after its last flow. `inputs` grows with what was read.
    """

    def __init__(
        self,
        names: Sequence[str],
        reader: ReaderName,
        classifier: Classifier,
        *,
        opened: Opened = open_input,
        shown: Shown = lambda name, source: contextlib.nullcontext(source),
        ended: Callable[[InputSummary], None] = lambda entry: None,
    ) -> None:
        """`ended` is told of each input once it was read, or could not be."""
        self.inputs: list[InputSummary] = []
        self._names = names
        self._reader = reader
        self._classifier = classifier
        self._scorers = [TraceScorer(engine) for engine in classifier.trace_engines]
        self._builder = SummaryBuilder(classifier.checkpoint, [scorer.checkpoint for scorer in self._scorers])
        self._opened = opened
        self._shown = shown
        self._ended = ended

    def __iter__(self) -> Generator[Result | TraceVerdict, None, None]:
        for name in self._names:
            entry = InputSummary(shown_name(name))
            self.inputs.append(entry)
            traces = CaptureTraces(self._scorers, entry.name)
            try:
                yield from self._read(name, entry, traces)
            except CaptureError as error:
                entry.error = str(error)
            traces.finish()
            yield from self._ready(traces)
            self._builder.account_traces(traces)
            self._ended(entry)

    def summary(self) -> Summary:
        """The account of everything, once all has been taken."""
        return self._builder.finish(self.inputs)

    def _read(self, name: str, entry: InputSummary, traces: CaptureTraces) -> Iterator[Result | TraceVerdict]:
        source = self._opened(name, self._reader, ReadOptions(heads=self._classifier.heads))
        with self._shown(entry.name, source) as shown, closed(iter(shown)) as flows:
            while batch := list(islice(flows, BATCH_FLOWS)):
                yield from self._classify(batch, entry, traces)
                yield from self._ready(traces)
        account(entry, source)

    def _classify(self, batch: list[Flow], entry: InputSummary, traces: CaptureTraces) -> Iterator[Result]:
        entry.flows += len(batch)
        accepted = [flow for flow in batch if self._classifier.accepts(flow)]
        for flow in batch:
            if not self._classifier.accepts(flow):
                self._builder.leave_out(flow)
        for flow, outcome in zip(accepted, self._classifier.classify_each(accepted), strict=True):
            if outcome is not None:
                traces.add(flow, outcome)
            if outcome is not None and outcome.verdict is None:
                self._builder.leave_out(flow)
                continue
            verdict = outcome.verdict if outcome is not None else None
            self._builder.add(flow, verdict)
            yield Result(flow, verdict, entry.name)

    def _ready(self, traces: CaptureTraces) -> Iterator[TraceVerdict]:
        """The traces that are complete."""
        while found := traces.ready():
            for trace in found:
                self._builder.add_trace(trace)
                yield trace


def shown_name(name: str) -> str:
    """The name of an input as text: a file's name need not be any."""
    return os.fsencode(name).decode("utf-8", "replace")


def account(entry: InputSummary, source: FlowInput) -> None:
    """Take over what a source counted, once it has been read."""
    entry.packets = source.packets
    entry.skipped = dict(source.skipped)
    entry.warning = source.warning


@contextlib.contextmanager
def closed(flows: Iterator[Flow]) -> Iterator[Iterator[Flow]]:
    """The flows; whoever leaves the block has closed what they come from."""
    try:
        yield flows
    finally:
        if (close := getattr(flows, "close", None)) is not None:  # of a generator
            close()
