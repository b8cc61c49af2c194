"""Reads a file of alert rules and the lists beside it; says of every mistake where it is and what was expected."""

from __future__ import annotations

import datetime
import difflib
import re
import tomllib
import zoneinfo
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from tapline.models.foreign_text import clean
from tapline.service.alerts.allow_lists import Entry, Members, checked_entry, entry_note, line_entry
from tapline.service.alerts.rule_faults import MAX_FOUND, AlertRulesError, Problem
from tapline.service.alerts.rule_models import (
    MAX_ENTRIES,
    MAX_RULES,
    NAME_EXPECTED,
    RULES,
    AllowList,
    ListOf,
    Rule,
    bare,
    is_name,
)
from tapline.service.alerts.time_windows import zone_of
from tapline.service.toml_lines import Path as Place
from tapline.service.toml_lines import TomlError, TomlLines, read_toml
from tapline.service.validation_words import MAX_SHOWN_CHARS, in_words
from tapline.service.validation_words import shown as _shown

MAX_FILE_BYTES = 1 << 20
MAX_LIST_BYTES = 8 << 20
_TOP = ("timezone", "list", "rule")
_EXPECTED_TOP = ": expected timezone, [list.NAME] and [[rule]]"
_LOOKED_UP: dict[str, ListOf] = {
    "host": "networks", "originator": "networks", "responder": "networks", "server_name": "server names",
    "label": "labels", "nearest": "labels", "port_label": "labels",
}  # fmt: skip
"""Which lists the conditions name that can name any."""

Lists = dict[str, Members | None]
_T = TypeVar("_T", bound=BaseModel)


@dataclass(frozen=True)
class RuleFile:
    """What a file says: rules in its order, and its lists; `paths`, all that was read for it, the file itself first.
    `notes`: what is no mistake in its lists, and hardly meant."""

    rules: list[Rule]
    lists: dict[str, Members]
    zone: datetime.tzinfo
    paths: list[Path]
    document: str = ""
    notes: tuple[Problem, ...] = ()


def read_rules(path: Path) -> RuleFile:
    """
    Raises:
        AlertRulesError: the file or a list beside it cannot be read, or has mistakes.
    """
    return _Reading(path).result()


def rules_paths(path: Path) -> list[Path]:
    """The file, and those that it names for lists as far as it can be read: what to look at for changes."""
    try:
        tables = tomllib.loads(path.read_text("utf-8")).get("list", {})
    except (OSError, ValueError):
        return [path]
    named = [table.get("file") for table in tables.values() if isinstance(table, dict)] if tables else []
    return [path, *(path.parent / name for name in named if isinstance(name, str))]


