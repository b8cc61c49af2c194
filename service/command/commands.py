"""A group of commands each of which is loaded when it is asked for: one command does without what the others need."""

from __future__ import annotations

import gc
import importlib
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

import typer
from typer.core import TyperGroup
from typer.main import get_command


def group_of(places: Mapping[str, str]) -> type[TyperGroup]:
    """A group of the commands that lie at these places, each a function or a group of its own: `MODULE:NAME`."""

    class Commands(TyperGroup):
        def __init__(self, **attributes: Any) -> None:
            super().__init__(**attributes)
            self.commands = _Loaded(places)

    return Commands


class _Loaded(MutableMapping[str, Any]):
    """Commands by name, loaded when they are taken."""

    def __init__(self, places: Mapping[str, str]) -> None:
        self._places = dict(places)
        self._commands: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._commands:
            self._commands[name] = _load(name, self._places[name])
        return self._commands[name]

    def __setitem__(self, name: str, command: Any) -> None:
        self._places.setdefault(name, "")
        self._commands[name] = command

    def __delitem__(self, name: str) -> None:
        del self._places[name]
        self._commands.pop(name, None)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def _load(name: str, place: str) -> Any:
    module, _, attribute = place.partition(":")
    gc.disable()  # what is loaded stays: looking it through for garbage takes a fifth of the time
    try:
        found = getattr(importlib.import_module(module), attribute)
    finally:
        gc.enable()
    around = typer.Typer(add_completion=False, rich_markup_mode=None)
    around.callback()(lambda: None)  # or one command would be all of it
    if isinstance(found, typer.Typer):
        around.add_typer(found, name=name)
    else:
        around.command(name)(found)
    group = get_command(around)
    assert isinstance(group, TyperGroup)
    return group.commands[name]
