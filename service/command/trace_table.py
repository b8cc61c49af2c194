"""Traces as a person sees them in a terminal: subject, window, verdict, and the flows that it looked at most."""

from __future__ import annotations

from collections.abc import Iterable

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tapline.service.command.terminal import (
    UNBOUNDED,
    Inputs,
    common_date,
    endpoint_text,
    label_text,
    time_text,
)
from tapline.service.results.records import Summary, TraceSummary
from tapline.service.results.selection import FirstRows
from tapline.service.traces.trace_verdict import IMPORTANCE_NOTE, NEAREST_NOTE, TopFlow, TraceVerdict, shown_confidence

SHOWN_FLOWS = 3
"""Flows shown of a trace; the other formats name more."""

TABLE_COLUMNS = 150
"""Below this width the live table has no column of flows."""


class TraceTable:
    """Collects the traces to show, the first `limit` (0: all) by input and window, and draws them: what several models
    say of one window stands together."""

    def __init__(self, limit: int) -> None:
        self._rows = FirstRows[TraceVerdict](limit, key=_place)

    def add(self, trace: TraceVerdict) -> None:
        """Take a trace."""
        self._rows.add(trace)

    def draw(self, console: Console, summary: Summary, inputs: Inputs | None = None) -> None:
        """Print the traces, and one sentence that accounts for those of each model; `inputs` numbers several."""
        self.draw_rows(console, "Traces", inputs, hint=": --limit 0 shows all")
        for entry in summary.traces:
            console.print(traces_text(entry))

    def draw_rows(self, console: Console, title: str, inputs: Inputs | None = None, *, hint: str = "") -> None:
        """Print the traces and what shares mean; `hint`: how to see those that are left out."""
        if rows := self._rows.rows():
            console.print(Text(title, style="bold"))
            table = _traces(rows, inputs)
            wanted = console.measure(table, options=console.options.update(max_width=UNBOUNDED)).maximum
            console.print(table if wanted <= console.width else _listed(rows, inputs))
            console.print(f"{NEAREST_NOTE} {IMPORTANCE_NOTE}", style="dim")
        if left_out := self._rows.left_out:
            console.print(f"… and {left_out} more traces{hint}", style="dim")


def _place(trace: TraceVerdict) -> tuple[str, int, str, str]:
    return trace.source, trace.start_us, trace.subject, trace.verdict.model


def _traces(rows: list[TraceVerdict], inputs: Inputs | None) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    if inputs is not None:
        table.add_column("in", justify="right")
    table.add_column("label", no_wrap=True)
    table.add_column("confidence", justify="right")
    table.add_column("subject", no_wrap=True)
    table.add_column("window (UTC)", no_wrap=True)
    table.add_column("flows", justify="right")
    table.add_column("looked at most", overflow="fold")
    for trace in rows:
        shown = [_flow_text(flow) for flow in trace.top_flows[:SHOWN_FLOWS]]
        table.add_row(
            *([str(inputs.number(trace.source))] if inputs is not None else []),
            _label_cell(trace, Text(f"by {trace.verdict.model}", style="dim")),
            _confidence_text(trace),
            Text(trace.subject),
            window_text(trace),
            flows_text(trace),
            Text("\n").join(shown),
        )
    return table


def _listed(rows: list[TraceVerdict], inputs: Inputs | None) -> Text:
    """The same for a narrow terminal: of each trace two lines or three, then its flows."""
    text = Text()
    for trace in rows:
        number = f", in {inputs.number(trace.source)}" if inputs is not None else ""
        counted = "1 flow" if trace.flows == 1 and not trace.cut else f"{flows_text(trace)} flows"
        lines = [
            Text.assemble(_label_text(trace), f"  {_confidence_text(trace)}  {trace.subject}"),
            Text(f"  {window_text(trace)}, {counted}, by {trace.verdict.model}{number}"),
            *([Text("  ") + mark] if (mark := _suspicious_text(trace)) else []),
            *(Text("  ") + _flow_text(flow) for flow in trace.top_flows[:SHOWN_FLOWS]),
        ]
        text.append_text(Text("\n").join([*lines, Text()]))
    return text


