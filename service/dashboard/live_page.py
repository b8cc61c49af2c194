"""*Live*: what happens now."""

from __future__ import annotations

import time
from collections.abc import Sequence

from fastapi import Request
from nicegui import ui

from tapline.models.verdict import UNKNOWN
from tapline.service.alerts.alert import Severity
from tapline.service.dashboard.activity import STEP_SECONDS
from tapline.service.dashboard.board import ASKING, Board
from tapline.service.dashboard.charts import verdict_rates
from tapline.service.dashboard.frame import Cell, Figure, PlainTable, frame, panel, toned
from tapline.service.dashboard.shown_flows import flow_table, rows
from tapline.service.dashboard.shown_traces import TRACE_COLUMNS, trace_rows
from tapline.service.dashboard.unusual import Unusual
from tapline.service.dashboard.words import percent, rate, span
from tapline.service.history.filters import AlertFilter
from tapline.service.live.sensors import Sensor

NEWEST = 15
READ_SECONDS = 5.0
"""How often what is in the history is read anew, once for all pages."""

ALERT_SECONDS = 86_400
"""Alerts that are counted are no older."""

LATE_SECONDS = 30.0
"""A sensor that is so far behind is marked; its counters come every ten seconds."""

SENSOR_COLUMNS = ("sensor", "state", "format", "behind", "flows", "missed", "lost by Zeek", "verdicts waiting")


class LiveReading:
    """What the pages show of the history, read once for all of them."""

    def __init__(self, board: Board, unusual: Unusual) -> None:
        self.flows: list[list[Cell]] = []
        self.traces: list[list[Cell]] = []
        self.alerts: dict[Severity, int] = {}
        self.sensors: dict[str, int] = {}
        self.problem: str | None = None
        self.unusual = unusual
        self._board = board
        self._read_at = 0.0

    async def refresh(self) -> None:
        """Read again, unless that was done a moment ago."""
        if time.monotonic() - self._read_at < READ_SECONDS:
            return
        self._read_at = time.monotonic()
        try:
            self.flows = rows((await self._board.history.flows(limit=NEWEST)).items)
            self.traces = trace_rows((await self._board.history.traces(limit=NEWEST)).items)
            since_us = round((time.time() - ALERT_SECONDS) * 1e6)
            self.alerts = await self._board.history.alert_counts(AlertFilter(since_us=since_us, acknowledged=False))
            self.sensors = await self._board.history.recent_sensors()
            await self.unusual.look()
            self.problem = self._board.history.problem
        except ASKING as error:
            self.problem = str(error)


def live_page(board: Board, reading: LiveReading, request: Request) -> None:
    """Build the page."""
    with frame(request, "Live", heading=False):
        ui.html("<h1>Live</h1>", sanitize=False)
        with ui.element("div").classes("figures"):
            figures = {name: Figure(name, hint) for name, hint in _FIGURES.items()}
        with panel("Verdicts by label, last ten minutes"):
            chart = ui.echart(verdict_rates(board.activity.steps), renderer="svg").style("height: 300px; width: 100%")
            chart.props('role=img aria-label="Verdicts a second by label over the last ten minutes"')
        with panel("Unusual now"):
            notes = ui.html("", sanitize=False)
        with panel("Sensors"):
            sensors = PlainTable(SENSOR_COLUMNS, SENSOR_COLUMNS[3:], "no sensor: start with --interface or --zeek")
        with panel("Newest verdicts on flows"):
            flows = flow_table("no verdicts yet: hand in a capture under Captures, or start with --interface, --zeek "
                               "or --replay")  # fmt: skip
        with panel("Newest verdicts on hosts"):
            traces = PlainTable(TRACE_COLUMNS, ("flows", "confidence"), "none yet: a host needs some flows first")
        problem = ui.label().classes("caution")

        async def show() -> None:
            await reading.refresh()
            _show_figures(board, figures)
            _show_alerts(reading.alerts, figures["alerts"])
            chart.options.clear()
            chart.options.update(verdict_rates(board.activity.steps))
            notes.set_content(reading.unusual.html)
            own = board.service.sensors.sensors
            sensors.show([*(row for sensor in own for row in _sensor_rows(sensor)), *_other_rows(own, reading.sensors)])
            flows.show(reading.flows)
            traces.show(reading.traces)
            problem.set_text(reading.problem or "")

        ui.timer(STEP_SECONDS, show)


