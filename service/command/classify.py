"""Classifies inputs one after the other and gives all to a writer; the command line's offline work."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from rich.console import Console

from tapline.service.command.terminal import progress
from tapline.service.inference.classifier import Classifier
from tapline.service.python.offline import OfflineRun, Result
from tapline.service.python.workers import Workers
from tapline.service.results.records import InputSummary, Summary, input_problem
from tapline.service.results.writers import Writer
from tapline.service.sources.inputs import ReaderName


def classify_inputs(
    names: Sequence[str],
    reader: ReaderName,
    classifier: Classifier,
    writer: Writer,
    console: Console,
    workers: Workers | None = None,
) -> Summary:
    """Classify every input that can be read; problems go to `console` and into the summary's inputs.

    Raises:
        EngineError: an engine failed, or one of `workers` has died.
    """

    def ended(entry: InputSummary) -> None:
        if problem := input_problem(entry):
            console.print(problem, style="red" if entry.error else "yellow", markup=False, soft_wrap=True)

    run = OfflineRun(
        names,
        reader,
        classifier,
        shown=lambda name, source: progress(console, name, source),
        ended=ended,
        workers=workers,
    )
    with contextlib.closing(iter(run)) as results:
        for found in results:
            if isinstance(found, Result):
                writer.add(found.flow, found.verdict, found.input)
            else:
                writer.add_trace(found)
    summary = run.summary()
    writer.finish(summary)
    return summary
