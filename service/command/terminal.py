"""What a person sees in a terminal: table of flows, summary by label, progress. Colours only on a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from tapline.models.flow import Flow
from tapline.models.foreign_text import clean
from tapline.models.server_name import server_name
from tapline.models.verdict import UNKNOWN, Verdict
from tapline.service.results.records import InputSummary, Summary
from tapline.service.sources.inputs import FlowInput

MAX_PROBLEM_CHARS = 1024
NAME_HEADER = "server name"
NAME_MIN_CHARS = 12
"""A longer name is not shortened to fewer characters than these: then there is no column of names."""

WIDE_COLUMNS = 120
"""On a terminal of fewer columns what an unexpected port says stands below the label, not beside it."""

UNBOUNDED = 10_000
"""Columns of a terminal on which every table fits."""

PROGRESS_MIN_BYTES = 4 << 20
"""Inputs below this are read without a progress bar."""

Row = TypeVar("Row")

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def size_text(count: float) -> str:
    """A byte count as people read it."""
    unit = 0
    while count >= 1024 and unit < len(_UNITS) - 1:
        count /= 1024
        unit += 1
    return f"{count:.0f} {_UNITS[unit]}" if unit == 0 else f"{count:.1f} {_UNITS[unit]}"


def endpoint_text(address: str, port: int, proto: str) -> str:
    """`10.0.0.1:53`, `[fe80::1]:53`, or the bare address where there are no ports."""
    if proto not in ("tcp", "udp"):
        return address
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


class EndpointCell:
    """An endpoint as a cell of a table: in one line, or where that is too long with its port, whole, in the next."""

    def __init__(self, address: str, port: int, proto: str) -> None:
        self._whole = endpoint_text(address, port, proto)
        ports = 1 + len(str(port)) if proto in ("tcp", "udp") else 0
        self._host, self._port = self._whole[: len(self._whole) - ports], self._whole[len(self._whole) - ports :]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        fits = len(self._whole) <= options.max_width or not self._port
        yield Text(self._whole if fits else f"{self._host}\n{self._port}", overflow="fold")

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(len(self._host), len(self._whole)).with_maximum(options.max_width)


def flow_cells(flow: Flow, name_chars: int = 0) -> tuple[str | Text | EndpointCell, ...]:
    """Protocol, originator, responder, name of the server in `name_chars` (0: no such cell), payload packets each way,
    and IP bytes, as cells of a table."""
    return (
        flow.proto,
        EndpointCell(flow.orig_h, flow.orig_p, flow.proto),
        EndpointCell(flow.resp_h, flow.resp_p, flow.proto),
        *([Text(name_text(server_name(flow), name_chars))] if name_chars else ()),
        f"{flow.up}/{flow.down}",
        size_text(flow.orig_ip_bytes + flow.resp_ip_bytes),
    )


def name_text(name: str, limit: int) -> str:
    """The end of a name, which says most, in at most `limit` characters."""
    name = clean(name)
    return name if len(name) <= limit else f"…{name[len(name) + 1 - limit :]}"


def with_names(draw: Callable[[int], Table], flows: Sequence[Flow], width: int) -> Table:
    """A table of flows with a column of the servers' names where there are any, and room for one beside all else.

    `draw` gives the table with names of so many characters, 0: without the column; `width`: columns of the terminal.
    """
    longest = max((len(clean(server_name(flow))) for flow in flows), default=0)
    if not longest:
        return draw(0)
    least = len(NAME_HEADER)
    room = width - Console(width=UNBOUNDED).measure(draw(least)).maximum + least
    return draw(max(min(room, longest), least) if room >= min(max(longest, least), NAME_MIN_CHARS) else 0)


class FirstRows(Generic[Row]):
    """Keeps the `limit` rows (0: all) that come first in the order of `key`, in whatever order they are added.

    Holds at most twice as many rows.
    """

    def __init__(self, limit: int, key: Callable[[Row], Any]) -> None:
        self._limit = limit
        self._key = key
        self._rows: list[Row] = []
        self._added = 0

    def add(self, row: Row) -> None:
        """Take a row."""
        self._added += 1
        self._rows.append(row)
        if self._limit and len(self._rows) >= 2 * self._limit:
            self._rows = self.rows()

    def rows(self) -> list[Row]:
        """The first rows, in order; those with equal keys in the order in which they came."""
        rows = sorted(self._rows, key=self._key)
        return rows[: self._limit] if self._limit else rows

    @property
    def left_out(self) -> int:
        """Rows that are not among the first."""
        return max(0, self._added - self._limit) if self._limit else 0


class FlowTable:
    """Collects the rows to show, the `limit` flows (0: all) that started first, and draws them with the summary."""

    def __init__(self, limit: int) -> None:
        self._rows = FirstRows[tuple[Flow, Verdict]](limit, key=lambda row: row[0].start_us)

    def add(self, flow: Flow, verdict: Verdict) -> None:
        """Take a classified flow."""
        self._rows.add((flow, verdict))

    def draw(self, console: Console, summary: Summary) -> None:
        """Print flows and summary."""
        rows = self._rows.rows()
        if rows:
            flows = [flow for flow, _ in rows]
            table = with_names(lambda name_chars: _flows(rows, name_chars, console.width), flows, console.width)
            if Console(width=UNBOUNDED).measure(table).maximum > console.width:
                table.padding = 0  # the box still parts the columns
            console.print(table)
        if left_out := self._rows.left_out:
            console.print(f"… and {left_out} flows that started later: --limit 0 shows all", style="dim")
        if summary.labels:
            console.print(_labels(summary))
        console.print(summary_text(summary))


def _flows(rows: list[tuple[Flow, Verdict]], name_chars: int, width: int) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title="Flows", title_justify="left", title_style="bold")
    table.add_column("label", no_wrap=True)
    table.add_column("confidence", justify="right")
    table.add_column("proto")
    table.add_column("originator", overflow="fold")
    table.add_column("responder", overflow="fold")
    if name_chars:
        table.add_column(NAME_HEADER, no_wrap=True)
    table.add_column("payload packets", justify="right")
    table.add_column("bytes", justify="right", no_wrap=True)
    for flow, verdict in rows:
        table.add_row(
            label_text(verdict, width),
            f"{verdict.confidence:.2f}",
            *flow_cells(flow, name_chars),
        )
    return table


def label_text(verdict: Verdict, width: int = WIDE_COLUMNS) -> Text:
    """The label, with what the port says where that is unexpected, or `unknown` with the nearest label beside it.

    `width`: columns of the terminal.
    """
    if verdict.unknown:
        return Text.assemble((verdict.label, "yellow"), (f" (nearest {clean(verdict.nearest)})", "dim"))
    if verdict.unexpected_port:
        apart, port = "  " if width >= WIDE_COLUMNS else "\n", clean(str(verdict.port_label))
        return Text.assemble((clean(verdict.label), "green"), apart, (f"port says {port}", "bold red"))
    return Text(clean(verdict.label), style="green")


def _labels(summary: Summary) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title="By label", title_justify="left", title_style="bold")
    table.add_column("label")
    table.add_column("flows", justify="right")
    table.add_column("bytes", justify="right")
    table.add_column("mean confidence", justify="right")
    for entry in summary.labels:
        style = "yellow" if entry.label == UNKNOWN else "green"
        row = (str(entry.flows), size_text(entry.ip_bytes), f"{entry.mean_confidence:.2f}")
        table.add_row(Text(clean(entry.label), style=style), *row)
    return table


def summary_text(summary: Summary) -> str:
    """One sentence that accounts for every flow."""
    left_out = [
        f"{count} {why}"
        for count, why in (
            (summary.without_payload, "without payload"),
            (summary.below_min_packets, "with too few packets"),
            (summary.failed, "on which the engine failed"),
        )
        if count
    ]
    tail = f"; left out: {', '.join(left_out)}" if left_out else ""
    return f"{summary.classified} of {summary.flows} flows classified by {summary.model} {summary.version}{tail}."


def input_problem(entry: InputSummary) -> str | None:
    """What to tell about an input that was not read, or not whole."""
    if entry.error:
        return clean(f"{entry.name}: {entry.error}", MAX_PROBLEM_CHARS)
    return clean(f"{entry.name}: {entry.warning}", MAX_PROBLEM_CHARS) if entry.warning else None


@contextmanager
def progress(console: Console, name: str, source: FlowInput) -> Iterator[Iterator[Flow]]:
    """The flows of a source; a long one shows a bar on a terminal while it is read."""
    if not console.is_terminal or (source.bytes_total is not None and source.bytes_total < PROGRESS_MIN_BYTES):
        yield iter(source)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(name, total=source.bytes_total)

        def watched() -> Iterator[Flow]:
            for flow in source:
                bar.update(task, completed=source.bytes_read)
                yield flow

        yield watched()
