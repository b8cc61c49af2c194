"""The command `tapline features`: flows of captures as the API takes them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import msgspec
import typer

from tapline.models.flow import Flow, HeadsKind
from tapline.service.command.chosen_classifier import Captures, Reader
from tapline.service.command.output_file import Output, opened
from tapline.service.command.sharing_options import Anonymise, AnonymiseKey, NoContent, chosen_sharing
from tapline.service.command.streams import fail, say
from tapline.service.python.input_run import account
from tapline.service.results.records import (
    InputSummary,
    feature_lines,
    input_problem,
    left_out_text,
    nothing_understood,
)
from tapline.service.sources.capture import CaptureError, ReadOptions
from tapline.service.sources.inputs import FlowInput, inputs_of, open_input

EXIT_FAILED = 1
EXIT_USAGE = 2


def features(
    captures: Captures,
    output: Output = None,
    tokens: Annotated[bool, typer.Option("--tokens", help="add MM4flow's tokens")] = False,
    heads: Annotated[
        HeadsKind, typer.Option(help="packet heads: headers alone, headers and payload, or none")
    ] = "header",
    everything: Annotated[bool, typer.Option("--all", help="flows without payload, too")] = False,
    no_content: NoContent = False,
    anonymise: Anonymise = False,
    anonymise_key: AnonymiseKey = None,
    reader: Reader = "auto",
) -> None:
    """Write the features of each flow, one JSON line per flow, as the API takes them back."""
    sharing = chosen_sharing(no_content, anonymise, anonymise_key)
    try:
        captures = list(inputs_of(captures))
    except CaptureError as error:
        fail(str(error), EXIT_USAGE)
    entries = [InputSummary(name) for name in captures]
    with opened(output, captures, as_utf8=True) as file:
        for entry in entries:
            try:
                source = open_input(entry.name, reader, ReadOptions(heads=heads))
                for line in feature_lines(map(sharing.flow, _counted(source, entry, everything)), tokens=tokens):
                    file.write(msgspec.json.encode(line).decode() + "\n")
                account(entry, source)
            except CaptureError as error:
                entry.error = str(error)
            for text in filter(None, (input_problem(entry), left_out_text(entry))):
                say(text)
    if any(entry.error or entry.warning for entry in entries) or nothing_understood(entries):
        raise typer.Exit(EXIT_FAILED)


def _counted(source: FlowInput, entry: InputSummary, everything: bool) -> Iterator[Flow]:
    """The flows of a source, those without payload only on request; `entry` counts all."""
    for flow in source:
        entry.flows += 1
        if everything or flow.payload_lengths:
            yield flow
