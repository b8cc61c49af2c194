"""Flows as rows of a table, with the columns that fit a terminal's width, for `classify` and for `watch`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tapline.models.flow import Flow
from tapline.models.foreign_text import clean
from tapline.models.server_name import server_name
from tapline.models.verdict import Verdict
from tapline.service.command.terminal import (
    UNBOUNDED,
    EndpointCell,
    Inputs,
    common_date,
    label_text,
    name_text,
    size_text,
    time_text,
)
from tapline.service.results.records import Summary
from tapline.service.results.selection import FlowRow, FlowSelection, Sort

NAME_HEADER = "server name"
NAME_MIN_CHARS = 12
"""A longer name is not shortened to fewer characters than these: then there is no column of names."""

NARROW_COLUMNS = 72
"""On a terminal of fewer columns the protocol makes room for addresses and ports."""

SORT_HELP = "order of the flows: time, bytes and packets (most first), confidence (least first), or label"


@dataclass(frozen=True, slots=True)
class _Layout:
    """Which columns a table has beside those that it always has."""

    name_chars: int = 0
    packets: bool = True
    is_wide: bool = True
    proto: bool = True


def flow_rows(
    rows: Sequence[FlowRow], width: int, *, inputs: Inputs | None = None, with_stage: bool = False, boxed: bool = True
) -> Table:
    """The rows with the columns for which a terminal of `width` columns has room.

    `inputs` numbers the inputs, None: no such column; `with_stage`: a column says which verdicts are early ones.
    """

    def draw(layout: _Layout) -> Table:
        return _table(rows, width, layout, inputs, with_stage=with_stage, boxed=boxed)

    def wanted(layout: _Layout) -> int:
        return Console(width=UNBOUNDED).measure(draw(layout)).maximum

    longest = max((len(clean(server_name(row.flow))) for row in rows), default=0)
    if longest:
        least = len(NAME_HEADER)
        for is_wide in (True, False):
            room = width - wanted(_Layout(least, is_wide=is_wide)) + least
            if room >= min(max(longest, least), NAME_MIN_CHARS):
                return draw(_Layout(max(min(room, longest), least), is_wide=is_wide))
    least_layout = _Layout(packets=False, is_wide=False, proto=width >= NARROW_COLUMNS)
    layouts = (_Layout(), _Layout(is_wide=False), least_layout)
    chosen = next((layout for layout in layouts if wanted(layout) <= width), layouts[-1])
    table = draw(chosen)
    if wanted(chosen) > width:
        table.padding = 0 if boxed else (0, 1, 0, 0)  # the box still parts the columns
    return table


def _table(
    rows: Sequence[FlowRow], width: int, layout: _Layout, inputs: Inputs | None, *, with_stage: bool, boxed: bool
) -> Table:
    date = common_date(row.flow.start_us for row in rows)
    table = Table(box=box.SIMPLE_HEAD if boxed else None, pad_edge=boxed and layout.is_wide)
    table.add_column("time (UTC)" if layout.is_wide else "UTC", no_wrap=date is not None)
    if inputs is not None:
        table.add_column("in", justify="right", no_wrap=True)
    table.add_column("label", no_wrap=True)
    table.add_column("confidence" if layout.is_wide else "conf.", justify="right", no_wrap=True)
    if with_stage:
        table.add_column("", no_wrap=True)
    if layout.proto:
        table.add_column("proto", no_wrap=True)
    table.add_column("originator", overflow="fold")
    table.add_column("responder", overflow="fold")
    if layout.name_chars:
        table.add_column(NAME_HEADER, no_wrap=True)
    if layout.packets:
        table.add_column("payload packets" if layout.is_wide else "packets", justify="right")
    table.add_column("bytes", justify="right", no_wrap=True)
    for row in rows:
        flow, verdict = row.flow, row.verdict
        table.add_row(
            time_text(flow.start_us, dated=date is None),
            *([str(inputs.number(row.source))] if inputs is not None else []),
            label_text(verdict, width),
            f"{verdict.confidence:.2f}",
            *([("" if verdict.final else "early")] if with_stage else []),
            *([flow.proto] if layout.proto else []),
            EndpointCell(flow.orig_h, flow.orig_p, flow.proto),
            EndpointCell(flow.resp_h, flow.resp_p, flow.proto),
            *([Text(name_text(server_name(flow), layout.name_chars))] if layout.name_chars else []),
            *([f"{flow.up}/{flow.down}"] if layout.packets else []),
            size_text(row.ip_bytes),
        )
    return table


class FlowTable:
    """Collects the flows to show, as `FlowSelection` does, and draws them."""

    def __init__(self, limit: int, sort: Sort = "time") -> None:
        self._selection = FlowSelection(limit, sort)

    def add(self, flow: Flow, verdict: Verdict, source: str = "") -> None:
        """Take a classified flow."""
        self._selection.add(FlowRow(flow, verdict, source))

    def draw(self, console: Console, inputs: Inputs | None = None) -> None:
        """Print the rows, and how many are left out; `inputs` numbers several."""
        first = self._selection.first()
        further = self._selection.further(first)
        if first:
            _print(console, "Flows", first, inputs)
        if further:
            _print(console, "Further down: other labels, unknown flows, unexpected ports", further, inputs)
        if left_out := self._selection.left_out - len(further):
            later = "flows that started later" if self._selection.sort == "time" and not further else "more flows"
            console.print(f"… and {left_out} {later}: --limit 0 shows all", style="dim")


def _print(console: Console, title: str, rows: Sequence[FlowRow], inputs: Inputs | None) -> None:
    date = common_date(row.flow.start_us for row in rows)
    console.print(Text(f"{title}, {date}" if date else title, style="bold"))
    console.print(flow_rows(rows, console.width, inputs=inputs))


def sources_of(summary: Summary) -> Inputs | None:
    """The numbers of several inputs, None where there is one."""
    names = [entry.name for entry in summary.inputs]
    return Inputs(names) if len(names) > 1 else None