def recent_traces(rows: Iterable[TraceVerdict], width: int = TABLE_COLUMNS) -> Table:
    """Traces of the live path, those of each model below its name, each on one line, or two where it is suspicious;
    with the flow that it looked at most where there is room for it.
    """
    is_wide = width >= TABLE_COLUMNS
    columns = ("label", "confidence" if is_wide else "conf.", "", "subject", "window (UTC)", "flows")
    table = Table(*columns, *(["looked at most"] if is_wide else []), box=None, pad_edge=is_wide)
    by_model: dict[str, list[TraceVerdict]] = {}
    for trace in rows:
        by_model.setdefault(trace.verdict.model, []).append(trace)
    for model, own in by_model.items():
        table.add_row(Text(f"by {model}", style="dim"))
        for trace in own:
            table.add_row(
                _label_cell(trace),
                _confidence_text(trace),
                "" if trace.verdict.final else "early",
                Text(trace.subject),
                window_text(trace, dated=is_wide),
                flows_text(trace),
                *([_flow_text(trace.top_flows[0])] if is_wide else []),
            )
    return table


def _label_cell(trace: TraceVerdict, *beside: Text) -> Text:
    """The label, and in lines below it what stands `beside`, and that the trace is suspicious."""
    mark = _suspicious_text(trace)
    return Text("\n").join([_label_text(trace), *beside, *([mark] if mark else [])])


def _label_text(trace: TraceVerdict) -> Text:
    """The label; of what is not suspicious that alone: the nearest malicious kind would only alarm."""
    return Text("not suspicious", style="dim") if trace.suspicious is False else label_text(trace.verdict)


def _confidence_text(trace: TraceVerdict) -> str:
    """The confidence in what `_label_text` says."""
    return f"{shown_confidence(trace.verdict, trace.suspicion, trace.suspicious):.2f}"


def _suspicious_text(trace: TraceVerdict) -> Text | None:
    """`suspicious 97%`, None where the trace is not."""
    return Text(f"suspicious {trace.suspicion:.0%}", style="bold red") if trace.suspicious else None


def window_text(trace: TraceVerdict, *, dated: bool = True) -> str:
    """`2016-02-10 12:31:08 to 12:41:08`; the date a second time where it is another; seconds where it is no date.

    Without `dated` the times alone.
    """
    same_day = common_date((trace.start_us, trace.end_us)) is not None
    return f"{time_text(trace.start_us, dated=dated)} to {time_text(trace.end_us, dated=not same_day)}"


def flows_text(trace: TraceVerdict) -> str:
    """Flows scored, and of how many where some were cut."""
    return f"{trace.flows} of {trace.flows + trace.cut}" if trace.cut else str(trace.flows)


def _flow_text(flow: TopFlow) -> Text:
    orig = endpoint_text(flow.orig_h, flow.orig_p, flow.proto)
    resp = endpoint_text(flow.resp_h, flow.resp_p, flow.proto)
    label = f" ({flow.label})" if flow.label else ""
    return Text(f"{flow.share:4.0%}  {flow.proto} {orig} > {resp}{label}")


def traces_text(summary: TraceSummary) -> str:
    """One sentence that accounts for the traces."""
    notes = [
        f"{count} {why}"
        for count, why in (
            (summary.below_min_flows, "with too few flows for a verdict"),
            (summary.failed, "on which the engine failed"),
            (summary.cut, "older flows cut"),
            (summary.late, "flows after their window was closed"),
            (summary.unread, "flows on which the encoder failed"),
        )
        if count
    ]
    tail = f"; {', '.join(notes)}" if notes else ""
    traces = "1 trace" if summary.traces == 1 else f"{summary.traces} traces"
    suspicious = "" if summary.suspicious is None else f", {summary.suspicious} of them suspicious"
    return f"{traces} of {summary.flows} flows classified by {summary.model} {summary.version}{suspicious}{tail}."
