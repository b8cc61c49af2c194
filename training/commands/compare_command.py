"""The command compare: options and output; what it does is in `training.comparing`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec
import typer

from tapline.training.comparing.comparison import compare
from tapline.training.comparing.comparison_text import comparison_lines, comparison_page
from tapline.training.comparing.evaluated import read_evaluated
from tapline.training.loop.run_files import whole


def register(app: typer.Typer) -> None:
    """Add the command to `tapline-train`."""
    app.command("compare", rich_help_panel="Models of flows and of traces")(compare_command)


def compare_command(
    directories: Annotated[
        list[Path],
        typer.Argument(help="Runs, directories that evaluate or evaluate-traces wrote, checkpoints; two or more."),
    ],
    output: Annotated[
        Literal["text", "json"], typer.Option("--format", help="What to write to standard output.")
    ] = "text",
    report: Annotated[Path | None, typer.Option("--report", dir_okay=False, help="A page to write beside.")] = None,
) -> None:
    """Show how runs differ: settings, figures, and the difference from the first on the same flows or traces."""
    found = compare([read_evaluated(directory) for directory in directories])
    if output == "json":
        typer.echo(msgspec.json.format(msgspec.json.encode(found), indent=2).decode())
    else:
        for line in comparison_lines(found):
            typer.echo(line)
    if report is not None:
        with whole(report) as staging:
            staging.write_text(comparison_page(found), encoding="utf-8")
