"""Writers of classified flows and traces: JSON, NDJSON, CSV, table. Each streams: memory does not follow the input."""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Iterator
from typing import Any, Literal, Protocol, TextIO

import msgspec

from models.flow import Flow
from models.foreign_text import sheet_cell
from models.verdict import Verdict
from service.console import make_console
from service.report import Summary, classified
from service.terminal import FlowTable
from service.trace_table import TraceTable
from service.traces.records import TraceVerdict

Format = Literal["table", "json", "ndjson", "csv"]
Show = Literal["all", "flows", "traces"]
"""What to write. A CSV holds rows of one kind: of flows, unless it is traces alone."""

CSV_COLUMNS = (
    "input", "uid", "community_id", "start_us", "duration_us", "proto", "orig_h", "orig_p", "resp_h", "resp_p",
    "up", "down", "orig_ip_bytes", "resp_ip_bytes", "label", "confidence", "unknown", "model", "version",
)  # fmt: skip
TRACE_CSV_COLUMNS = (
    "source", "subject_kind", "subject", "start_us", "end_us", "flows", "cut", "label", "confidence", "unknown",
    "model", "version", "top_uids", "top_shares",
)  # fmt: skip

_SPOOL_BYTES = 4 << 20
_PIECE_BYTES = 1 << 20


class Writer(Protocol):
    """Takes classified flows and traces one by one, and the summary at the end."""

    def add(self, flow: Flow, verdict: Verdict | None, name: str) -> None:
        """Write one classified flow of the input `name`."""
        ...

    def add_trace(self, trace: TraceVerdict) -> None:
        """Write one classified trace."""
        ...

    def finish(self, summary: Summary) -> None:
        """Write what belongs at the end."""
        ...


def writer(format_: Format, file: TextIO, limit: int, show: Show = "all") -> Writer:
    """The writer for a format; `limit` bounds the rows of the tables (0: all), which hold what started first."""
    if format_ == "table":
        return _Shown(TableWriter(file, limit, show), show)
    if format_ == "json":
        return _Shown(JsonWriter(file, show), show)
    if format_ == "ndjson":
        return _Shown(NdjsonWriter(file), show)
    return TraceCsvWriter(file) if show == "traces" else CsvWriter(file)


class _Shown:
    """Passes on to another writer what is to be shown."""

    def __init__(self, target: Writer, show: Show) -> None:
        self._target = target
        self._show = show

    def add(self, flow: Flow, verdict: Verdict | None, name: str) -> None:
        """Write the flow, where flows are shown."""
        if self._show != "traces":
            self._target.add(flow, verdict, name)

    def add_trace(self, trace: TraceVerdict) -> None:
        """Write the trace, where traces are shown."""
        if self._show != "flows":
            self._target.add_trace(trace)

    def finish(self, summary: Summary) -> None:
        """Write the end."""
        self._target.finish(summary)


class TableWriter:
    """Readable tables; colours only where `file` is a terminal."""

    def __init__(self, file: TextIO, limit: int, show: Show) -> None:
        self._show = show
        self._console = make_console(file, width=None if file.isatty() else 160)
        self._flows = FlowTable(limit)
        self._traces = TraceTable(limit)

    def add(self, flow: Flow, verdict: Verdict | None, name: str) -> None:
        """Remember the row."""
        if verdict is not None:
            self._flows.add(flow, verdict)

    def add_trace(self, trace: TraceVerdict) -> None:
        """Remember the row."""
        self._traces.add(trace)

    def finish(self, summary: Summary) -> None:
        """Draw."""
        if self._show != "traces":
            self._flows.draw(self._console, summary)
        if self._show != "flows":
            self._traces.draw(self._console, summary)


