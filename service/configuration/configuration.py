"""What was given by flags, environment and file, in this order, and the settings that come of it."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args
from urllib.parse import urlsplit

from pydantic import SecretStr, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from tapline.service.configuration.config_file import ConfigFile, find_file, read_file
from tapline.service.configuration.problems import ConfigurationError
from tapline.service.configuration.variables import CONFIG_VARIABLE, linked, misspelt, variable
from tapline.service.settings import Settings, is_list
from tapline.service.validation_words import sentences, shown

Means = Literal["flag", "environment", "file", "default"]


@dataclass(frozen=True)
class Origin:
    """By which means a setting was given, and where: `--port`, `TAPLINE_PORT` or `/etc/tapline/tapline.toml:3`."""

    means: Means
    where: str = ""


class Configuration:
    """Everything that was given; of each setting what counts, and where it came from."""

    def __init__(
        self, flags: Mapping[str, Any], file: str | None = None, environment: Mapping[str, str] = os.environ
    ) -> None:
        """Read the file, which is that of `TAPLINE_CONFIG` or of a default place where none is named.

        `flags`: values by the names of settings; what is not among them was not given.

        Raises:
            ConfigurationError: the file cannot be used, or a name in it or of the environment is misspelt; what is
                wrong with values is told, too.
        """
        names = Settings.model_fields
        problems = misspelt(environment, names)
        link = linked(environment)
        problems += [link] if link is not None else []
        named = file if file is not None else environment.get(CONFIG_VARIABLE)
        if named is not None and not named.strip():
            raise ConfigurationError([f"{'--config' if file is not None else CONFIG_VARIABLE} is empty: name a file"])
        self._flags = flags
        self._environment = {name.upper(): value for name, value in environment.items()}
        self.file: ConfigFile | None = None
        try:
            path = find_file(named)
            self.file = read_file(path, names) if path is not None else None
            problems += [*self.file.problems, *_others_secrets(self.file)] if self.file is not None else []
        except ConfigurationError as error:
            problems += error.problems
        if problems:
            values = self._value_problems(whole=False)
            raise ConfigurationError(
                [*problems, *(said for said in values if not link or variable("port") not in said)]
            )

    def origin(self, name: str) -> Origin:
        """Where the value of a setting comes from."""
        if name in self._flags:
            return Origin("flag", f"--{name.replace('_', '-')}")
        if variable(name) in self._environment:
            return Origin("environment", variable(name))
        if self.file is not None and name in self.file.values:
            return Origin("file", self.file.where(name))
        return Origin("default")

    def settings(self) -> Settings:
        """The settings.

        Raises:
            ConfigurationError: values are not what was expected, or do not go together.
        """
        if problems := self._value_problems(whole=True):
            raise ConfigurationError(problems)
        return Settings(**self._given())

    def _given(self) -> dict[str, Any]:
        """What flags and the file give; the environment is read by the settings themselves.

        Raises:
            ConfigurationError: this user has no home.
        """
        found = {name: _at_home(name, value) for name, value in self._in_file() if self.origin(name).means == "file"}
        return {**found, **self._flags}

    def _value_problems(self, *, whole: bool) -> list[str]:
        """What is wrong with values, and where that is nothing and they are the `whole`, with how they go together."""
        try:
            given = self._given()
        except ConfigurationError as error:
            return error.problems
        named = {name: self._environment.get(variable(name)) for name in Settings.model_fields} | given
        empty = [name for name, value in named.items() if _is_empty(name, value)]
        without = {name: Settings.model_fields[name].get_default(call_default_factory=True) for name in empty}
        problems = [self._empty(name) for name in sorted(empty, key=self._order)]
        try:
            Settings(**given | without)
        except ValidationError as error:
            for item in error.errors():
                if item["loc"] or (whole and not problems):
                    problems += self._problems(item)
        return problems

    def _order(self, name: str) -> int:
        """By its line where it stands in the file."""
        return self.file.lines.get(name, 0) if self.file is not None else 0

    def value(self, name: str) -> Any:
        """One setting, checked by itself: for commands that do with few.

        Raises:
            ConfigurationError: it is not what was expected.
        """
        field, origin = Settings.model_fields[name], self.origin(name)
        given: Any
        match origin.means:
            case "flag":
                given = self._flags[name]
            case "environment":
                given = self._environment[variable(name)]
            case "file":
                given = _at_home(name, dict(self._in_file())[name])
            case "default":
                return field.get_default(call_default_factory=True)
        if _is_empty(name, given):
            raise ConfigurationError([self._empty(name)])
        try:
            kind: Any = Annotated[field.annotation, field]
            return TypeAdapter(kind).validate_python(given)
        except ValidationError as error:
            raise ConfigurationError(
                text for item in error.errors() for text in self._problems({**item, "loc": (name, *item["loc"])})
            ) from None

    def _in_file(self) -> Collection[tuple[str, object]]:
        return self.file.values.items() if self.file is not None else ()

    def _empty(self, name: str) -> str:
        origin = self.origin(name)
        told = f"{origin.where}: {name}" if origin.means == "file" else origin.where
        return f"{told} is empty: give it a value, or leave it out"

    def _problems(self, item: ErrorDetails) -> list[str]:
        """Sentences about a value, with the place where it was given."""
        if not item["loc"]:
            return list(sentences(item))
        name = str(item["loc"][0])
        origin = self.origin(name)
        where = f"{origin.where}: {name}" if origin.means == "file" else origin.where or name
        is_shown = item["type"] != "value_error" and not _may_hide(name, item["input"])
        came = f", got {shown(item['input'])}" if is_shown else ""
        return [f"{where}: {text}{came}" for text in sentences(item)]


def _may_hide(name: str, value: object) -> bool:
    """Whether a value may hold a secret."""
    is_many = is_list(Settings.model_fields[name])
    return SecretStr in _kinds(name) or is_many or _has_password(value) or name == "history"


def _is_empty(name: str, value: object) -> bool:
    return isinstance(value, str) and not value.strip() and not is_list(Settings.model_fields[name])


def _at_home(name: str, value: object) -> object:
    """A path with its `~` put out in full, which a shell does for flags and nobody for a file.

    Raises:
        ConfigurationError: this user has no home.
    """
    if Path in _kinds(name) and isinstance(value, str) and value.startswith("~"):
        try:
            return Path(value).expanduser()
        except RuntimeError:
            raise ConfigurationError([f"{name}: {value}: this user has no home: give the path in full"]) from None
    return value


def _kinds(name: str) -> tuple[Any, ...]:
    annotation = Settings.model_fields[name].annotation
    return get_args(annotation) or (annotation,)


def _others_secrets(file: ConfigFile) -> list[str]:
    """A sentence for every secret in a file that everybody on this machine may read."""
    if not file.others_read:
        return []
    return [
        f"{file.where(name)}: {name}: a secret in a file that everybody may read: chmod o-r {file.path}, or give it in "
        f"the environment ({variable(name)})"
        for name, value in file.values.items()
        if SecretStr in _kinds(name) or _has_password(value)
    ]


def _has_password(value: object) -> bool:
    texts = value if isinstance(value, list) else [value]
    return any(isinstance(text, str) and "://" in text and _password(text) for text in texts)


def _password(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.password is not None or "password=" in parts.query.lower()
    except ValueError:
        return True  # broken, and of unknown content
