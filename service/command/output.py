"""What `tapline classify` writes: tables for a person, or what `results.writers` writes for programs; and a report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, TextIO

from tapline.models.flow import Flow
from tapline.models.verdict import Verdict
from tapline.service.command.console import make_console
from tapline.service.command.flow_rows import FlowTable, sources_of
from tapline.service.command.terminal import draw_summary
from tapline.service.command.trace_table import TraceTable
from tapline.service.results.records import Summary, left_out_text
from tapline.service.results.selection import Sort
from tapline.service.results.writers import CsvWriter, JsonWriter, NdjsonWriter, Show, TraceCsvWriter, Writer
from tapline.service.traces.trace_verdict import TraceVerdict

if TYPE_CHECKING:
    from tapline.service.results.report_page import ReportBuilder

Format = Literal["table", "json", "ndjson", "csv"]


def writer(format_: Format, file: TextIO, limit: int, show: Show = "all", sort: Sort = "time") -> Writer:
    """The writer for a format; tables hold `limit` rows (0: all), those that come first by `sort`."""
    if format_ == "table":
        return _Shown(TableWriter(file, limit, show, sort), show)
    if format_ == "json":
        return _Shown(JsonWriter(file, show), show)
    if format_ == "ndjson":
        return _Shown(NdjsonWriter(file), show)
    return TraceCsvWriter(file) if show == "traces" else CsvWriter(file)


class Writers:
    """Several writers as one."""

    def __init__(self, targets: Sequence[Writer]) -> None:
        self._targets = targets

    def add(self, flow: Flow, verdict: Verdict | None, name: str) -> None:
        """Write the flow."""
        for target in self._targets:
            target.add(flow, verdict, name)

    def add_trace(self, trace: TraceVerdict) -> None:
        """Write the trace."""
        for target in self._targets:
            target.add_trace(trace)

    def finish(self, summary: Summary) -> None:
        """Write the end."""
        for target in self._targets:
            target.finish(summary)


def report_writer(file: TextIO) -> Writer:
    """A writer of the report."""
    from tapline.service.results.report_page import (
        ReportBuilder,  # imports a template engine, which the others do without
    )

    return _ReportWriter(ReportBuilder(), file)


class _ReportWriter:
    """Writes the page of a report into a file."""

    def __init__(self, builder: ReportBuilder, file: TextIO) -> None:
        self._builder = builder
        self._file = file

    def add(self, flow: Flow, verdict: Verdict | None, name: str) -> None:
        """Take the flow."""
        self._builder.add(flow, verdict, name)

    def add_trace(self, trace: TraceVerdict) -> None:
        """Take the trace."""
        self._builder.add_trace(trace)

    def finish(self, summary: Summary) -> None:
        """Write the page."""
        self._file.write(self._builder.finish(summary))


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

    def __init__(self, file: TextIO, limit: int, show: Show, sort: Sort = "time") -> None:
        self._show = show
        self._console = make_console(file, width=None if file.isatty() else 160)
        self._flows = FlowTable(limit, sort)
        self._traces = TraceTable(limit)

    def add(self, flow: Flow, verdict: Verdict | None, name: str) -> None:
        """Remember the row."""
        if verdict is not None:
            self._flows.add(flow, verdict, name)

    def add_trace(self, trace: TraceVerdict) -> None:
        """Remember the row."""
        self._traces.add(trace)

    def finish(self, summary: Summary) -> None:
        """Draw."""
        inputs = sources_of(summary)
        if self._show != "traces":
            self._flows.draw(self._console, inputs)
            draw_summary(self._console, summary)
        if self._show != "flows":
            self._traces.draw(self._console, summary, inputs)
        if inputs is not None and (legend := inputs.legend()):
            self._console.print(legend, style="dim", soft_wrap=True)
        for text in filter(None, map(left_out_text, summary.inputs)):
            self._console.print(text, style="dim", markup=False, soft_wrap=True)
