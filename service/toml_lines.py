"""Reads TOML, says what is wrong with it in words for people, and on which line of a file a value stands, which
`tomllib` does not say."""

from __future__ import annotations

import re
import tomllib
from typing import Any

from tapline.models.foreign_text import clean

_SHOWN_CHARS = 64
_CLOSINGS = ("]", '"""', "'''")
"""What the last line of a statement over several lines holds."""

MAX_READ_CHARS = 8 << 20
"""Most that is read to find statements, long ones many times; of what is beyond no line is known."""

Path = tuple[str | int, ...]
"""Where a value is: the keys of tables, and places in arrays from 0."""

_AT = re.compile(r" \(at (?:line (\d+), column \d+|end of document)\)$")
_TWICE = ("Cannot overwrite", "Cannot declare", "Cannot mutate", "Cannot redefine", "Duplicate")
"""How messages of `tomllib` begin that are about a name that is there already."""

_LINES_LOOKED_BACK = 200
"""How many lines a statement that repeats a name may have for its name to be told."""


class TomlError(ValueError):
    """A text is no TOML: on which `line`, from 1, and why."""

    def __init__(self, line: int, reason: str) -> None:
        self.line = line
        super().__init__(reason)


def read_toml(document: str) -> dict[str, Any]:
    """The tables of a document.

    Raises:
        TomlError: it is none; a name that is there twice is told with both of its lines.
    """
    try:
        return tomllib.loads(document)
    except RecursionError:
        raise TomlError(1, "expected values, got lists in lists without end") from None
    except tomllib.TOMLDecodeError as error:
        at = _AT.search(str(error))
        line = int(at[1]) if at and at[1] else document.count("\n") + 1
        reason = _AT.sub("" if at and at[1] else " at its end", str(error))
        reason = reason[:1].lower() + reason[1:]
        if str(error).startswith(_TWICE):
            line, reason = _repeated(document.splitlines(), line) or (line, reason)
        raise TomlError(line, reason) from None


def _repeated(lines: list[str], end: int) -> tuple[int, str] | None:
    """The line of a statement whose name is there already, and what to say of it; `end`: its last line."""
    for start in range(end - 1, max(-1, end - _LINES_LOOKED_BACK), -1):
        before = "\n".join(lines[:start])
        statement = _read("\n".join(lines[start:end]))
        if not statement or _read(before) is None:
            continue
        above = TomlLines(before)
        path: Path = () if lines[start].lstrip().startswith("[") else above.table
        value: Any = statement
        while isinstance(value, dict) and value and above.has((*path, next(iter(value)))):
            key = next(iter(value))
            path, value = (*path, key), value[key]
        name = ".".join(part for part in path if isinstance(part, str))
        return start + 1, f"`{clean(name, _SHOWN_CHARS)}` is there twice, first on line {above.line(path)}"
    return None


class TomlLines:
    """The lines of a document that `tomllib` has read, from 1; `table` is the last one that it opens.

    A statement that is complete by itself is one of the document, too, so each is found by reading it alone; the
    elements of an array over several lines are found likewise. Bounded by `MAX_READ_CHARS`.
    """

    def __init__(self, document: str) -> None:
        self._found: dict[Path, int] = {}
        self._tables: dict[Path, int] = {}
        lines = document.splitlines()
        self.table: Path = ()
        start = read_chars = 0
        for end in range(1, len(lines) + 1):
            if end - start > 1 and not any(closing in lines[end - 1] for closing in _CLOSINGS):
                continue
            text = "\n".join(lines[start:end])
            read_chars += len(text)
            if read_chars > MAX_READ_CHARS:
                return
            statement = _read(text)
            if statement is None:
                continue
            if lines[start].lstrip().startswith("["):
                self.table = self._header(statement)
                self._keep(self.table, start + 1)
            else:
                self._take(self.table, statement, lines[start:end], start + 1)
            start = end

    def line(self, path: Path) -> int:
        """The line of a value, or where it has none of its own, of what it stands in; 1 where nothing is known."""
        while path and path not in self._found:
            path = path[:-1]
        return self._found.get(path, 1)

    def has(self, path: Path) -> bool:
        """Whether a value is there."""
        return path in self._found

    def _header(self, statement: dict[str, Any]) -> Path:
        """The path of a table by its header: in an array of tables it is the next, or in the newest one."""
        path: Path = ()
        value: Any = statement
        while isinstance(value, dict) and value:
            key = next(iter(value))
            path, value = (*path, key), value[key]
            if isinstance(value, list):
                self._tables[path] = self._tables.get(path, -1) + 1
                return (*path, self._tables[path])
            if path in self._tables:
                path = (*path, self._tables[path])
        return path

    def _take(self, path: Path, value: Any, lines: list[str], first: int) -> None:
        """Keep where the parts of a statement stand; it begins on line `first`."""
        if isinstance(value, dict):
            for key, inner in value.items():
                self._keep((*path, key), first)
                self._take((*path, key), inner, lines, first)
        elif isinstance(value, list):
            places = _element_lines(lines, len(value)) if len(lines) > 1 else [0] * len(value)
            for place, (inner, line) in enumerate(zip(value, places, strict=True)):
                self._keep((*path, place), first + line)
                self._take((*path, place), inner, [lines[line]], first + line)

    def _keep(self, path: Path, line: int) -> None:
        """Keep where a value stands, and with it what it is the first of."""
        while path and path not in self._found:
            self._found[path] = line
            path = path[:-1]


def _read(text: str) -> dict[str, Any] | None:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return None


def _element_lines(lines: list[str], count: int) -> list[int]:
    """The line, from 0, on which each element of an array ends: by how many a line, or a few of them, hold alone."""
    found: list[int] = []
    start = 0
    for number in range(len(lines)):
        before = "" if start == 0 else "array = ["
        after = "" if number == len(lines) - 1 else "]"
        closed = _read("\n".join([before, *lines[start : number + 1], after]))
        elements: Any = next(iter(closed.values()), []) if closed else None
        if isinstance(elements, list):
            found += [number] * len(elements)
            start = number + 1
    return [*found, *[len(lines) - 1] * count][:count]
