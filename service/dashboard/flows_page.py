"""*Flows*: the history, or a capture's flows, as the page's address asks: a link reproduces the view."""

from __future__ import annotations

from fastapi import Request
from nicegui import ui

from tapline.service.dashboard.board import ASKING, Board, address, flow_filter
from tapline.service.dashboard.frame import frame, panel
from tapline.service.dashboard.shown_flows import flow_table, rows
from tapline.service.dashboard.words import counted
from tapline.service.history.history_errors import SlowQueryError
from tapline.service.history.past import FlowSort, Page, PastFlow

PAGE_FLOWS = 100
COUNT_AT_MOST = 10_000

FIELDS = {
    "since_us": ("since", "15m, 2h, 7d or 2026-06-01T08:00"),
    "until_us": ("until", "as since"),
    "host": ("host or network", "10.0.0.5 or 10.0.0.0/8"),
    "port": ("server's port", "443"),
    "label": ("label", "ssh, or unknown"),
    "nearest": ("nearest label", "of unknown flows, too"),
    "min_confidence": ("confidence from", "0.9"),
    "max_confidence": ("confidence to", "0.5"),
    "model": ("model", ""),
    "sensor": ("sensor", ""),
}
SORTS: tuple[FlowSort, ...] = ("time", "confidence", "bytes")


async def flows_page(board: Board, request: Request) -> None:
    """Build the page."""
    query = dict(request.query_params)
    job = query.get("job")
    title = "Flows"
    if job:
        title = f"Flows of {_name(board, job)}"
    with frame(request, title):
        with panel():
            _filters(query)
        with panel():
            try:
                page = await _find(board, query)
                total = await _count(board, query)
            except ASKING as error:
                ui.label(str(error)).classes("caution").props("role=alert")
                return
            ui.label(total).classes("quiet")
            table = flow_table("no flow is like this")
            table.show(rows(page.items, job))
            with ui.row():
                if query.get("cursor"):
                    ui.link("First page", address("/flows", {**query, "cursor": None}))
                if page.next:
                    ui.link("Next page", address("/flows", {**query, "cursor": page.next})).props("rel=next")


def _name(board: Board, job: str) -> str:
    try:
        return board.jobs.get(job).name
    except ASKING:
        return "a capture that is not here any more"


async def _find(board: Board, query: dict[str, str]) -> Page[PastFlow]:
    wanted = flow_filter(query)
    sort: FlowSort = next((name for name in SORTS if name == query.get("sort")), "time")
    ascending, cursor = query.get("order") == "up", query.get("cursor")
    if job := query.get("job"):
        return await board.jobs.flows(job, wanted, sort=sort, ascending=ascending, limit=PAGE_FLOWS, cursor=cursor)
    return await board.history.flows(wanted, sort=sort, ascending=ascending, limit=PAGE_FLOWS, cursor=cursor)


async def _count(board: Board, query: dict[str, str]) -> str:
    if query.get("job"):
        return ""
    try:
        count = await board.history.count_flows(flow_filter(query), COUNT_AT_MOST)
    except SlowQueryError:
        return "more flows than can be counted quickly"
    return f"more than {COUNT_AT_MOST:,} flows" if count >= COUNT_AT_MOST else counted(count, "flow")


def _filters(query: dict[str, str]) -> None:
    """The fields; Enter in any of them, or the button, shows the view."""
    inputs: dict[str, ui.input] = {}

    def apply() -> None:
        given = {name: field.value for name, field in inputs.items()}
        given |= {"sort": sort.value if sort.value != "time" else "", "order": "up" if ascending.value else ""}
        for name, box in (("unknown", unknown), ("unexpected_port", unexpected)):
            given[name] = "true" if box.value else ""
        ui.navigate.to(address("/flows", {"job": query.get("job"), **given}))

    with ui.element("div").classes("filters"):
        for name, (label, hint) in FIELDS.items():
            field = ui.input(label, value=query.get(name, ""), placeholder=hint).props("outlined dense stack-label")
            inputs[name] = field.on("keydown.enter", apply)
        chosen = query["sort"] if query.get("sort") in SORTS else "time"
        sort = ui.select({**{name: name for name in SORTS}, "time": "newest"}, label="sorted by", value=chosen)
        sort.props("outlined dense")
        ascending = ui.checkbox("smallest first", value=query.get("order") == "up")
        unknown = ui.checkbox("unknown", value=query.get("unknown") == "true")
        unexpected = ui.checkbox("unexpected port", value=query.get("unexpected_port") == "true")
        ui.button("Show", on_click=apply).props("unelevated no-caps")
        ui.link("All", address("/flows", {"job": query.get("job")}))
