"""The command `tapline doctor`: what a machine lacks for the settings that are given, and what to do about it."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from typing import Annotated, Any, Literal

import typer
from rich.table import Table
from rich.text import Text

from tapline.service.command.console import make_console
from tapline.service.command.settings_options import Config, configuration, with_settings
from tapline.service.command.streams import say
from tapline.service.configuration.problems import ConfigurationError
from tapline.service.doctor.finding import Finding, Outcome

EXIT_FAILED = 1
EXIT_USAGE = 2

_STYLES: dict[Outcome, str] = {"ok": "green", "warning": "yellow", "problem": "bold red", "not applicable": "dim"}


@with_settings(hidden=True)
def doctor(
    config: Config = None,
    format_: Annotated[Literal["text", "json"], typer.Option("--format", help="how to write it")] = "text",
    **given: Any,
) -> None:
    """Check a machine for what it is to do: Zeek, interface, rights, GPU, checkpoints, disk, port, clock.

    Takes every option of `tapline serve` (--interface eth0, --data-dir, ...) and checks for what they ask. Nothing is
    changed. Exit status: 0 where nothing is a problem, 1 where something is, 2 for a configuration that is refused.
    """
    from tapline.service.doctor.doctor import examine  # imports what serves, which other commands do without

    try:
        settings = configuration(config, given).settings()
    except ConfigurationError as error:
        for problem in error.problems:
            say(problem)
        raise typer.Exit(EXIT_USAGE) from None
    console, counts, found = make_console(), Counter[Outcome](), []
    for finding in examine(settings):
        counts[finding.outcome] += 1
        found.append(asdict(finding))
        if format_ == "text":
            console.print(_drawn(finding))
    if format_ == "json":
        typer.echo(json.dumps({"findings": found, "problems": counts["problem"]}, indent=2))
    else:
        console.print(f"{_counted(counts['problem'], 'problem')}, {_counted(counts['warning'], 'warning')}.")
    if counts["problem"]:
        raise typer.Exit(EXIT_FAILED)


def _drawn(finding: Finding) -> Table:
    """The outcome beside what was found, and below that what to do."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(width=14)
    table.add_column(overflow="fold")
    outcome = Text(finding.outcome, style=_STYLES[finding.outcome])
    table.add_row(outcome, Text.assemble((finding.what, "bold"), f": {finding.found}"))
    if finding.advice:
        table.add_row("", Text(f"> {finding.advice}"))
    return table


def _counted(count: int, what: str) -> str:
    return f"{count or 'no'} {what}{'' if count == 1 else 's'}"
