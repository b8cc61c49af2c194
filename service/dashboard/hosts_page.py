"""*Hosts*: who began flows, what they were, and who tried in vain; and the page of one host with its traces."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from fastapi import Request
from nicegui import ui

from tapline.service.dashboard.board import ASKING, Board, address, flow_filter
from tapline.service.dashboard.charts import counted_over_time
from tapline.service.dashboard.frame import Cell, PlainTable, frame, panel
from tapline.service.dashboard.shown_flows import flow_table, host_cell, rows
from tapline.service.dashboard.shown_traces import TRACE_COLUMNS, trace_rows
from tapline.service.dashboard.words import moment, ports, size
from tapline.service.history.filters import FlowFilter, TraceFilter
from tapline.service.history.past import PastHost, Unclassified

HOSTS = 100
"""Hosts on a page."""

MOST_HOSTS = 1000
"""Hosts that pages go through: those with most flows."""

HOST_SORTS: dict[str, Callable[[PastHost], int]] = {
    "flows": lambda host: host.flows,
    "unknown": lambda host: host.unknown,
    "unexpected ports": lambda host: host.unexpected_ports,
    "bytes": lambda host: host.ip_bytes,
    "servers": lambda host: host.peers,
    "ports": lambda host: host.ports,
    "last seen": lambda host: host.last_seen_us,
}
HOST_COLUMNS = ("host", "flows", "unknown", "bytes", "servers", "ports", "labels", "last seen (UTC)")
TRIES_COLUMNS = ("host", "flows without payload", "ports", "hosts", "which ports", "last seen (UTC)")
NO_TRIES = "none; sensors tell of such flows where Tapline::publish_without_payload is set"
HOST_LABELS = 4
HOST_FLOWS = 50
PERIODS = {"1h": "last hour", "24h": "last day", "7d": "last seven days", "": "all that is kept"}


async def hosts_page(board: Board, request: Request) -> None:
    """Build the page of all hosts."""
    query = dict(request.query_params)
    with frame(request, "Hosts"):
        with panel():
            _host_filters(query)
        try:
            wanted = flow_filter({"since_us": "24h", **query})
            found = await board.history.hosts(wanted, limit=MOST_HOSTS)
            tries = await board.history.unclassified(wanted.since_us, host=wanted.host, limit=HOSTS)
        except ASKING as error:
            ui.label(str(error)).classes("caution").props("role=alert")
            return
        with panel("Hosts that began flows"):
            if not found.complete:
                ui.label(f"of the newest {found.flows_read:,} flows").classes("quiet")
            _host_table(found.hosts, query)
        with panel("Flows without payload: who tried what"):
            PlainTable(TRIES_COLUMNS, TRIES_COLUMNS[1:4], NO_TRIES).show(_tries_row(each) for each in tries)


def _host_filters(query: dict[str, str]) -> None:
    """The fields; what is chosen is in the page's address."""

    def apply() -> None:
        given = {"since_us": period.value, "host": network.value, "sort": sort.value if sort.value != "flows" else ""}
        ui.navigate.to(address("/hosts", given))

    with ui.element("div").classes("filters"):
        asked = query.get("since_us", "24h")
        period = ui.select({**PERIODS, asked: PERIODS.get(asked, asked)}, label="seen in the", value=asked)
        network = ui.input("host or network", value=query.get("host", ""), placeholder="10.0.0.0/8")
        sort = ui.select(list(HOST_SORTS), label="sorted by", value=_host_sort(query))
        for field in (period, network, sort):
            field.props("outlined dense stack-label")
        network.on("keydown.enter", apply)
        ui.button("Show", on_click=apply).props("unelevated no-caps")


def _host_sort(query: dict[str, str]) -> str:
    return query["sort"] if query.get("sort") in HOST_SORTS else "flows"


