"""The command `tapline classify`: its options, and what they have to do with each other."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated

import typer

from tapline.service.command.chosen_classifier import (
    CASCADE_HELP,
    Captures,
    Engine,
    FlowModel,
    Reader,
    ReadPorts,
    Traces,
    chosen_run,
)
from tapline.service.command.classify import classify_inputs
from tapline.service.command.console import make_console
from tapline.service.command.flow_rows import SORT_HELP
from tapline.service.command.output import Format, Writers, report_writer, writer
from tapline.service.command.output_file import Output, opened
from tapline.service.command.sharing_options import Anonymise, AnonymiseKey, NoContent, chosen_sharing
from tapline.service.command.streams import fail
from tapline.service.engines.engine import Cascade, EngineError
from tapline.service.inference.trace_loading import NO_TRACES
from tapline.service.python.arguments import MAX_PROCESSES
from tapline.service.results.records import Summary, left_out_text, nothing_understood
from tapline.service.results.selection import Sort
from tapline.service.results.sharing import SharedWriter
from tapline.service.results.where import SYNTAX, Where, WhereError, WhereWriter
from tapline.service.results.writers import Show, Writer
from tapline.service.sources.capture import CaptureError
from tapline.service.sources.inputs import inputs_of

EXIT_FAILED = 1
EXIT_USAGE = 2


FormatName = Annotated[Format, typer.Option("--format", "-f", help="how to write the result")]
MinPackets = Annotated[
    int | None, typer.Option(min=1, help="least payload packets of a flow [default: the checkpoint's]")
]
Scores = Annotated[bool, typer.Option("--scores", help="add the network's logits to each verdict (JSON and NDJSON)")]
MayAnswer = Annotated[Cascade, typer.Option(help=CASCADE_HELP)]
Shown = Annotated[Show, typer.Option(help="what to write; a CSV of all is one of flows")]
Limit = Annotated[
    int,
    typer.Option(
        min=0, help="rows of a table, those that come first by --sort; 0 for all; captures are read whole all the same"
    ),
]
Order = Annotated[Sort, typer.Option(help=SORT_HELP)]
Conditions = Annotated[
    list[str] | None,
    typer.Option(metavar="CONDITIONS", help=f"write only flows and traces that meet {SYNTAX}; repeatable"),
]
Report = Annotated[
    Path | None, typer.Option(metavar="HTML", help="write a page to give away as well: all of it in one file")
]
Processes = Annotated[
    int,
    typer.Option(
        min=1,
        max=MAX_PROCESSES,
        metavar="N",
        help="processes that compute: of several captures each in one, of one capture the flows; with its share of the "
        "cores each",
    ),
]


def classify(
    captures: Captures,
    format_: FormatName = "table",
    output: Output = None,
    checkpoint: FlowModel = None,
    min_packets: MinPackets = None,
    scores: Scores = False,
    ports: ReadPorts = "on",
    cascade: MayAnswer = "on",
    traces: Traces = None,
    show: Shown = "all",
    limit: Limit = 50,
    sort: Order = "time",
    where: Conditions = None,
    report: Report = None,
    no_content: NoContent = False,
    anonymise: Anonymise = False,
    anonymise_key: AnonymiseKey = None,
    reader: Reader = "auto",
    engine: Engine = "onnx",
    processes: Processes = 1,
) -> None:
    """Say what each flow and each trace of a capture is."""
    errors = make_console(stderr=True)
    if report is not None and output is not None and report.resolve() == output.resolve():
        fail(f"{report}: both --report and --output: give two files", EXIT_USAGE)
    sharing = chosen_sharing(no_content, anonymise, anonymise_key)
    try:
        captures, wanted = list(inputs_of(captures)), Where(where or [])
    except (CaptureError, WhereError) as error:
        fail(str(error), EXIT_USAGE)
    classifier, workers = chosen_run(
        checkpoint, [NO_TRACES] if show == "flows" else traces or [], engine, errors, processes=processes,
        min_packets=min_packets, with_scores=scores, ports=ports == "on", cascade=cascade == "on",
    )  # fmt: skip
    if show == "traces" and not classifier.trace_engines:
        fail("no trace model, so there are no traces to show: give --traces NAME or --traces DIR", EXIT_USAGE)
    with opened(output, captures, as_utf8=format_ != "table") as file, contextlib.ExitStack() as stack:
        target: Writer = writer(format_, file, limit, show, sort)
        if report is not None:
            target = Writers([target, report_writer(stack.enter_context(opened(report, captures)))])
        target = chosen = WhereWriter(SharedWriter(target, sharing), wanted)
        try:
            summary = classify_inputs(captures, reader, classifier, target, errors, workers)
        except EngineError as error:
            fail(str(error), EXIT_FAILED)
    if wanted:
        errors.print(chosen.account, style="dim")
    if format_ in ("csv", "ndjson"):
        for text in filter(None, map(left_out_text, summary.inputs)):
            errors.print(text, style="dim", soft_wrap=True)
    if _is_incomplete(summary):
        raise typer.Exit(EXIT_FAILED)


def _is_incomplete(summary: Summary) -> bool:
    """Whether an input could not be read to its end, or a flow or trace has no verdict that should have one."""
    failed = summary.failed + sum(entry.failed + entry.unread for entry in summary.traces)
    unread = any(entry.error or entry.warning for entry in summary.inputs)
    return bool(failed) or unread or nothing_understood(summary.inputs)
