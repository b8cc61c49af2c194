"""Traces as rows of a table."""

from __future__ import annotations

from collections.abc import Iterable

from markupsafe import Markup

from tapline.service.dashboard.board import address
from tapline.service.dashboard.frame import Cell, joined, link, tag
from tapline.service.dashboard.shown_flows import host_cell
from tapline.service.dashboard.words import moment, percent
from tapline.service.history.past import PastTrace
from tapline.service.traces.trace_verdict import shown_confidence

TRACE_COLUMNS = ("UTC", "host", "label", "confidence", "flows", "model")


def trace_rows(traces: Iterable[PastTrace], job: str | None = None) -> list[list[Cell]]:
    """A row for each trace."""
    return [_row(trace, moment(trace.seen_us, day=False), trace.number, job) for trace in traces]


def _row(trace: PastTrace, at: str, number: int, job: str | None) -> list[Cell]:
    verdict = trace.verdict
    return [
        link(at, address("/trace", {"job": job, "number": number})),
        host_cell(trace.subject, None, job),
        trace_label(trace),
        percent(shown_confidence(verdict, trace.suspicion, trace.suspicious)),
        trace.flows,
        f"{verdict.model} {verdict.version}",
    ]


def trace_label(trace: PastTrace) -> Markup:
    """The label, whether the trace is suspicious, and whether it is still open."""
    words: list[Cell] = []
    if trace.suspicious is not None:
        words.append(tag(f"suspicious {percent(trace.suspicion)}", "alarm") if trace.suspicious else "not suspicious")
    if trace.suspicious is not False:
        words.append(tag(trace.verdict.label) if trace.verdict.unknown else trace.verdict.label)
    if not trace.verdict.final:
        words.append(tag("window open"))
    return joined(words)