@dataclass
class _Reading:
    """One reading of a file; problems are collected, and raised together at its end."""

    path: Path
    problems: list[Problem] = field(default_factory=list)
    lines: TomlLines | None = None
    document: str = ""
    notes: list[Problem] = field(default_factory=list)

    def result(self) -> RuleFile:
        self.document = self._text(self.path, MAX_FILE_BYTES)
        try:
            tables = read_toml(self.document)
        except TomlError as error:
            raise AlertRulesError([Problem(self.path, error.line, f"this is no TOML: {error}")]) from None
        for key in tables:
            if key not in _TOP:
                self._say((key,), f"unknown key `{_shown_key(key)}`{_nearest(key, _TOP) or _EXPECTED_TOP}")
        zone = self._zone(("timezone",), tables.get("timezone", "UTC"))
        paths = [self.path]
        lists = dict(self._lists(tables.get("list", {}), zone, paths))
        rules = list(self._rules(tables.get("rule", []), lists))
        if self.problems:
            raise AlertRulesError(sorted(self.problems, key=lambda found: (found.path != self.path, found.line)))
        members = {name: found for name, found in lists.items() if found is not None}
        return RuleFile(rules, members, zone, paths, self.document, tuple(self.notes))

    def _text(self, path: Path, limit: int) -> str:
        """The text of a file.

        Raises:
            AlertRulesError: it cannot be read, or is larger than the limit.
        """
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise AlertRulesError([Problem(path, 1, "expected a file")])
        try:
            with path.open("rb") as file:
                data = file.read(limit + 1)
            if len(data) > limit:
                raise AlertRulesError([Problem(path, 1, f"expected at most {limit >> 20} MiB")])
            return data.decode("utf-8")
        except OSError as error:
            raise AlertRulesError([Problem(path, 1, f"cannot be read: {error.strerror}")]) from None
        except UnicodeDecodeError as error:
            line = data[: error.start].count(b"\n") + 1
            raise AlertRulesError([Problem(path, line, "expected UTF-8")]) from None

    def _line(self, place: Place) -> int:
        if self.lines is None:
            self.lines = TomlLines(self.document)
        return self.lines.line(place)

    def _say(self, place: Place, text: str) -> None:
        self._add(Problem(self.path, self._line(place), text))

    def _add(self, problem: Problem) -> None:
        """Take note of a mistake.

        Raises:
            AlertRulesError: there are so many that no further one is looked for.
        """
        self.problems.append(problem)
        if len(self.problems) >= MAX_FOUND:
            raise AlertRulesError(self.problems)

    def _zone(self, place: Place, name: object, title: str = "") -> datetime.tzinfo:
        try:
            return zone_of(name if isinstance(name, str) else "")
        except ValueError as error:
            near = _nearest(name, zoneinfo.available_timezones()) if isinstance(name, str) else ""
            self._say(place, f"{title}timezone: {error}, got {_shown(name)}{near}")
            return datetime.UTC

    def _lists(self, tables: object, zone: datetime.tzinfo, paths: list[Path]) -> Iterator[tuple[str, Members | None]]:
        """The lists by name, None for one of no kind."""
        if not isinstance(tables, dict):
            self._say(("list",), f"list: expected tables [list.NAME], got {_shown(tables)}")
            return
        for name, table in tables.items():
            place: Place = ("list", name)
            title = f"list {_shown_key(name)}"
            if not is_name(name):
                self._say(place, f"{title}: {NAME_EXPECTED} in its name")
            self._checked(AllowList, table, place, title)
            if not isinstance(table, dict) or table.get("of") not in get_args(ListOf):
                yield name, None
                continue
            of: ListOf = table["of"]
            entries = list(self._entries(of, table.get("entries"), place, zone))
            if isinstance(file := table.get("file"), str):
                paths.append(self.path.parent / file)
                entries += self._file_entries(of, paths[-1], place, zone)
            yield name, Members(of, entries)

    def _entries(self, of: ListOf, given: object, place: Place, zone: datetime.tzinfo) -> Iterator[Entry]:
        """Those that can be looked up; what the schema refuses is left out without a word."""
        for number, entry in enumerate(given if isinstance(given, list) else []):
            table = entry if isinstance(entry, dict) else {"value": entry}
            value, until = table.get("value"), table.get("until")
            if not isinstance(value, str) or not isinstance(until, datetime.date | None):
                continue
            try:
                entry = checked_entry(of, value, until, zone)
                if note := entry_note(of, entry):
                    self.notes.append(Problem(self.path, self._line((*place, "entries", number)), note))
                yield entry
            except ValueError as error:
                self._say((*place, "entries", number), f"list {place[-1]}: {error}, got {_shown(value)}")

    def _file_entries(self, of: ListOf, path: Path, place: Place, zone: datetime.tzinfo) -> list[Entry]:
        try:
            lines = self._text(path, MAX_LIST_BYTES).splitlines()
        except AlertRulesError as error:
            self._say((*place, "file"), f"list {place[-1]}: file: {path}: {error.problems[0].text}")
            return []
        entries: list[Entry] = []
        for number, line in enumerate(lines, 1):
            try:
                entry = line_entry(of, line, zone)
            except ValueError as error:
                self._add(Problem(path, number, f"{error}, got {_shown(line.strip())}"))
                continue
            if entry is not None:
                entries.append(entry)
                if note := entry_note(of, entry):
                    self.notes.append(Problem(path, number, note))
        if len(entries) > MAX_ENTRIES:
            self._say((*place, "file"), f"list {place[-1]}: expected at most {MAX_ENTRIES} entries, got {len(entries)}")
        return entries

    def _rules(self, tables: object, lists: Lists) -> Iterator[Rule]:
        if not isinstance(tables, list):
            self._say(("rule",), "rule: expected [[rule]], with two brackets")
            return
        if len(tables) > MAX_RULES:
            self._say(("rule",), f"expected at most {MAX_RULES} rules, got {len(tables)}")
            return
        names: set[str] = set()
        for number, table in enumerate(tables):
            place: Place = ("rule", number)
            if not isinstance(table, dict):
                self._say(place, f"rule {number + 1}: expected a table [[rule]], got {_shown(table)}")
                continue
            name = table.get("name")
            title = f"rule {_shown_key(name)}" if isinstance(name, str) else f"rule {number + 1}"
            if isinstance(name, str):
                if name in names:
                    self._say((*place, "name"), f"{title}: another rule has this name: expected one of its own")
                names.add(name)
            kind = table.get("kind", "flow")
            model = RULES.get(kind) if isinstance(kind, str) else None
            if model is None:
                near = _nearest(kind, RULES) if isinstance(kind, str) else ""
                self._say((*place, "kind"), f"{title}: kind: expected flow, trace or drift, got {_shown(kind)}{near}")
                model, table = _likely(kind, table)
            self._check_references(model, table, place, title, lists)
            rule = self._checked(model, table, place, title)
            if rule is not None:
                yield rule

    def _check_references(
        self, model: type[Rule], table: dict[str, Any], place: Place, title: str, lists: Lists
    ) -> None:
        """See that the time zone of a rule is known, and the lists that it names are there and of the right kind."""
        if isinstance(zone := table.get("timezone"), str):
            self._zone((*place, "timezone"), zone, f"{title}: ")
        for key in model.model_fields:
            for number, given in enumerate(_texts(table.get(key))):
                if key != "allow" and not bare(given).startswith("@"):
                    continue
                name = given if key == "allow" else bare(given)[1:]
                of = _LOOKED_UP.get(key)
                if name not in lists:
                    text = f"there is no [list.{_shown_key(name)}]{_nearest(name, lists)}"
                elif key != "allow" and (found := lists[name]) is not None and found.of != of:
                    text = f"expected a list of {of}, it is one of {found.of}" if of else "expected no list here"
                else:
                    continue
                self._say((*place, key, number), f"{title}: {key}: {text}, got {_shown(given)}")

    def _checked(self, model: type[_T], table: object, place: Place, title: str) -> _T | None:
        try:
            return model.model_validate(table)
        except ValidationError as error:
            told = set()
            for found in error.errors(include_url=False):
                path = tuple(part for part in found["loc"] if part not in _UNION_MEMBERS)
                if (path, in_words(found)) not in told:  # of a value of several types there is one of each
                    told.add((path, in_words(found)))
                    self._tell(model, found, (place, path), title)
            return None

    def _tell(self, model: type[BaseModel], found: ErrorDetails, at: tuple[Place, Place], title: str) -> None:
        """Say what pydantic found in the words of the others; `at`: the place of the table, and that in it."""
        place, path = at
        key = ".".join(part for part in path if isinstance(part, str))
        if found["type"] == "extra_forbidden":
            fields = _fields_at(model, path[:-1])
            near = _nearest(str(path[-1]), fields)
            others = [kind for kind, other in RULES.items() if key in other.model_fields and model in RULES.values()]
            if others:
                near = f": it is of rules of kind {' or '.join(others)}"
            self._say((*place, *path), f"{title}: unknown key `{_shown_key(key)}`{near}")
            return
        if found["type"] == "missing":
            self._say((*place, *path[:-1]), f"{title}: expected a key `{key}`, there is none")
            return
        text = in_words(found)
        if not path and found["type"] == "value_error":  # it names its own key
            named = text.partition(":")[0].split(".")
            self._say((*place, *named), f"{title}: {text}")
            return
        got = "" if isinstance(found["input"], dict) else f", got {_shown(found['input'])}"
        choices = re.findall("'([^']+)'", text) if found["type"] == "literal_error" else []
        near = _nearest(str(found["input"]), choices)
        self._say((*place, *path), f"{title}: {key}: {text}{got}{near}")