def _host_table(hosts: Sequence[PastHost], query: dict[str, str]) -> None:
    """A page of the hosts, in the order that was asked for."""
    ordered = sorted(hosts, key=HOST_SORTS[_host_sort(query)], reverse=True)
    text = query.get("page", "1")
    page = max(1, int(text[:6])) if text.isascii() and text.isdigit() else 1
    shown = ordered[(page - 1) * HOSTS : page * HOSTS]
    PlainTable(HOST_COLUMNS, HOST_COLUMNS[1:6], "none").show(_host_row(host) for host in shown)
    with ui.row():
        if page > 1:
            ui.link("Page before", address("/hosts", {**query, "page": page - 1})).props("rel=prev")
        if page * HOSTS < len(ordered):
            ui.link("Next page", address("/hosts", {**query, "page": page + 1})).props("rel=next")


def _host_row(host: PastHost) -> list[Cell]:
    labels = ", ".join(f"{each.label} {each.flows:,}" for each in host.labels[:HOST_LABELS])
    return [
        host_cell(host.host, None, None), f"{host.flows:,}", f"{host.unknown:,}", size(host.ip_bytes),
        f"{host.peers:,}", f"{host.ports:,}", labels, moment(host.last_seen_us),
    ]  # fmt: skip


def _tries_row(each: Unclassified) -> list[Cell]:
    more = "+" if each.more else ""
    return [
        host_cell(each.host, None, None), f"{each.without_payload:,}", f"{each.ports:,}{more}", f"{each.peers:,}{more}",
        ports(each.some_ports, each.ports > len(each.some_ports)), moment(each.last_seen_us),
    ]  # fmt: skip


async def host_page(board: Board, request: Request) -> None:
    """Build the page of one host."""
    host, job = request.query_params.get("host", ""), request.query_params.get("job")
    with frame(request, host or "Host"):
        try:
            wanted = flow_filter({"host": host})
            if job:
                flows = (await board.jobs.flows(job, wanted, limit=HOST_FLOWS)).items
                traces = (await board.jobs.traces(job, TraceFilter(subject=host or None), limit=HOST_FLOWS)).items
            else:
                flows = (await board.history.flows(wanted, limit=HOST_FLOWS)).items
                traces = (await board.history.traces(TraceFilter(subject=host or None), limit=HOST_FLOWS)).items
        except ASKING as error:
            ui.label(str(error)).classes("caution").props("role=alert")
            return
        if not job:
            await _over_time(board, host)
        with panel("What its flows together say"):
            PlainTable(TRACE_COLUMNS, ("flows", "confidence"), "no verdict on this host").show(trace_rows(traces, job))
        if not job:
            await _tries(board, host)
        with panel("Its newest flows"):
            flow_table("none").show(rows(flows, job))
            ui.link("All its flows", address("/flows", {"host": host, "job": job}))


async def _tries(board: Board, host: str) -> None:
    found = await board.history.unclassified(host=host, limit=20)
    if found:
        with panel("Tries in vain"):
            PlainTable(TRIES_COLUMNS, TRIES_COLUMNS[1:4]).show(_tries_row(each) for each in found)


async def _over_time(board: Board, host: str) -> None:
    """The host's flows of the last day, as far as a page of them goes."""
    now = time.time()
    newest = await board.history.flows(FlowFilter(host=host, since_us=round((now - 86_400) * 1e6)), limit=1000)
    if not newest.items:
        return
    counts: dict[str, dict[float, int]] = {}
    step = max(60.0, (now - newest.items[-1].seen_us / 1e6) / 60)
    for flow in newest.items:
        at = flow.seen_us / 1e6 // step * step
        label = flow.verdict.label
        counts.setdefault(label, {})[at] = counts.setdefault(label, {}).get(at, 0) + 1
    with panel(f"Its flows over time, the newest {len(newest.items):,} of the last day"):
        points = {label: sorted(found.items()) for label, found in counts.items()}
        ui.echart(counted_over_time(points, "flows", step), renderer="svg").style("height: 220px; width: 100%").props(
            'role=img aria-label="Flows of this host over time by label"'
        )
