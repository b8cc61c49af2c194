"""The way of inputs through a classifier, one after the other: what the command line and the Python API share.

Flows and traces come out as they are decided; whoever takes them decides what becomes of them.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import compress, islice
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from tapline.models.flow import Flow
from tapline.models.verdict import Verdict
from tapline.service.inference.classifier import Classifier
from tapline.service.python.lanes import Lane, Outcomes, in_order, thread_lanes
from tapline.service.results.records import ClassifiedFlow, InputSummary, Summary, SummaryBuilder, classified
from tapline.service.sources.capture import CaptureError, ReadOptions
from tapline.service.sources.inputs import FlowInput, ReaderName, open_input
from tapline.service.traces.capture_traces import CaptureTraces, TraceAccount
from tapline.service.traces.scorer import TraceScorer
from tapline.service.traces.trace_verdict import TraceVerdict

if TYPE_CHECKING:
    from tapline.service.python.workers import InputResults, Workers

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


def no_bar(name: str, source: FlowInput) -> AbstractContextManager[Iterable[Flow]]:
    """Shows nothing."""
    return contextlib.nullcontext(source)


class Decided(msgspec.Struct, array_like=True):
    """Flows of an input, in order, and what was said of each: its verdict, None where the engine failed on it, and for
    those at the places of `left_out`, about which nobody asked."""

    flows: list[Flow]
    verdicts: list[Verdict | None]
    left_out: list[int]


class InputRun:
    """One input on its way through a classifier; iterated once, gives flows and traces some at a time, as they are
    decided. `entry` grows with what is read; `accounts` say what became of traces, once all has been taken."""

    def __init__(
        self, name: str, classifier: Classifier, scorers: Sequence[TraceScorer], lanes: Sequence[Lane]
    ) -> None:
        """`lanes`: which compute, with traces by `scorers` as of `classifier`."""
        self.name = name
        self.entry = InputSummary(shown_name(name))
        self.accounts: list[TraceAccount] = []
        self._classifier = classifier
        self._lanes = lanes
        self._traces = CaptureTraces(scorers, self.entry.name)

    def results(
        self, reader: ReaderName, opened: Opened = open_input, shown: Shown = no_bar
    ) -> Generator[Decided | list[TraceVerdict], None, None]:
        """All of it, once."""
        try:
            source = opened(self.name, reader, ReadOptions(heads=self._classifier.heads))
            with shown(self.entry.name, source) as flows, closed(iter(flows)) as reading:
                yield from self._decided(reading)
            account(self.entry, source)
        except CaptureError as error:
            self.entry.error = str(error)
        self._traces.finish()
        yield from self._ready()
        self.accounts = self._traces.accounts()

    def _decided(self, flows: Iterator[Flow]) -> Iterator[Decided | list[TraceVerdict]]:
        asked: deque[tuple[list[Flow], list[bool]]] = deque()

        def batches() -> Iterator[list[Flow]]:
            while batch := list(islice(flows, BATCH_FLOWS)):
                self.entry.flows += len(batch)
                accepted = [self._classifier.accepts(flow) for flow in batch]
                asked.append((batch, accepted))
                yield list(compress(batch, accepted))

        for _, outcomes in in_order(batches(), self._lanes):
            batch, accepted = asked.popleft()
            yield self._take(batch, accepted, outcomes)
            yield from self._ready()

    def _take(self, batch: list[Flow], accepted: list[bool], outcomes: Outcomes) -> Decided:
        found = iter(outcomes)
        decided = Decided(batch, [], [])
        for place, (flow, is_accepted) in enumerate(zip(batch, accepted, strict=True)):
            outcome = next(found) if is_accepted else None
            if outcome is not None:
                self._traces.add(flow, outcome)
            decided.verdicts.append(outcome.verdict if outcome is not None else None)
            if not is_accepted or (outcome is not None and outcome.verdict is None):
                decided.left_out.append(place)
        return decided

    def _ready(self) -> Iterator[list[TraceVerdict]]:
        """The traces that are complete."""
        while found := self._traces.ready():
            yield found


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
        shown: Shown = no_bar,
        ended: Callable[[InputSummary], None] = lambda entry: None,
        workers: Workers | None = None,
    ) -> None:
        """`ended` is told of each input once it was read, or could not be. `workers` compute: several files each in one
        of them, which neither `opened` nor `shown` hears of; otherwise batches of flows."""
        self.inputs: list[InputSummary] = []
        self._names = names
        self._reader = reader
        self._classifier = classifier
        self._scorers = [TraceScorer(engine) for engine in classifier.trace_engines]
        self._builder = SummaryBuilder(classifier.checkpoint, [scorer.checkpoint for scorer in self._scorers])
        self._opened = opened
        self._shown = shown
        self._ended = ended
        self._workers = workers

    def __iter__(self) -> Generator[Result | TraceVerdict, None, None]:
        with contextlib.ExitStack() as stack:
            workers = stack.enter_context(self._workers) if self._workers is not None else None
            if workers is not None and len(self._names) > 1 and all(Path(name).is_file() for name in self._names):
                for results in workers.inputs(self._names, self._reader):
                    yield from self._elsewhere(results)
                return
            lanes = workers.lanes(self._classifier) if workers else stack.enter_context(thread_lanes(self._classifier))
            for name in self._names:
                yield from self._run(InputRun(name, self._classifier, self._scorers, lanes))

    def summary(self) -> Summary:
        """The account of everything, once all has been taken."""
        return self._builder.finish(self.inputs)

    def _run(self, run: InputRun) -> Iterator[Result | TraceVerdict]:
        self.inputs.append(run.entry)
        with contextlib.closing(run.results(self._reader, self._opened, self._shown)) as results:
            for found in results:
                yield from self._taken(found, run.entry.name)
        self._builder.account_traces(run.accounts)
        self._ended(run.entry)

    def _elsewhere(self, results: InputResults) -> Iterator[Result | TraceVerdict]:
        entry = InputSummary(shown_name(results.name))
        self.inputs.append(entry)
        for found in results:
            yield from self._taken(found, entry.name)
        self.inputs[-1] = results.entry
        self._builder.account_traces(results.accounts)
        self._ended(results.entry)

    def _taken(self, found: Decided | list[TraceVerdict], name: str) -> Iterator[Result | TraceVerdict]:
        if isinstance(found, Decided):
            yield from self._results(found, name)
            return
        for trace in found:
            self._builder.add_trace(trace)
            yield trace

    def _results(self, decided: Decided, name: str) -> Iterator[Result]:
        left_out = frozenset(decided.left_out)
        for place, (flow, verdict) in enumerate(zip(decided.flows, decided.verdicts, strict=True)):
            if place in left_out:
                self._builder.leave_out(flow)
            else:
                self._builder.add(flow, verdict)
                yield Result(flow, verdict, name)


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