_UNION_MEMBERS = ("str", "int", "date", "datetime")
"""What pydantic puts into the place of a value of several types."""


def _likely(kind: object, table: dict[str, Any]) -> tuple[type[Rule], dict[str, Any]]:
    """The model by which to look at the rest of a rule whose kind is none, and that rest: by the nearest kind, else the
    one that has most of its keys."""
    near = difflib.get_close_matches(kind.lower(), RULES, n=1) if isinstance(kind, str) else []
    likely = near[0] if near else max(RULES, key=lambda name: len(table.keys() & RULES[name].model_fields.keys()))
    return RULES[likely], {**table, "kind": likely}


def _fields_at(model: type[BaseModel], path: Iterable[str | int]) -> list[str]:
    """The keys of the table at a place of a model."""
    for part in path:
        if not isinstance(part, str):
            continue
        found = next(iter(_models_in(model.model_fields[part].annotation)), None)
        if found is None:
            return []
        model = found
    return list(model.model_fields)


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in getattr(annotation, "__args__", ()):
        yield from _models_in(inner)


def _nearest(name: str, names: Iterable[str]) -> str:
    found = difflib.get_close_matches(name.lower(), list(names), n=1)
    return f", did you mean `{found[0]}`?" if found else ""


def _texts(value: object) -> list[str]:
    """The texts of a condition, as a list where it is one."""
    return [text for text in (value if isinstance(value, list) else [value]) if isinstance(text, str)]


def _shown_key(key: str) -> str:
    return clean(key, MAX_SHOWN_CHARS)