_FIGURES = {
    "flows in / s": "flows that came in, early forms counted too, mean of ten seconds",
    "verdicts / s": "verdicts that went out",
    "unknown": "share of the verdicts that say unknown",
    "latency p50": "from a flow's arrival to its verdict, median",
    "latency p99": "of 99 verdicts in a hundred",
    "waiting": "flows in the queue",
    "shed / s": "flows dropped because more come than can be computed",
    "alerts": "of the last 24 hours that nobody has seen to",
}


def _show_figures(board: Board, figures: dict[str, Figure]) -> None:
    activity, pipeline = board.activity, board.service.pipeline
    shed = activity.rate("shed")
    latency = activity.latency_seconds
    figures["flows in / s"].show(rate(activity.rate("received")))
    figures["verdicts / s"].show(rate(activity.rate("delivered")))
    figures["unknown"].show(percent(activity.share(UNKNOWN)))
    figures["latency p50"].show(span(latency[0]) if latency else "-")
    figures["latency p99"].show(span(latency[1]) if latency else "-")
    figures["waiting"].show(f"{pipeline.waiting_flows:,}", "caution" if pipeline.queue_share > 0.5 else "")
    figures["shed / s"].show(rate(shed), "alarm" if shed else "")


def _show_alerts(counts: dict[Severity, int], figure: Figure) -> None:
    grave = counts.get("high", 0) + counts.get("critical", 0)
    figure.show(f"{sum(counts.values()):,}", "alarm" if grave else "caution" if counts else "")


def _behind(lag_seconds: float | None) -> Cell:
    if lag_seconds is None:
        return "-"
    return toned(span(max(0.0, lag_seconds)), "caution" if lag_seconds > LATE_SECONDS else "")


def _format(number: int, hint: str | None) -> Cell:
    """Of the events that a sensor's flows come in, and what to do about it."""
    if hint is not None:
        return toned(f"{number}: {hint}", "caution")
    return str(number) if number else "-"


def _other_rows(own: Sequence[Sensor], recent: dict[str, int]) -> list[Sequence[Cell]]:
    """Sensors that other services have, by what these wrote to the history that all share."""
    known = {name for sensor in own for name in sensor.source.state.sensors}
    verdicts = [
        (name, f"{count:,} verdicts in ten minutes") for name, count in sorted(recent.items()) if name not in known
    ]
    return [[name, toned("of another service", "quiet"), "-", "-", told, "-", "-", "-"] for name, told in verdicts]


def _sensor_rows(sensor: Sensor) -> Sequence[Sequence[Cell]]:
    state = sensor.source.state
    connection = toned("connected", "good") if state.connected else toned(state.reason or "not connected", "alarm")
    if not state.sensors:
        return [[state.url, connection, "-", "-", 0, 0, "-", sensor.pending_verdicts]]
    found: list[Sequence[Cell]] = []
    for name, account in state.sensors.items():
        loss = account.stats.loss_percent if account.stats is not None else -1.0
        found.append([
            name or state.url, connection, _format(account.format, account.format_hint),
            _behind(account.lag_seconds), f"{account.flows:,}",
            toned(f"{account.missed:,}", "caution" if account.missed else ""),
            "-" if loss < 0 else toned(f"{loss:.2f} %", "caution" if loss > 1 else ""),
            f"{sensor.pending_verdicts:,}",
        ])  # fmt: skip
    return found
