"""What a person sees in a terminal: table of flows, summary by label, progress. Colours only on a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich import box
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from models.flow import Flow
from models.verdict import UNKNOWN, Verdict
from service.inputs import FlowInput
from service.report import InputSummary, Summary

PROGRESS_MIN_BYTES = 4 << 20
"""Inputs below this are read without a progress bar."""

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


def flow_cells(flow: Flow) -> tuple[str | Text, ...]:
    """Protocol, originator, responder, payload packets each way, and IP bytes, as cells of a table."""
    return (
        flow.proto,
        Text(endpoint_text(flow.orig_h, flow.orig_p, flow.proto)),
        Text(endpoint_text(flow.resp_h, flow.resp_p, flow.proto)),
        f"{flow.up}/{flow.down}",
        size_text(flow.orig_ip_bytes + flow.resp_ip_bytes),
    )


class FlowTable:
    """Collects the rows to show, at most `limit` (0: all), and draws them with the summary."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._rows: list[tuple[Flow, Verdict]] = []
        self._left_out = 0

    def add(self, flow: Flow, verdict: Verdict) -> None:
        """Take a classified flow."""
        if self._limit and len(self._rows) >= self._limit:
            self._left_out += 1
        else:
            self._rows.append((flow, verdict))

    def draw(self, console: Console, summary: Summary) -> None:
        """Print flows and summary."""
        if self._rows:
            console.print(self._flows())
        if self._left_out:
            console.print(f"… and {self._left_out} more flows: --limit 0 shows all", style="dim")
        if summary.labels:
            console.print(_labels(summary))
        console.print(summary_text(summary))

    def _flows(self) -> Table:
        table = Table(box=box.SIMPLE_HEAD, title="Flows", title_justify="left", title_style="bold")
        table.add_column("label", no_wrap=True)
        table.add_column("confidence", justify="right")
        table.add_column("proto")
        table.add_column("originator", overflow="fold")
        table.add_column("responder", overflow="fold")
        table.add_column("payload packets", justify="right")
        table.add_column("bytes", justify="right", no_wrap=True)
        for flow, verdict in sorted(self._rows, key=lambda row: row[0].start_us):
            table.add_row(
                label_text(verdict),
                f"{verdict.confidence:.2f}",
                *flow_cells(flow),
            )
        return table


def label_text(verdict: Verdict) -> Text:
    """The label, or `unknown` with the nearest label beside it."""
    if verdict.unknown:
        return Text.assemble((UNKNOWN, "yellow"), (f" (nearest {verdict.label})", "dim"))
    return Text(verdict.label, style="green")


def _labels(summary: Summary) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title="By label", title_justify="left", title_style="bold")
    table.add_column("label")
    table.add_column("flows", justify="right")
    table.add_column("bytes", justify="right")
    table.add_column("mean confidence", justify="right")
    for entry in summary.labels:
        style = "yellow" if entry.label == UNKNOWN else "green"
        row = (str(entry.flows), size_text(entry.ip_bytes), f"{entry.mean_confidence:.2f}")
        table.add_row(Text(entry.label, style=style), *row)
    return table


def summary_text(summary: Summary) -> str:
    """One sentence that accounts for every flow."""
    left_out = [
        f"{count} {why}"
        for count, why in (
            (summary.without_payload, "without payload"),
            (summary.below_min_packets, "with too few packets"),
        )
        if count
    ]
    tail = f"; left out: {', '.join(left_out)}" if left_out else ""
    return f"{summary.classified} of {summary.flows} flows classified by {summary.model} {summary.version}{tail}."


def input_problem(entry: InputSummary) -> str | None:
    """What to tell about an input that was not read, or not whole."""
    if entry.error:
        return f"{entry.name}: {entry.error}"
    return f"{entry.name}: {entry.warning}" if entry.warning else None


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
