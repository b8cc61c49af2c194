"""The report of a result: one HTML page with everything in it, which asks nobody for anything; no payload."""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from tapline.installation import version
from tapline.models.flow import Flow
from tapline.models.foreign_text import clean
from tapline.models.server_name import server_name
from tapline.models.verdict import UNKNOWN, Verdict
from tapline.service.results.page_account import CONFIDENCE_BINS, PageAccount
from tapline.service.results.port_tries import tried_texts
from tapline.service.results.records import Summary, left_out_text
from tapline.service.results.selection import FirstRows, FlowRow, FlowSelection
from tapline.service.results.sharing import without_content
from tapline.service.traces.trace_verdict import IMPORTANCE_NOTE, NEAREST_NOTE, TraceVerdict

FLOW_ROWS = 300
TRACE_ROWS = 200
HOST_ROWS = 30
LABEL_BARS = 25
SERIES = 6
"""Labels with a colour of their own in the plot over time; the others are one."""

TEMPLATES = Path(__file__).parent / "templates"
OTHERS = "others"
MAX_TEXT_CHARS = 1 << 16

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


class ReportBuilder:
    """Takes flows and traces one by one, and makes a page of them at the end. Memory is bounded whatever their number.

    What is given is shown as it is: addresses are anonymised before, by `results.sharing`.
    """

    def __init__(self, title: str = "Traffic report") -> None:
        self._title = title
        self._flows = FlowSelection(FLOW_ROWS)
        self._traces = FirstRows[TraceVerdict](TRACE_ROWS, _trace_place)
        self._account = PageAccount()

    def add(self, flow: Flow, verdict: Verdict | None, name: str) -> None:
        """Take a flow of the input `name`; one without a verdict is in the summary alone."""
        if verdict is None:
            return
        self._flows.add(FlowRow(without_content(flow), verdict, name))
        self._account.add(flow, verdict)

    def add_trace(self, trace: TraceVerdict) -> None:
        """Take a trace."""
        self._traces.add(trace)

    def finish(self, summary: Summary) -> str:
        """The page."""
        first = self._flows.first()
        further = self._flows.further(first)
        account = self._account
        style = (TEMPLATES / "report.css").read_text("utf-8")
        return (
            _environment()
            .get_template("report.html")
            .render(
                title=self._title,
                made=datetime.now(UTC),
                version=version(),
                summary=summary,
                unknown=UNKNOWN,
                first_us=account.first_us,
                last_us=account.last_us,
                label_bars=_label_bars(summary),
                other_labels=max(0, len(summary.labels) - LABEL_BARS),
                over_time=_over_time(account) if account.first_us is not None else None,
                confidences=_columns(account.confidences),
                tries=list(tried_texts(summary.port_tries, len(summary.port_tries.hosts))),
                traces=self._traces.rows(),
                traces_left_out=self._traces.left_out,
                hosts=account.hosts(HOST_ROWS),
                host_count=account.host_count,
                flows_of_other_hosts=account.flows_of_other_hosts,
                flows=first,
                further=further,
                flows_left_out=self._flows.left_out - len(further),
                inputs=[(entry, left_out_text(entry)) for entry in summary.inputs],
                several=len(summary.inputs) > 1,
                notes=(NEAREST_NOTE, IMPORTANCE_NOTE),
                style=Markup(style),  # our own file
                style_hash=base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
            )
        )


def _trace_place(trace: TraceVerdict) -> tuple[bool, bool, int, str, str]:
    """Suspicious traces first, then those with a label, by time."""
    return (
        trace.suspicious is not True,
        trace.verdict.unknown,
        trace.start_us,
        trace.subject,
        trace.verdict.model,
    )


@dataclass(frozen=True)
class _Bar:
    """A bar of a plot: its name, count, a text beside it, and its place in units of the drawing."""

    name: str
    count: int
    x: float
    y: float
    width: float
    height: float
    series: int = 0


def _label_bars(summary: Summary) -> list[_Bar]:
    """A horizontal bar for each label, most flows first, in a drawing 100 wide."""
    most = max((entry.flows for entry in summary.labels), default=1)
    return [
        _Bar(entry.label, entry.flows, 0, 0, round(max(100 * entry.flows / most, 0.5), 2), 1)
        for entry in summary.labels[:LABEL_BARS]
    ]


def _columns(counts: Sequence[int]) -> list[_Bar]:
    """A column for each count, in a drawing 100 by 100."""
    most, width = max(max(counts), 1), 100 / len(counts)
    return [
        _Bar(
            f"{number / CONFIDENCE_BINS:.2f} to {(number + 1) / CONFIDENCE_BINS:.2f}",
            count,
            round(number * width, 3),
            round(100 - 100 * count / most, 3),
            round(width * 0.86, 3),
            round(100 * count / most, 3),
        )
        for number, count in enumerate(counts)
    ]


@dataclass(frozen=True)
class _OverTime:
    """Stacked columns over time in a drawing 100 by 100; `series` are the labels with colours, in their order."""

    bars: list[_Bar]
    series: list[str]
    most: int
    width_seconds: int
    start_us: int
    end_us: int


def _over_time(account: PageAccount) -> _OverTime:
    bins, totals = account.times.bins, Counter[str]()
    for counts in bins.values():
        totals.update(counts)
    named = [label for label, _ in totals.most_common(SERIES)]
    series = [*named, *([OTHERS] if len(totals) > len(named) else [])]
    first, count = min(bins), max(bins) - min(bins) + 1
    most, width, bars = max(counts.total() for counts in bins.values()), 100 / count, []
    for number, counts in sorted(bins.items()):
        stacked = 0
        for index, label in enumerate(series):
            flows = counts[label] if index < len(named) else counts.total() - sum(counts[name] for name in named)
            if flows:
                stacked += flows
                bars.append(
                    _Bar(
                        label,
                        flows,
                        round((number - first) * width, 3),
                        round(100 - 100 * stacked / most, 3),
                        round(width * 0.9, 3),
                        round(100 * flows / most, 3),
                        index,
                    )
                )
    start_us = first * account.times.width_us
    width_us = account.times.width_us
    return _OverTime(bars, series, most, width_us // 1_000_000, start_us, start_us + count * width_us)


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    environment.filters |= {
        "bytes": _bytes_text,
        "time": _time_text,
        "duration": _duration_text,
        "end": _endpoint,
        "server_name": server_name,
        "top": _top_labels,
    }
    return environment


def _shown(value: Any) -> Any:
    """Foreign text fit for a page: escaping is Jinja's, control characters are not."""
    return clean(value, MAX_TEXT_CHARS) if type(value) is str else value


def _bytes_text(count: float) -> str:
    unit = 0
    while count >= 1024 and unit < len(_UNITS) - 1:
        count /= 1024
        unit += 1
    return f"{count:.0f} {_UNITS[unit]}" if unit == 0 else f"{count:.1f} {_UNITS[unit]}"


def _time_text(time_us: int, form: str = "%Y-%m-%d %H:%M:%S") -> str:
    try:
        return datetime.fromtimestamp(time_us / 1e6, UTC).strftime(form)
    except (ValueError, OverflowError, OSError):
        return f"{time_us / 1e6:.0f} s"


def _duration_text(seconds: int) -> str:
    for unit, name in ((86_400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.1f} {name}"
    return "1 second" if seconds == 1 else f"{seconds} seconds"


def _endpoint(address: str, port: int, proto: str) -> str:
    if proto not in ("tcp", "udp"):
        return address
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _top_labels(labels: Counter[str], limit: int = 4) -> Iterable[str]:
    return [f"{label} {count:,}" for label, count in labels.most_common(limit)]
