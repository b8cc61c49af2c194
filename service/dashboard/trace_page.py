"""*Trace*: what the flows of one host together say, and which of them went with it."""

from __future__ import annotations

from fastapi import Request
from markupsafe import Markup
from nicegui import ui

from tapline.service.dashboard.board import ASKING, Board, address
from tapline.service.dashboard.charts import flows_of_trace
from tapline.service.dashboard.flow_page import verdict_panel
from tapline.service.dashboard.frame import Cell, PlainTable, frame, joined, link, panel
from tapline.service.dashboard.shown_flows import host_cell
from tapline.service.dashboard.shown_traces import trace_label
from tapline.service.dashboard.words import counted, moment, percent, size, span
from tapline.service.history.past import PastTrace
from tapline.service.traces.trace_verdict import IMPORTANCE_NOTE, NEAREST_NOTE, TopFlow

COLUMNS = ("share", "began (UTC)", "label", "client", "server", "name", "bytes", "took")


async def trace_page(board: Board, request: Request) -> None:
    """Build the page."""
    job, number = request.query_params.get("job"), request.query_params.get("number", "")
    try:
        trace: PastTrace | None = None
        if number.isascii() and number.isdigit():
            wanted = int(number[:18])
            trace = await (board.jobs.trace(job, wanted) if job else board.history.trace_of(wanted))
    except ASKING as error:
        with frame(request, "Trace"):
            ui.label(str(error)).classes("caution").props("role=alert")
        return
    if trace is None:
        with frame(request, "Trace"):
            ui.label("There is no such trace, or it was too old to be kept.").classes("caution")
        return
    with frame(request, f"{trace.subject}, {counted(trace.flows, 'flow')}"):
        with ui.element("div").classes("two"):
            with panel("Verdict"):
                ui.html(trace_label(trace), sanitize=False)
                if trace.suspicion is not None:
                    ui.label(f"Suspicion {percent(trace.suspicion)}.")
                if trace.suspicious is False:
                    ui.label("Nothing that the model knows is near enough to be named.")
                    ui.label(f"By {trace.verdict.model} {trace.verdict.version}.").classes("quiet")
                else:
                    verdict_panel(trace.verdict)
                    ui.label(NEAREST_NOTE).classes("quiet")
            with panel("Trace"):
                _facts(trace, job)
        with panel("Flows that went with it"):
            ui.label(IMPORTANCE_NOTE).classes("quiet")
            points = [
                (flow.start_us / 1e6, flow.share, _name(flow), flow.label or "unknown") for flow in trace.top_flows
            ]
            ui.echart(flows_of_trace(points), renderer="svg").style("height: 260px; width: 100%").props(
                'role=img aria-label="The flows of the trace on a time line, sized by their share"'
            )
            table = PlainTable(COLUMNS, ("share", "bytes"), "none")
            table.show(_row(flow, job) for flow in trace.top_flows)


def _facts(trace: PastTrace, job: str | None) -> None:
    found: list[list[Cell]] = [
        ["host", host_cell(trace.subject, None, job)],
        ["its part", trace.subject_kind],
        ["window (UTC)", f"{moment(trace.start_us)} to {moment(trace.end_us)}"],
        ["flows", f"{trace.flows:,}" + (f", {trace.cut:,} older ones left out" if trace.cut else "")],
        ["from", trace.source],
    ]
    PlainTable(("", " ")).show(found)


def _name(flow: TopFlow) -> str:
    return f"{flow.server_name or flow.resp_h} port {flow.resp_p}/{flow.proto}"


def _row(flow: TopFlow, job: str | None) -> list[Cell]:
    bar = Markup('<span class="share" style="width: {:.0f}px"></span>').format(80 * flow.share)
    return [
        joined([bar, percent(flow.share)]),
        link(moment(flow.start_us), address("/flows", {"uid": flow.uid, "job": job})),
        flow.label or "unknown",
        host_cell(flow.orig_h, flow.orig_p, job),
        joined([host_cell(flow.resp_h, flow.resp_p, job), flow.proto]),
        flow.server_name,
        size(flow.ip_bytes),
        span(flow.duration_us / 1e6),
    ]
