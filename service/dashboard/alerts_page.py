"""*Alerts*: what rules made of live verdicts, newest first, as the page's address asks; and one alert by its number."""

from __future__ import annotations

from typing import get_args

from fastapi import Request
from markupsafe import Markup
from nicegui import ui

from tapline.service.access.audit import NOBODY
from tapline.service.alerts.alert import Alert, Severity
from tapline.service.alerts.alert_watch import AlertWatch
from tapline.service.dashboard.allowed import accounted, is_allowed, signed_in
from tapline.service.dashboard.board import ASKING, Board, address, asked
from tapline.service.dashboard.frame import Cell, PlainTable, Tone, frame, joined, link, panel, tag
from tapline.service.dashboard.shown_flows import host_cell
from tapline.service.dashboard.words import counted, moment, percent
from tapline.service.history.filters import AlertFilter
from tapline.service.history.past import Page, PastAlert

PAGE_ALERTS = 100
READ_SECONDS = 5.0

COLUMNS = ("UTC", "severity", "what", "about", "rule")
NOTHING = "No alert is like this."
NO_RULES = (
    "Alerts are made by rules, and there are none until you give some: "
    "start with --alerts RULES.toml, as docs/alerts.md says."
)
FIELDS = {
    "since_us": ("since", "15m, 2h, 7d or 2026-06-01T08:00"),
    "rule": ("rule", "its name"),
    "host": ("host or network", "10.0.0.5 or 10.0.0.0/8"),
    "label": ("label", "ssh, or unknown"),
}
TONES: dict[Severity, Tone] = {"low": "quiet", "medium": "caution", "high": "alarm", "critical": "grave"}


async def alerts_page(board: Board, request: Request) -> None:
    """Build the page."""
    query = dict(request.query_params)
    with frame(request, "Alerts"):
        with panel():
            _filters(query)
        with panel():
            problem = ui.label().classes("caution").props("role=alert")
            rules = ui.html("", sanitize=False)
            count = ui.label().classes("quiet")
            nothing = ui.label()
            table = PlainTable(COLUMNS, (), "", stacked=True)
            pages = ui.row()

        async def show() -> None:
            rules.set_content(rules_state(board.service.alerts))
            try:
                page = await _find(board, query)
            except ASKING as error:
                problem.set_text(str(error))
                return
            problem.set_text("")
            nothing.set_text("" if page.items else NOTHING if board.service.alerts else f"{NOTHING} {NO_RULES}")
            count.set_text(f"{PAGE_ALERTS} of more" if page.next else counted(len(page.items), "alert"))
            table.show(map(_row, page.items))
            pages.clear()
            with pages:
                if query.get("cursor"):
                    ui.link("First page", address("/alerts", {**query, "cursor": None}))
                if page.next:
                    ui.link("Next page", address("/alerts", {**query, "cursor": page.next})).props("rel=next")

        await show()
        if not query.get("cursor"):
            ui.timer(READ_SECONDS, show, immediate=False)


async def alert_page(board: Board, request: Request) -> None:
    """Build the page of an alert."""
    number = request.query_params.get("number", "")
    try:
        found = await board.history.alert_of(int(number[:18])) if number.isascii() and number.isdigit() else None
    except ASKING as error:
        with frame(request, "Alert"):
            ui.label(str(error)).classes("caution").props("role=alert")
        return
    if found is None:
        with frame(request, "Alert"):
            ui.label("There is no such alert, or it was too old to be kept.").classes("caution")
        return
    alert: PastAlert = found
    with frame(request, alert.message or alert.rule), panel("Alert"):
        PlainTable(("", " ")).show(_facts(alert))
        _seeing_to(board, request, alert)


def _seeing_to(board: Board, request: Request, alert: PastAlert) -> None:
    """Who has seen to an alert, and the button of who now does."""
    seen = ui.label().classes("quiet")
    caller, action = signed_in(request), f"see to alert {alert.id}"
    button = ui.button("I have seen to it").props("unelevated no-caps")

    def tell(now: PastAlert) -> None:
        at_us = now.acknowledged_us
        seen.set_text("" if at_us is None else f"Seen to{_by(now)}, {moment(at_us)}.")
        button.set_visibility(at_us is None and caller.may("classify"))
        if at_us is None and not caller.may("classify"):
            seen.set_text("Nobody has seen to it. To say so wants a key of the scope classify.")

    async def acknowledge() -> None:
        if not is_allowed(caller, "classify", action):
            return
        try:
            now = await board.history.alert_of(alert.number)
            if now is not None and now.acknowledged_us is not None:  # somebody else, since the page was opened
                tell(now)
                return
            await accounted(caller, action, lambda: board.history.acknowledge(alert.id, caller.name))
        except ASKING as error:
            ui.notify(str(error), type="warning")
            return
        button.set_visibility(False)
        seen.set_text("Noted.")

    button.on_click(acknowledge)
    tell(alert)


