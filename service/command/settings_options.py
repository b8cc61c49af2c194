"""Options of a command that are the table of settings, so that neither can drift from the other."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, get_args, get_origin

import typer
from pydantic import SecretStr
from pydantic.fields import FieldInfo

from tapline.service.configuration.config_file import NO_FILE, default_places
from tapline.service.configuration.configuration import Configuration
from tapline.service.configuration.settings_table import homely
from tapline.service.configuration.variables import CONFIG_VARIABLE, variable
from tapline.service.settings import Settings

Config = Annotated[
    str | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help=f"file of settings, a tapline.toml, or {NO_FILE}: flags and then variables count before it [default: the "
        f"first that is there of {', '.join(str(homely(place)) for place in default_places())}; env {CONFIG_VARIABLE}]",
        show_default=False,
    ),
]


def with_settings(*, hidden: bool = False) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command an option for each setting, which it gets as keywords, beside `--config` and its own.

    `hidden`: its help leaves them out, for they stand in that of `serve`.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command, eval_str=True).parameters.values()
        entries = [entry.replace(kind=entry.KEYWORD_ONLY) for entry in own if entry.kind != entry.VAR_KEYWORD]
        entries += [_parameter(name, field, hidden) for name, field in Settings.model_fields.items()]
        command.__signature__ = inspect.Signature(entries)  # type: ignore[attr-defined]
        command.__annotations__ = {}
        return command

    return decorate


def configuration(
    config: str | None, given: Mapping[str, Any], fixed: Mapping[str, Any] | None = None
) -> Configuration:
    """What was given by options, environment and file; options that were not given are None or empty, and what the
    command has `fixed` counts before all.

    Raises:
        ConfigurationError: it cannot be used.
    """
    flags = {name: value for name, value in given.items() if value not in (None, [])}
    return Configuration({**flags, **(fixed or {})}, config)


def _parameter(name: str, field: FieldInfo, hidden: bool) -> inspect.Parameter:
    value = field.get_default(call_default_factory=True)
    default = "" if value in (None, False, []) else f"default: {homely(value)}; "
    help_text = f"{field.description} [{default}env {variable(name)}]"
    flag = name.replace("_", "-")
    names = f"--{flag}/--no-{flag}" if field.annotation is bool else f"--{flag}"
    option = typer.Option(names, help=help_text, show_default=False, hidden=hidden)
    annotation: Any = Annotated[_option_type(field.annotation) | None, option]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _option_type(annotation: Any) -> Any:
    """The type of the option of a setting: secrets are typed as text, None means *not given*."""
    if get_origin(annotation) is list:
        return annotation
    kinds = [kind for kind in get_args(annotation) or (annotation,) if kind is not NoneType]
    if kinds[0] in (bool, int, float, str, Path):
        return kinds[0]
    return str if kinds[0] is SecretStr else annotation
