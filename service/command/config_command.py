"""The commands `tapline check-config` and `tapline config`: what settings come to and where each came from, and a file
to begin with."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tapline.service.access.keys import KeysError
from tapline.service.alerts.rule_faults import AlertRulesError
from tapline.service.alerts.rule_file import read_rules
from tapline.service.command.console import make_console
from tapline.service.command.settings_options import Config, configuration, with_settings
from tapline.service.command.streams import say
from tapline.service.configuration.configuration import Configuration
from tapline.service.configuration.exposure import TITLES, Exposure, exposures
from tapline.service.configuration.problems import ConfigurationError
from tapline.service.configuration.settings_table import example
from tapline.service.settings import Settings

EXIT_USAGE = 2

app = typer.Typer(no_args_is_help=True, help="Write a file of settings to begin with.")


@app.command("example")
def example_command() -> None:
    """Print a tapline.toml with every setting, its default and what it is, all of it commented out."""
    typer.echo(example(), nl=False)


@with_settings(hidden=True)
def check_config(
    config: Config = None,
    format_: Annotated[Literal["text", "json"], typer.Option("--format", help="how to write it")] = "text",
    all_: Annotated[bool, typer.Option("--all", help="settings that have their defaults, too")] = False,
    **given: Any,
) -> None:
    """Say what a configuration exposes and where each setting came from; takes every option of `tapline serve`.

    Nothing is started. Exit status: 0 where `tapline serve` would take it, 2 where not; what is wrong is said then.
    """
    try:
        found = configuration(config, given)
        settings = found.settings()
        exposed = exposures(settings)
        if settings.alerts is not None:
            read_rules(settings.alerts)
    except (ConfigurationError, AlertRulesError, KeysError) as error:
        problems = error.problems if not isinstance(error, KeysError) else [error]
        if format_ == "json":
            typer.echo(json.dumps({"problems": list(map(str, problems))}, indent=2))
        for problem in problems:
            say(str(problem))
        raise typer.Exit(EXIT_USAGE) from None
    if format_ == "json":
        typer.echo(json.dumps(_as_json(found, settings, exposed), indent=2))
        return
    console = make_console()
    _draw_exposed(console, exposed)
    _draw_settings(console, found, settings, all_)


def _as_json(found: Configuration, settings: Settings, exposed: Iterable[Exposure]) -> dict[str, Any]:
    shown = settings.model_dump(mode="json")
    return {
        "problems": [],
        "file": str(found.file.path) if found.file is not None else None,
        "exposed": [
            {"section": one.section, "what": one.what, "detail": one.detail, "open": one.is_open} for one in exposed
        ],
        "settings": {
            name: {"value": value, "from": found.origin(name).means, "where": found.origin(name).where}
            for name, value in shown.items()
        },
    }


def _draw_exposed(console: Console, exposed: Iterable[Exposure]) -> None:
    entries = list(exposed)
    for section, title in TITLES.items():
        rows = [entry for entry in entries if entry.section == section]
        if not rows:
            continue
        console.print(Text(title, style="bold"))
        table = Table(box=None, show_header=False, padding=(0, 1, 0, 0))
        table.add_column(width=1)
        table.add_column(overflow="fold", max_width=max(16, console.width // 2))
        table.add_column(overflow="fold")
        for row in rows:
            style = "yellow" if row.is_open else ""
            table.add_row("!" if row.is_open else "", Text(row.what, style=style), Text(row.detail, style=style))
        console.print(table)


def _draw_settings(console: Console, found: Configuration, settings: Settings, everything: bool) -> None:
    """The settings that were given with their places, and the others on request."""
    shown = settings.model_dump(mode="json")
    given = [name for name in shown if everything or found.origin(name).means != "default"]
    console.print(Text("Settings", style="bold"))
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for _ in range(3):
        table.add_column(overflow="fold")
    for name in given:
        origin = found.origin(name)
        table.add_row(
            Text(f"  {name}"), Text(_value_text(shown[name])), Text(origin.where or origin.means, style="dim")
        )
    if given:
        console.print(table)
    if len(given) < len(shown):
        others = "Every setting has its" if not given else f"{len(shown) - len(given)} others have their"
        console.print(Text(f"  {others} default; --all shows them", style="dim"), soft_wrap=True)
    if found.file is None:
        console.print(Text("  no file was read", style="dim"))


def _value_text(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    return "not set" if value is None else str(value)
