"""Classifies inputs one after the other and accounts for every flow; the command line's offline work."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from rich.console import Console

from tapline.models.flow import Flow
from tapline.service.command.terminal import input_problem, progress
from tapline.service.inference.classifier import Classifier
from tapline.service.results.records import InputSummary, Summary, SummaryBuilder
from tapline.service.results.writers import Writer
from tapline.service.sources.capture import CaptureError, ReadOptions
from tapline.service.sources.inputs import FlowInput, ReaderName, open_input
from tapline.service.traces.capture_traces import CaptureTraces
from tapline.service.traces.scorer import TraceScorer

BATCH_FLOWS = 512


def classify_inputs(
    names: Sequence[str],
    reader: ReaderName,
    classifier: Classifier,
    writer: Writer,
    console: Console,
) -> Summary:
    """Classify every input that can be read; problems go to `console` and into the summary's inputs.

    Traces are those of one input each.
    """
    scorers = [TraceScorer(engine) for engine in classifier.trace_engines]
    builder = SummaryBuilder(classifier.checkpoint, [scorer.checkpoint for scorer in scorers])
    inputs = []
    for name in names:
        entry = InputSummary(os.fsencode(name).decode("utf-8", "replace"))  # a file's name need not be text
        inputs.append(entry)
        work = _InputWork(entry, classifier, builder, writer, CaptureTraces(scorers, entry.name))
        try:
            source = open_input(name, reader, ReadOptions(heads=classifier.heads))
            with progress(console, entry.name, source) as flows:
                for batch in _batches(flows):
                    work.classify(batch)
            account(entry, source)
        except CaptureError as error:
            entry.error = str(error)
        work.finish()
        problem = input_problem(entry)
        if problem:
            console.print(problem, style="red" if entry.error else "yellow", markup=False, soft_wrap=True)
    summary = builder.finish(inputs)
    writer.finish(summary)
    return summary


@dataclass
class _InputWork:
    """The way of one input's flows and traces to the writer."""

    entry: InputSummary
    classifier: Classifier
    builder: SummaryBuilder
    writer: Writer
    traces: CaptureTraces

    def classify(self, batch: list[Flow]) -> None:
        """Write the verdicts of some flows, and of the traces that are complete with them."""
        self.entry.flows += len(batch)
        accepted = [flow for flow in batch if self.classifier.accepts(flow)]
        for flow in batch:
            if not self.classifier.accepts(flow):
                self.builder.leave_out(flow)
        for flow, outcome in zip(accepted, self.classifier.classify_each(accepted), strict=True):
            if outcome is not None:
                self.traces.add(flow, outcome)
            if outcome is not None and outcome.verdict is None:
                self.builder.leave_out(flow)
                continue
            verdict = outcome.verdict if outcome is not None else None
            self.builder.add(flow, verdict)
            self.writer.add(flow, verdict, self.entry.name)
        self._write_traces()

    def finish(self) -> None:
        """Write the traces that were still open."""
        self.traces.finish()
        self._write_traces()
        self.builder.account_traces(self.traces)

    def _write_traces(self) -> None:
        while found := self.traces.ready():
            for trace in found:
                self.builder.add_trace(trace)
                self.writer.add_trace(trace)


def account(entry: InputSummary, source: FlowInput) -> None:
    """Take over what a source counted, once it has been read."""
    entry.packets = source.packets
    entry.skipped = dict(source.skipped)
    entry.warning = source.warning


def _batches(flows: Iterable[Flow]) -> Iterator[list[Flow]]:
    iterator = iter(flows)
    while batch := list(islice(iterator, BATCH_FLOWS)):
        yield batch