def rules_state(watch: AlertWatch | None) -> Markup:
    """How many rules are at work, and what is wrong with those that are not; nothing where none were given."""
    if watch is None:
        return Markup("")
    at_work = f"{counted(watch.rules, 'rule')} of {watch.path.name} at work"
    if watch.problem is None:
        return Markup('<span class="quiet">{}</span>').format(at_work)
    return Markup('<span class="alarm" role="alert">{}</span>').format(
        f"The rules have mistakes; those before them work on ({at_work}): {watch.problem}"
    )


async def _find(board: Board, query: dict[str, str]) -> Page[PastAlert]:
    return await board.history.alerts(asked(query, AlertFilter), limit=PAGE_ALERTS, cursor=query.get("cursor"))


def _filters(query: dict[str, str]) -> None:
    inputs: dict[str, ui.input] = {}

    def apply() -> None:
        given = {name: field.value for name, field in inputs.items()}
        given["severity"] = severity.value if severity.value != "low" else ""
        given["acknowledged"] = "false" if waiting.value else ""
        ui.navigate.to(address("/alerts", given))

    with ui.element("div").classes("filters"):
        levels = get_args(Severity)
        chosen = query["severity"] if query.get("severity") in levels else "low"
        severity = ui.select({each: f"{each} and higher" for each in levels[:-1]} | {levels[-1]: levels[-1]},
                             label="severity", value=chosen).props("outlined dense")  # fmt: skip
        for name, (label, hint) in FIELDS.items():
            field = ui.input(label, value=query.get(name, ""), placeholder=hint).props("outlined dense stack-label")
            inputs[name] = field.on("keydown.enter", apply)
        waiting = ui.checkbox("not seen to", value=query.get("acknowledged") == "false")
        ui.button("Show", on_click=apply).props("unelevated no-caps")
        ui.link("All", "/alerts")


def _row(alert: PastAlert) -> list[Cell]:
    return [
        link(moment(alert.seen_us), address("/alert", {"number": alert.number})),
        severity_cell(alert),
        joined([alert.message, *([tag(f"seen to{_by(alert)}")] if alert.acknowledged_us is not None else [])]),
        _about(alert),
        link(alert.rule, address("/alerts", {"rule": alert.rule})),
    ]


def _by(alert: PastAlert) -> str:
    """Who has seen to an alert, where it is known."""
    return "" if alert.acknowledged_by in (None, NOBODY) else f" by {alert.acknowledged_by}"


def severity_cell(alert: Alert) -> Markup:
    """The severity, in a colour."""
    return tag(alert.severity, TONES[alert.severity])


def _about(alert: Alert) -> Cell:
    """What it is about, with the way to it."""
    if alert.uid:
        return link(f"{alert.orig_h} to {alert.resp_h}", address("/flows", {"uid": alert.uid}))
    if alert.subject:
        return host_cell(alert.subject, None, None)
    if alert.orig_h:
        return host_cell(alert.orig_h, None, None)
    return link(alert.model, "/models")


def _facts(alert: PastAlert) -> list[list[Cell]]:
    """What is known of an alert, without what does not apply."""
    ends = [host_cell(host, port, None) for host, port in _ends(alert)]
    flows = [link(uid, address("/flows", {"uid": uid})) for uid in (alert.uid, *alert.top_uids) if uid]
    found: list[tuple[str, Cell]] = [
        ("severity", severity_cell(alert)),
        ("rule", link(alert.rule, address("/alerts", {"rule": alert.rule}))),
        ("made (UTC)", moment(alert.time_us)),
        ("label", alert.label),
        ("confidence", None if alert.confidence is None else percent(alert.confidence)),
        ("what moved", alert.reason),
        ("host", host_cell(alert.subject, None, None) if alert.subject else ""),
        ("between", joined(ends, " and ") if ends else ""),
        ("server's name", alert.server_name),
        ("flows", joined(flows, ", ") if flows else ""),
        ("matches", f"{alert.matches:,}" if alert.matches else ""),
        ("not told of since the last one", f"{alert.suppressed:,}" if alert.suppressed else ""),
        ("suspicion", None if alert.suspicion is None else percent(alert.suspicion)),
        ("sensor", alert.sensor),
        ("from", alert.source),
        ("by", f"{alert.model} {alert.version}"),
        ("identifier", alert.id),
    ]
    return [[name, value] for name, value in found if value not in (None, "")]


def _ends(alert: Alert) -> list[tuple[str, int | None]]:
    return [(host, port) for host, port in ((alert.orig_h, alert.orig_p), (alert.resp_h, alert.resp_p)) if host]
