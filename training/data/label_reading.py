"""Reads the tables of `label_table`: CSV as people, spreadsheets and other tools write it, in any of their columns."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tapline.training.data import label_columns as c
from tapline.training.data.label_map import LabelError
from tapline.training.data.label_table import NO_TIME, TOLERANCE_SECONDS, JoinedBy, Key, LabelTable, Row, path_parts
from tapline.training.data.tables import Table, TableError

_EXPECTED = "expected an IP protocol, two addresses and two ports, or a uid, and a time or a capture"


@dataclass(frozen=True)
class _Options:
    """As the arguments of `read_labels`."""

    column: str
    confidence: Sequence[str]
    tolerance_seconds: float
    shift_seconds: float
    called: Sequence[str]


def read_labels(
    path: Path,
    column: str = "",
    confidence: Sequence[str] = (),
    *,
    tolerance_seconds: float = TOLERANCE_SECONDS,
    shift_seconds: float = 0.0,
    called: Sequence[str] = c.LABEL,
) -> LabelTable:
    """Read a CSV table of labels, or of what a tool said.

    Args:
        path: of the table.
        column: that holds the label, "": the first that is `called` as one, else `protocol` beside a column `l4`.
        confidence: rows whose column `confidence` begins with one of these are used, without any all.
        tolerance_seconds: by how much the start of a flow and the time of its row may differ.
        shift_seconds: what is added to times before.
        called: names of columns of labels.

    Raises:
        LabelError: a column is missing, a uid or a capture has two labels, or no row can be used. A row without a label
            is left out, one whose address, port or time is none is malformed; both are counted.
    """
    return _Reader(path, _Options(column, confidence, tolerance_seconds, shift_seconds, called)).read()


class _Reader:
    """Reads one table."""

    def __init__(self, path: Path, options: _Options) -> None:
        self._path, self._options = path, options
        try:
            self._source = Table(path, [])
        except TableError as error:
            raise LabelError(str(error)) from None
        columns = self._source.columns
        self._label = options.column.lower() or c.find_column(columns, options.called)
        if not self._label and "l4" in columns:  # as nDPI's tables have it
            self._label = c.find_column(columns, ("protocol",))
        self._uid, self._community, self._capture, self._time = (
            c.find_column(columns, names, self._label) for names in (c.UID, c.COMMUNITY, c.CAPTURE, c.TIME)
        )
        self._ends = [c.find_column(columns, names, self._label) for names in c.ENDPOINTS]
        self._subject = c.find_column(columns, c.SUBJECT, self._label)
        self._check(columns)
        settings = f"{self._label} {' '.join(options.confidence)} {options.tolerance_seconds} {options.shift_seconds}"
        self._table = LabelTable(
            path.name,
            hashlib.sha256(self._source.content + settings.encode()).hexdigest(),
            round(options.tolerance_seconds * 1e6),
            columns=tuple(columns),
        )
        self._first: defaultdict[str, dict[Key, Row]] = defaultdict(dict)

    def _check(self, columns: Sequence[str]) -> None:
        has = self._source.has
        if self._options.column and self._label not in columns:
            raise LabelError(
                f"{self._path}: no column {self._options.column}; {has}: name the one with the label, --column NAME"
            )
        if self._options.confidence and "confidence" not in columns:
            raise LabelError(f"{self._path}: no column confidence, by which rows were to be chosen; {has}")
        if not self._label:
            what = "name yours, --column NAME" if self._options.called == c.LABEL else "rename yours"
            raise LabelError(
                f"{self._path}: no column of labels: expected one called {' or '.join(self._options.called)}; {has}: "
                f"{what}"
            )
        some = [name for name in self._ends if name]
        if some and not all(self._ends) and not (self._uid or self._community):
            names = c.ENDPOINTS[self._ends.index("")]
            raise LabelError(
                f"{self._path}: no column {names[0]}: expected one called {' or '.join(names)}, for endpoints are "
                f"protocol, both addresses and both ports; {has}"
            )
        if all(self._ends) and not (self._uid or self._community or self._time or self._capture):
            raise LabelError(
                f"{self._path}: endpoints occur again: expected a column with the flow's start (ts, timestamp), or "
                "with its capture (pcap)"
            )
        if all(self._ends):
            return
        if not (self._uid or self._community or self._subject or self._capture):
            raise LabelError(
                f"{self._path}: no column that says which flow a row is of: expected uid, community_id, l4 and "
                "endpoints with ts or pcap, or pcap alone for whole captures"
            )
        if self._subject and not (self._uid or self._community) and not self._capture:
            self._capture = c.find_column(columns, c.SUBJECT_SOURCE, self._label)

    def read(self) -> LabelTable:
        table, wanted, malformed = self._table, tuple(self._options.confidence) or ("",), ""
        try:
            for line, row in self._source:
                table.rows += 1
                label = row[self._label]
                if not label or not row.get("confidence", "").startswith(wanted):
                    table.left_out += 1
                    continue
                table.lines += 1
                try:
                    self._take(line, row, label)
                except LabelError:
                    raise
                except ValueError:
                    table.malformed += 1
                    malformed = malformed or f"; line {line}: {_EXPECTED}"
        except TableError as error:
            raise LabelError(str(error)) from None
        if not table.rows:
            raise LabelError(f"{self._path}: no row below the names of its columns: expected one flow in each row")
        if not table.lines:
            chosen = f" and a confidence of {' or '.join(wanted)}" if wanted != ("",) else ""
            raise LabelError(
                f"{self._path}: none of its rows has a label{chosen} in the column {self._label}; {self._source.has}"
            )
        if table.lines == table.malformed:
            raise LabelError(
                f"{self._path}: no row with a label of {self._label} can be used: expected one flow in each row"
                f"{malformed}"
            )
        return table.finish()

    def _take(self, line: int, cells: dict[str, str], label: str) -> None:
        """Take a row in under each of its keys.

        Raises:
            ValueError: one of them is malformed, or there is none.
            LabelError: a row before it says something else of the same uid or capture.
        """
        capture = "/".join(path_parts(cells[self._capture])) if self._capture else ""
        time_us = NO_TIME
        if self._time and cells[self._time]:
            time_us = c.time_us(cells[self._time], self._time) + round(self._options.shift_seconds * 1e6)
        keys: list[tuple[JoinedBy, Key]] = []
        if self._uid and cells[self._uid]:
            keys.append(("uid", cells[self._uid]))
        if self._community and cells[self._community]:
            keys.append(("community ID", cells[self._community]))
        if all(self._ends) and (capture or time_us != NO_TIME or not keys):
            ends = c.row_ends(cells, self._ends)
            if not capture and time_us == NO_TIME:
                raise ValueError("endpoints without time and capture")
            keys.append(("endpoints", ends))
        if not any(self._ends) and not self._uid and not self._community:
            keys.append(("subject", cells[self._subject].lower()) if self._subject else ("capture", capture))
        if not keys or "" in (key for _, key in keys):
            raise ValueError("no key")
        for by, key in keys:
            row = Row(NO_TIME if by in ("uid", "capture") else time_us, label, capture, line)
            self._refuse_second(by, key, row)
            self._table.add(by, key, row)

    def _refuse_second(self, by: JoinedBy, key: Key, row: Row) -> None:
        if by not in ("uid", "capture") and not (by == "subject" and row.time_us == NO_TIME):
            return
        first = self._first[f"{by} {row.capture}"].setdefault(key, row)
        if first.label != row.label:
            raise LabelError(
                f"{self._path} line {row.line}: a second label for the same {by}, which line {first.line} calls "
                f"{first.label}: leave one of them out"
            )
