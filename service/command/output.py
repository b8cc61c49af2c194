"""What `tapline classify` writes: tables for a person, or what `results.writers` writes for programs."""

from __future__ import annotations

from typing import Literal, TextIO

from tapline.models.flow import Flow
from tapline.models.verdict import Verdict
from tapline.service.command.console import make_console
from tapline.service.command.terminal import FlowTable
from tapline.service.command.trace_table import TraceTable
from tapline.service.results.records import Summary, left_out_text
from tapline.service.results.writers import CsvWriter, JsonWriter, NdjsonWriter, Show, TraceCsvWriter, Writer
from tapline.service.traces.trace_verdict import TraceVerdict

Format = Literal["table", "json", "ndjson", "csv"]


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
        for text in filter(None, map(left_out_text, summary.inputs)):
            self._console.print(text, style="dim", markup=False, soft_wrap=True)
