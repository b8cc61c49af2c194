"""The command line `tapline`: which command lies where, and how the process ends. The command that is called is loaded,
and no other."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from tapline.installation import version
from tapline.service.command.commands import group_of
from tapline.service.command.console import make_streams_safe, say
from tapline.service.process.log_lines import configure_logs

EXIT_FAILED = 1

_PLACES = {
    "classify": "classify_command:classify",
    "features": "features_command:features",
    "bulk": "bulk_command:bulk",
    "serve": "serve_command:serve",
    "check-config": "config_command:check_config",
    "doctor": "doctor_command:doctor",
    "backup": "backup_command:backup",
    "restore": "backup_command:restore",
    "health": "health_options:health",
    "watch": "watch_command:watch",
    "config": "config_command:app",
    "models": "models_command:app",
    "history": "history_command:app",
    "alerts": "alerts_command:app",
    "keys": "keys_command:app",
}

app = typer.Typer(
    cls=group_of({name: f"tapline.service.command.{place}" for name, place in _PLACES.items()}),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Deep models on live network traffic.",
)


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
        return False  # a command that has no engine does not load any now
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
