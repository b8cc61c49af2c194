"""The command `tapline serve`: its options are the table of settings, so that neither can drift from the other."""

from __future__ import annotations

import inspect
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, get_args, get_origin

import typer
from pydantic import SecretStr, ValidationError
from pydantic.fields import FieldInfo

from tapline.models.checkpoint import CheckpointError
from tapline.service.access.keys import KeysError
from tapline.service.access.tls import TlsError
from tapline.service.alerts.rule_file import AlertRulesError
from tapline.service.command.console import say
from tapline.service.engines.engine import EngineError
from tapline.service.history.database import HistoryError
from tapline.service.jobs.job_store import JobsInUseError
from tapline.service.process.data_directory import DataDirectoryError
from tapline.service.process.process_title import hide, hide_passwords
from tapline.service.settings import ENV_PREFIX, Settings
from tapline.service.sinks.output_url import OutputError
from tapline.service.sources.bus.transport import TransportError
from tapline.service.sources.capture import CaptureError, check_capture
from tapline.service.sources.zeek_process import ZeekError
from tapline.service.traces.window_state import StateError

EXIT_FAILED = 1
EXIT_USAGE = 2


def serve(**given: Any) -> None:
    """Serve the REST API and metrics; nothing leaves this machine unless you say so."""
    # imports the web framework, which other commands do without
    from tapline.service.api.server import GaveUpError, ListenError
    from tapline.service.api.server import serve as run_server

    try:
        settings = Settings(**{name: value for name, value in given.items() if value not in (None, [])})
        hide_passwords([*settings.zeek, settings.history])
        if given.get("api_key"):
            hide(given["api_key"].encode())
        if settings.replay is not None:
            check_capture(settings.replay)
        run_server(settings)
    except CaptureError as error:
        say(f"{settings.replay}: {error}")
        raise typer.Exit(EXIT_FAILED) from None
    except ValidationError as error:
        problems = [problem_text(item["loc"], item["msg"]) for item in error.errors()]
        for problem in problems:
            say(problem)
        raise typer.Exit(EXIT_USAGE) from None
    except GaveUpError as error:
        say(f"gave up: {error}")
        raise typer.Exit(EXIT_FAILED) from None
    except (ListenError, ZeekError, DataDirectoryError, JobsInUseError) as error:
        say(str(error))
        raise typer.Exit(EXIT_FAILED) from None
    except AlertRulesError as error:
        for problem in error.lines:
            say(problem)
        raise typer.Exit(EXIT_USAGE) from None
    except (
        CheckpointError,
        EngineError,
        HistoryError,
        KeysError,
        OutputError,
        StateError,
        TlsError,
        TransportError,
    ) as error:
        say(str(error))
        raise typer.Exit(EXIT_USAGE) from None


def problem_text(location: tuple[int | str, ...], message: str) -> str:
    """What is wrong with a setting, in the words of the command line."""
    flag = f"--{str(location[0]).replace('_', '-')}: " if location else ""
    return flag + message.removeprefix("Value error, ")


def _parameter(name: str, field: FieldInfo) -> inspect.Parameter:
    value = field.get_default(call_default_factory=True)
    default = "" if value in (None, False, []) else f"default: {_homely(value)}; "
    help_text = f"{field.description} [{default}env {ENV_PREFIX}{name.upper()}]"
    option = typer.Option(f"--{name.replace('_', '-')}", help=help_text, show_default=False)
    annotation: Any = Annotated[_option_type(field.annotation) | None, option]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _homely(value: object) -> object:
    """A default as it is shown: the same whoever reads it."""
    home = Path.home()
    return f"~/{value.relative_to(home)}" if isinstance(value, Path) and value.is_relative_to(home) else value


def _option_type(annotation: Any) -> Any:
    """The type of the option of a setting: secrets are typed as text, None means *not given*."""
    if get_origin(annotation) is list:
        return annotation
    kinds = [kind for kind in get_args(annotation) or (annotation,) if kind is not NoneType]
    if kinds[0] in (bool, int, float, str, Path):
        return kinds[0]
    return str if kinds[0] is SecretStr else annotation


serve.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
    [_parameter(name, field) for name, field in Settings.model_fields.items()]
)
serve.__annotations__ = {}
