"""The way of one input through a classifier: flows and traces with what was said of them, as they are decided."""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from itertools import compress, islice

import msgspec

from tapline.models.flow import Flow
from tapline.models.verdict import Verdict
from tapline.service.inference.classifier import Classifier
from tapline.service.python.lanes import Lane, Outcomes, in_order
from tapline.service.results.records import InputSummary
from tapline.service.sources.capture import CaptureError, ReadOptions
from tapline.service.sources.inputs import FlowInput, ReaderName, open_input
from tapline.service.traces.capture_traces import CaptureTraces, TraceAccount
from tapline.service.traces.scorer import TraceScorer
from tapline.service.traces.trace_verdict import TraceVerdict

BATCH_FLOWS = 512

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
