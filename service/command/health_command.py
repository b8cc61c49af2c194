"""The command `tapline health`: says whether a service answers."""

from __future__ import annotations

from typing import Annotated

import typer

from tapline.service.command.health import HealthError
from tapline.service.command.health import health as ask_health
from tapline.service.command.settings_options import Config
from tapline.service.command.streams import fail, say
from tapline.service.configuration.problems import ConfigurationError

EXIT_FAILED = 1
EXIT_USAGE = 2


def health(
    pid: Annotated[
        int | None, typer.Option(min=1, help="the service that is this process, wherever its own flags let it listen")
    ] = None,
    config: Config = None,
) -> None:
    """Say whether the service of this environment answers: status 0 if it does, 1 if not."""
    try:
        typer.echo(f"{ask_health(pid, config)} answers")
    except ConfigurationError as error:
        for problem in error.problems:
            say(problem)
        raise typer.Exit(EXIT_USAGE) from None
    except HealthError as error:
        fail(str(error), EXIT_FAILED)
