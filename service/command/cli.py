"""The command line `tapline`: its commands by name, each loaded when it is asked for, and how it ends."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator, MutableMapping
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from tapline.installation import version
from tapline.service.command.streams import make_streams_safe, say
from tapline.service.log_lines import configure_logs

EXIT_FAILED = 1

COMMANDS = {
    "classify": "classify_command:classify",
    "features": "features_command:features",
    "bulk": "bulk_command:bulk",
    "serve": "serve_command:serve",
    "check-config": "config_command:check_config",
    "doctor": "doctor_command:doctor",
    "backup": "backup_command:backup",
    "restore": "backup_command:restore",
    "health": "health_command:health",
    "watch": "watch_command:watch",
    "config": "config_command:app",
    "models": "models_command:app",
    "history": "history_command:app",
    "alerts": "alerts_command:app",
    "keys": "keys_command:app",
}
"""Module of this room, and in it a function, or a `typer.Typer` of several commands; in the order of `--help`."""

_STYLE: dict[str, Any] = {"add_completion": False, "pretty_exceptions_enable": False, "rich_markup_mode": None}


class _Commands(MutableMapping[str, Any]):
    """The commands by name; one that is not asked for is not loaded, so that a service holds only what it runs."""

    def __init__(self) -> None:
        self._loaded: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._loaded:
            self._loaded[name] = _load(name, COMMANDS[name])
        return self._loaded[name]

    def __setitem__(self, name: str, command: Any) -> None:
        self._loaded[name] = command

    def __delitem__(self, name: str) -> None:
        raise TypeError("a command stays")

    def __iter__(self) -> Iterator[str]:
        return iter(COMMANDS)

    def __len__(self) -> int:
        return len(COMMANDS)


def _load(name: str, where: str) -> Any:
    module, _, attribute = where.partition(":")
    gc.disable()  # what is loaded stays: to look it through for garbage is a fifth of the work
    try:
        found = getattr(import_module(f"{__package__}.{module}"), attribute)
    finally:
        gc.enable()
    around = typer.Typer(**_STYLE)
    around.callback()(lambda: None)  # with it, what is inside keeps its name
    if isinstance(found, typer.Typer):
        around.add_typer(found, name=name)
    else:
        around.command(name)(found)
    group: Any = get_command(around)
    return group.commands[name]


class _Group(TyperGroup):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.commands = _Commands()


app = typer.Typer(cls=_Group, no_args_is_help=True, help="Deep models on live network traffic.", **_STYLE)


def main() -> None:
    """Run the command line; a closed pipe ends it quietly, a full disk with a sentence."""
    make_streams_safe()
    configure_logs()
    try:
        app()
    except BrokenPipeError:
        _forget_output()
        sys.exit(EXIT_FAILED)
    except OSError as error:
        _forget_output()
        say(f"cannot write the result: {error.strerror}")
        sys.exit(EXIT_FAILED)
    except SystemExit as end:
        if _engine_hangs():  # nothing waits for it
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(end.code if isinstance(end.code, int) else EXIT_FAILED)
        raise


def _engine_hangs() -> bool:
    if "tapline.service.engines.thread" not in sys.modules:
        return False  # nor does a command without an engine load numpy now
    from tapline.service.engines.thread import hanging_engine

    return hanging_engine()


def _forget_output() -> None:
    """Keep Python from flushing what cannot be written when it exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tapline {version()}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    """Options that come before any command."""
