"""CSV tables as people and spreadsheets write them: with a byte-order mark or in UTF-16, separated by comma, semicolon
or tab, with a line `sep=;` before, columns in any case. What the columns mean belongs to `labels`."""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

from tapline.models.foreign_text import clean

_SEPARATORS = ",;\t|"
_SHOWN, _SHOWN_CHARACTERS = 30, 40
"""Columns that an error names, and how much of each name."""
_UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class TableError(ValueError):
    """A table cannot be read; the message says why."""


class Table:
    """The rows of a CSV file that has the columns `needed`, each as its stripped fields by column in lower case.

    Raises:
        TableError: it is unreadable, or a column is missing.
    """

    def __init__(self, path: Path, needed: Sequence[str]) -> None:
        self._path = path
        try:
            self.content = path.read_bytes()
        except OSError as error:
            raise TableError(f"{path}: not a readable CSV table: {error.strerror}") from None
        self._lines = io.StringIO(_decoded(path, self.content), newline="")
        first = self._lines.readline()
        self._header_line = 1
        separator = ""
        if first[:4].lower() == "sep=":
            separator = first[4:5]
            first = self._lines.readline()
            self._header_line = 2
        separator = separator or max(_SEPARATORS, key=first.count)
        self._separator = separator
        self.columns = [name.strip().lower() for name in next(csv.reader([first], delimiter=separator), [])]
        if not any(self.columns):
            raise TableError(f"{path}: empty: expected a CSV table whose first line names its columns")
        if missing := [name for name in needed if name.lower() not in self.columns]:
            raise TableError(f"{path}: no column {missing[0]}; expected {','.join(needed)}; {self.has}")

    @property
    def has(self) -> str:
        """Which columns there are, as errors say it."""
        more = f" and {len(self.columns) - _SHOWN} more" if len(self.columns) > _SHOWN else ""
        return f"it has {', '.join(clean(name[:_SHOWN_CHARACTERS]) for name in self.columns[:_SHOWN])}{more}"

    def __iter__(self) -> Iterator[tuple[int, dict[str, str]]]:
        """Each row with the number of its line."""
        reader = csv.reader(self._lines, delimiter=self._separator)
        try:
            for values in reader:
                if values:
                    padded = values + [""] * (len(self.columns) - len(values))
                    row = {name: value.strip() for name, value in zip(self.columns, padded, strict=False)}
                    yield self._header_line + reader.line_num, row
        except csv.Error as error:
            raise TableError(f"{self._path}: not a readable CSV table: {error}") from None


def _decoded(path: Path, content: bytes) -> str:
    """The text of a table, by its byte-order mark, else UTF-8; what is not UTF-8 is a Windows code page."""
    for encoding in ("utf-16",) if content.startswith(_UTF16_MARKS) else ("utf-8-sig", "cp1252"):
        try:
            text = content.decode(encoding)
        except UnicodeDecodeError:
            continue
        if "\0" not in text:
            return text
    raise TableError(f"{path}: not a readable CSV table: neither UTF-8 nor UTF-16 text")
