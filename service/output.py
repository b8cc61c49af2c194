"""Writers of classified flows: JSON, NDJSON, CSV, table. Each streams: memory does not follow the input."""

from __future__ import annotations

import csv
from typing import Literal, Protocol, TextIO

import msgspec
from rich.console import Console

from models.flow import Flow
from models.verdict import Verdict
from service.report import Summary, classified
from service.terminal import FlowTable

Format = Literal["table", "json", "ndjson", "csv"]

CSV_COLUMNS = (
    "input", "uid", "community_id", "start_us", "duration_us", "proto", "orig_h", "orig_p", "resp_h", "resp_p",
    "up", "down", "orig_ip_bytes", "resp_ip_bytes", "label", "confidence", "unknown", "model", "version",
)  # fmt: skip


class Writer(Protocol):
    """Takes classified flows one by one, and the summary at the end."""

    def add(self, flow: Flow, verdict: Verdict | None, name: str) -> None:
        """Write one classified flow of the input `name`."""
        ...

    def finish(self, summary: Summary) -> None:
        """Write what belongs at the end."""
        ...


def writer(format_: Format, file: TextIO, limit: int) -> Writer:
    """The writer for a format; `limit` bounds the rows of the table (0: all)."""
    if format_ == "table":
        return TableWriter(file, limit)
    if format_ == "json":
        return JsonWriter(file)
    return NdjsonWriter(file) if format_ == "ndjson" else CsvWriter(file)


class TableWriter:
    """A readable table; colours only where `file` is a terminal."""

    def __init__(self, file: TextIO, limit: int) -> None:
        self._console = Console(file=file, highlight=False, width=None if file.isatty() else 160)
        self._table = FlowTable(limit)

    def add(self, flow: Flow, verdict: Verdict | None, name: str) -> None:
        """Remember the row."""
        if verdict is not None:
            self._table.add(flow, verdict)

    def finish(self, summary: Summary) -> None:
        """Draw."""
        self._table.draw(self._console, summary)


class JsonWriter:
    """One JSON object: `flows` as they come, then `summary`."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._separator = '{"flows": [\n'

    def add(self, flow: Flow, verdict: Verdict | None, name: str) -> None:
        """Write the flow's element."""
        self._file.write(self._separator + msgspec.json.encode(classified(flow, verdict, name)).decode())
        self._separator = ",\n"

    def finish(self, summary: Summary) -> None:
        """Close the list, write the summary."""
        opening = self._separator if self._separator.startswith("{") else ""
        self._file.write(f'{opening}\n], "summary": {msgspec.json.encode(summary).decode()}}}\n')


class NdjsonWriter:
    """One flow per line; no summary, so that every line has the same form."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def add(self, flow: Flow, verdict: Verdict | None, name: str) -> None:
        """Write the flow's line."""
        self._file.write(msgspec.json.encode(classified(flow, verdict, name)).decode() + "\n")

    def finish(self, summary: Summary) -> None:
        """Nothing is left to write."""


class CsvWriter:
    """One row per flow with `CSV_COLUMNS`."""

    def __init__(self, file: TextIO) -> None:
        self._rows = csv.writer(file)
        self._rows.writerow(CSV_COLUMNS)

    def add(self, flow: Flow, verdict: Verdict | None, name: str) -> None:
        """Write the flow's row."""
        record = classified(flow, verdict, name)
        self._rows.writerow(
            getattr(verdict if column in Verdict.__struct_fields__ else record, column, "") for column in CSV_COLUMNS
        )

    def finish(self, summary: Summary) -> None:
        """Nothing is left to write."""