class JsonWriter:
    """One JSON object: `flows` as they come, then `traces`, then `summary`; a list that is not shown is not there.

    Traces wait for their place on disk.
    """

    def __init__(self, file: TextIO, show: Show = "all") -> None:
        self._file = file
        self._show = show
        self._separator = '{"flows": [\n'
        self._trace_separator = "\n"
        self._traces = tempfile.SpooledTemporaryFile(_SPOOL_BYTES, "w+", encoding="utf-8")

    def add(self, flow: Flow, verdict: Verdict | None, name: str) -> None:
        """Write the flow's element."""
        self._file.write(self._separator + msgspec.json.encode(classified(flow, verdict, name)).decode())
        self._separator = ",\n"

    def add_trace(self, trace: TraceVerdict) -> None:
        """Keep the trace's element."""
        self._traces.write(self._trace_separator + msgspec.json.encode(trace).decode())
        self._trace_separator = ",\n"

    def ending(self, summary: Summary) -> Iterator[str]:
        """What is left to write, in pieces: the flows' end, the traces, the summary."""
        if self._show == "traces":
            yield "{"
        else:
            yield (self._separator if self._separator.startswith("{") else "") + "\n], "
        with self._traces:
            if self._show != "flows":
                yield from self._trace_list()
        yield f'"summary": {msgspec.json.encode(summary).decode()}}}\n'

    def _trace_list(self) -> Iterator[str]:
        yield '"traces": ['
        self._traces.seek(0)
        while piece := self._traces.read(_PIECE_BYTES):
            yield piece
        yield "\n], "

    def finish(self, summary: Summary) -> None:
        """Close the list of flows, write traces and summary."""
        self._file.writelines(self.ending(summary))


class NdjsonWriter:
    """One flow a line, in the form of `tapline features` with its verdict; one trace a line, `{"trace": ...}`, when it
    is complete, at the latest after the last flow of its input. No summary."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def add(self, flow: Flow, verdict: Verdict | None, name: str) -> None:
        """Write the flow's line."""
        self._line(classified(flow, verdict, name))

    def add_trace(self, trace: TraceVerdict) -> None:
        """Write the trace's line."""
        self._line({"trace": trace})

    def finish(self, summary: Summary) -> None:
        """Nothing is left to write."""

    def _line(self, record: object) -> None:
        self._file.write(msgspec.json.encode(record).decode() + "\n")


class CsvWriter:
    """One row per flow with `CSV_COLUMNS`; no traces."""

    def __init__(self, file: TextIO) -> None:
        self._rows = csv.writer(file)
        self._rows.writerow(CSV_COLUMNS)

    def add(self, flow: Flow, verdict: Verdict | None, name: str) -> None:
        """Write the flow's row."""
        record = classified(flow, verdict, name)
        self._rows.writerow(_cells(CSV_COLUMNS, verdict, record))

    def add_trace(self, trace: TraceVerdict) -> None:
        """Leave the trace out."""

    def finish(self, summary: Summary) -> None:
        """Nothing is left to write."""


class TraceCsvWriter:
    """One row per trace with `TRACE_CSV_COLUMNS`, its top flows and their shares with blanks between; no flows."""

    def __init__(self, file: TextIO) -> None:
        self._rows = csv.writer(file)
        self._rows.writerow(TRACE_CSV_COLUMNS)

    def add(self, flow: Flow, verdict: Verdict | None, name: str) -> None:
        """Leave the flow out."""

    def add_trace(self, trace: TraceVerdict) -> None:
        """Write the trace's row."""
        *cells, _, _ = _cells(TRACE_CSV_COLUMNS, trace.verdict, trace)
        uids = sheet_cell(" ".join(flow.uid for flow in trace.top_flows))
        shares = " ".join(f"{flow.share:g}" for flow in trace.top_flows)
        self._rows.writerow([*cells, uids, shares])

    def finish(self, summary: Summary) -> None:
        """Nothing is left to write."""


def _cells(columns: tuple[str, ...], verdict: Verdict | None, record: object) -> list[Any]:
    """The values of columns: of the verdict, or else of the record that it is about."""
    found = (getattr(verdict if column in Verdict.__struct_fields__ else record, column, "") for column in columns)
    return [sheet_cell(value) if isinstance(value, str) else value for value in found]
