"""Which line of a TOML file a value stands on, which `tomllib` does not say."""

from __future__ import annotations

import tomllib
from typing import Any

_CLOSINGS = ("]", '"""', "'''")
"""What the last line of a statement over several lines holds."""

MAX_READ_CHARS = 8 << 20
"""Most that is read to find statements, long ones many times; of what is beyond no line is known."""

Path = tuple[str | int, ...]
"""Where a value is: the keys of tables, and places in arrays from 0."""


class TomlLines:
    """The lines of a document that `tomllib` has read, from 1.

    A statement that is complete by itself is one of the document, too, so each is found by reading it alone; the
    elements of an array over several lines are found likewise. Bounded by `MAX_READ_CHARS`.
    """

    def __init__(self, document: str) -> None:
        self._found: dict[Path, int] = {}
        self._tables: dict[Path, int] = {}
        lines = document.splitlines()
        table: Path = ()
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
                table = self._header(statement, is_array=lines[start].lstrip().startswith("[["))
                self._keep(table, start + 1)
            else:
                self._take(table, statement, lines[start:end], start + 1)
            start = end

    def line(self, path: Path) -> int:
        """The line of a value, or where it has none of its own, of what it stands in; 1 where nothing is known."""
        while path and path not in self._found:
            path = path[:-1]
        return self._found.get(path, 1)

    def _header(self, statement: dict[str, Any], *, is_array: bool) -> Path:
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
        self._found.setdefault(path, line)


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
