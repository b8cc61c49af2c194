"""The commands `tapline backup`, beside a service that runs, and `tapline restore`, where none does."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tapline.service.backup.archive import BackupError, Table
from tapline.service.backup.kept_places import DRIFT, HISTORY, JOBS, MODELS, STATE, Places, history_file
from tapline.service.backup.making import make_backup
from tapline.service.backup.restoring import restore as put_back
from tapline.service.command.settings_options import Config, configuration
from tapline.service.command.streams import say
from tapline.service.configuration.problems import ConfigurationError

EXIT_FAILED = 1
EXIT_USAGE = 2


def _place(what: str) -> Any:
    return typer.Option(help=f"{what} [default: as of `serve`]", show_default=False)


History = Annotated[str | None, _place("the service's history")]
DataDir = Annotated[Path | None, _place("the service's data directory")]
StateDir = Annotated[Path | None, _place("the service's directory of open trace windows")]
Repository = Annotated[Path | None, _place("the service's model repository; models that ship are in no backup")]


def backup(
    to: Annotated[Path, typer.Argument(metavar="FILE", help="file to write, say tapline.tar.zst", show_default=False)],
    captures: Annotated[
        bool, typer.Option("--captures", help="with the captures of jobs that have ended, for the packets of flows")
    ] = False,
    data_dir: DataDir = None,
    history: History = None,
    state_dir: StateDir = None,
    repository: Repository = None,
    config: Config = None,
) -> None:
    """Write history, jobs, open windows and models into one file, while the service goes on."""
    try:
        places, place = _places(config, data_dir, history, state_dir, repository)
        table, size_bytes = make_backup(places, to, captures=captures)
    except (BackupError, ConfigurationError) as error:
        say(str(error))
        raise typer.Exit(EXIT_FAILED) from None
    say(f"{to}: {_told(table)}; {size_bytes / 2**20:.1f} MiB")
    if places.history is None and place != "none":
        say("the history is in a server, and not in here: keep it with its own tools, as pg_dump")


def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="what `tapline backup` wrote", show_default=False)],
    replace: Annotated[
        bool, typer.Option("--replace", help="move what is there aside, into .before-restore-TIME beside it")
    ] = False,
    data_dir: DataDir = None,
    history: History = None,
    state_dir: StateDir = None,
    repository: Repository = None,
    config: Config = None,
) -> None:
    """Put a backup back while no service runs: all of it, or nothing."""
    try:
        places, _ = _places(config, data_dir, history, state_dir, repository)
        table, aside = put_back(file, places, replace=replace)
    except (BackupError, ConfigurationError) as error:
        say(str(error))
        raise typer.Exit(EXIT_FAILED) from None
    say(f"restored {_told(table)}, of {table.made} by tapline {table.tapline}")
    for folder in aside:
        say(f"what was there before lies in {folder}")


def _places(
    config: str | None, data_dir: Path | None, history: str | None, state_dir: Path | None, repository: Path | None
) -> tuple[Places, str]:
    given = {"data_dir": data_dir, "history": history, "state_dir": state_dir, "repository": repository}
    found = configuration(config, given)
    folder, place = found.value("data_dir"), found.value("history")
    return Places(folder, history_file(place, folder), found.value("state_dir"), found.value("repository")), place


def _told(table: Table) -> str:
    parts = ["the history"] if HISTORY in table.files else []
    counts = {"jobs": JOBS, "trace models' open windows": STATE, "models": MODELS, "models' drift": DRIFT}
    parts += [f"{name}: {count}" for name, part in counts.items() if (count := table.count(part))]
    return ", ".join(parts) or "nothing was there"
