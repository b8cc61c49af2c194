"""Classifies inputs one after the other and accounts for every flow; the command line's offline work."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from rich.console import Console

from models.flow import Flow
from service.classifier import Classifier
from service.inputs import FlowInput, ReaderName, open_input
from service.output import Writer
from service.report import InputSummary, Summary, SummaryBuilder
from service.sources.capture import CaptureError, ReadOptions
from service.terminal import input_problem, progress

BATCH_FLOWS = 512


def classify_inputs(
    names: Sequence[str],
    reader: ReaderName,
    classifier: Classifier,
    writer: Writer,
    console: Console,
) -> Summary:
    """Classify every input that can be read; problems go to `console` and into the summary's inputs."""
    builder = SummaryBuilder(classifier.checkpoint)
    inputs = []
    for name in names:
        entry = InputSummary(name)
        inputs.append(entry)
        try:
            source = open_input(name, reader, ReadOptions(heads="none"))
            with progress(console, name, source) as flows:
                for batch in _batches(flows):
                    _classify_batch(batch, entry, classifier, builder, writer)
            _account(entry, source)
        except CaptureError as error:
            entry.error = str(error)
        problem = input_problem(entry)
        if problem:
            console.print(problem, style="red" if entry.error else "yellow", markup=False, soft_wrap=True)
    summary = builder.finish(inputs)
    writer.finish(summary)
    return summary


def _classify_batch(
    batch: list[Flow], entry: InputSummary, classifier: Classifier, builder: SummaryBuilder, writer: Writer
) -> None:
    entry.flows += len(batch)
    accepted = [flow for flow in batch if classifier.accepts(flow)]
    for flow in batch:
        if not classifier.accepts(flow):
            builder.leave_out(flow)
    for flow, outcome in zip(accepted, classifier.classify(accepted), strict=True):
        if outcome.verdict is None:
            builder.leave_out(flow)
            continue
        builder.add(flow, outcome.verdict)
        writer.add(flow, outcome.verdict, entry.name)


def _account(entry: InputSummary, source: FlowInput) -> None:
    entry.packets = source.packets
    entry.skipped = dict(source.skipped)
    entry.warning = source.warning


def _batches(flows: Iterable[Flow]) -> Iterator[list[Flow]]:
    iterator = iter(flows)
    while batch := list(islice(iterator, BATCH_FLOWS)):
        yield batch
