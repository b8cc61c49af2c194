"""What a person sees in a terminal beside tables of flows and traces, and what these are made of: texts, cells, the
summary, progress. Colours only on a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from tapline.models.flow import Flow
from tapline.models.foreign_text import clean
from tapline.models.verdict import UNKNOWN, Verdict
from tapline.service.results.port_tries import tried_texts
from tapline.service.results.records import Summary
from tapline.service.sources.inputs import FlowInput

TRIES_SHOWN = 5
"""Originators of flows without payload that are told of."""

WIDE_COLUMNS = 120
"""On a terminal of fewer columns the nearest label, and what an unexpected port says, stand below the label, not beside
it."""

UNBOUNDED = 10_000
"""Columns of a terminal on which every table fits."""

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


class Inputs:
    """Numbers for the inputs of a result, in their order, from 1: short enough for a column of any table."""

    def __init__(self, names: Sequence[str]) -> None:
        self._numbers: dict[str, int] = {}
        for number, name in enumerate(names, 1):
            self._numbers.setdefault(name, number)
        self._used: set[str] = set()

    def number(self, name: str) -> int:
        """The number of an input, 0 for one that is none."""
        self._used.add(name)
        return self._numbers.get(name, 0)

    def legend(self) -> str | None:
        """Which number is which input, of those that were asked for; None where there were none."""
        lines = [f"in {number}: {clean(name)}" for name, number in self._numbers.items() if name in self._used]
        return "\n".join(lines) or None


def time_text(time_us: int, *, dated: bool) -> str:
    """`13:21:09`, or with the date before it, in UTC; seconds where it is no date."""
    when = _when(time_us)
    if when is None:
        return f"{time_us / 1e6:.0f} s"
    return when.strftime("%Y-%m-%d %H:%M:%S" if dated else "%H:%M:%S")


def common_date(times_us: Iterable[int]) -> str | None:
    """The date in UTC on which all times are; None where they are on several, or one is no date."""
    found = {None if (when := _when(time_us)) is None else when.date().isoformat() for time_us in times_us}
    return found.pop() if len(found) == 1 else None


def _when(time_us: int) -> datetime | None:
    try:
        return datetime.fromtimestamp(time_us / 1e6, UTC)
    except (ValueError, OverflowError, OSError):
        return None


def name_text(name: str, limit: int) -> str:
    """The end of a name, which says most, in at most `limit` characters."""
    name = clean(name)
    return name if len(name) <= limit else f"…{name[len(name) + 1 - limit :]}"


def label_text(verdict: Verdict, width: int = WIDE_COLUMNS) -> Text:
    """The label, with what the port says where that is unexpected, or `unknown` with the nearest label beside it.

    `width`: columns of the terminal.
    """
    if verdict.unknown:
        apart = " " if width >= WIDE_COLUMNS else "\n"
        return Text.assemble((verdict.label, "yellow"), apart, (f"(nearest {clean(verdict.nearest)})", "dim"))
    if verdict.unexpected_port:
        apart, port = "  " if width >= WIDE_COLUMNS else "\n", clean(str(verdict.port_label))
        return Text.assemble((clean(verdict.label), "green"), apart, (f"port says {port}", "bold red"))
    return Text(clean(verdict.label), style="green")


def draw_summary(console: Console, summary: Summary) -> None:
    """Print what each label got, one sentence that accounts for every flow, and who tried ports in vain."""
    if summary.labels:
        console.print(_labels(summary))
    console.print(summary_text(summary))
    for text in tried_texts(summary.port_tries, TRIES_SHOWN):
        console.print(text, soft_wrap=True)


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


@contextmanager
def progress(console: Console, name: str, source: FlowInput) -> Iterator[Iterator[Flow]]:
    """The flows of a source; a long one shows a bar on a terminal while it is read."""
    # FORCE_COLOR, as in notebooks, makes `is_terminal` true
    if not console.file.isatty() or (source.bytes_total is not None and source.bytes_total < PROGRESS_MIN_BYTES):
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
