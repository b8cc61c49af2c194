"""*Health*: is the service well, and what became of everything that came in, in words."""

from __future__ import annotations

import dataclasses

import msgspec
from fastapi import Request
from nicegui import ui
from prometheus_client import Counter

from tapline.service.alerts.alert_watch import AlertWatch
from tapline.service.dashboard.board import Board
from tapline.service.dashboard.frame import Cell, PlainTable, frame, html, panel, toned
from tapline.service.dashboard.words import HISTORY_OUTCOMES, LIVE_OUTCOMES
from tapline.service.sinks.delivery import Delivery

READ_SECONDS = 5.0
PART_COLUMNS = ("part", "state", "deaths", "last reason")

RULES_COLUMNS = ("at work", "file", "state")
OUTPUT_COLUMNS = ("output", "state", "written", "waiting", "dropped", "failed")

FAILURE_WORDS = {
    "REJECTED": "were turned away: the service had no room",
    "CANCELED": "were given up by who had asked",
    "BACKEND": "could not be computed by the engine",
    "OTHER": "failed in another way",
}


def health_page(board: Board, request: Request) -> None:
    """Build the page."""
    with frame(request, "Health"):
        state = ui.html("", sanitize=False).props("role=status")
        with ui.element("div").classes("two"):
            with panel("Live flows: what became of them"):
                live = PlainTable(("flows", "what"), ("flows",))
            with panel("History: what became of verdicts"):
                history = PlainTable(("records", "what"), ("records",))
                problem = ui.label().classes("caution")
        with ui.element("div").classes("two"):
            with panel("Packets of captures without a flow"):
                skipped = PlainTable(("packets", "why"), ("packets",), "none")
            with panel("Requests for verdicts that failed"):
                failed = PlainTable(("flows", "what"), ("flows",), "none")
        with panel("Outputs"):
            outputs = PlainTable(OUTPUT_COLUMNS, OUTPUT_COLUMNS[2:], "none is set")
        with panel("Alert rules"):
            rules = PlainTable(RULES_COLUMNS, RULES_COLUMNS[:1], "none: start with --alerts RULES.toml")
        with panel("Long-lived parts of the service"):
            parts = PlainTable(PART_COLUMNS, ("deaths",), "none")
        with ui.row():
            ui.link("Prometheus metrics", "/metrics")
            ui.link("REST API", "/docs")

        def show() -> None:
            reason = board.service.not_ready()
            state.set_content(html(toned(f"Not ready: {reason}.", "alarm") if reason else toned("Ready.", "good")))
            live.show(_words(dataclasses.asdict(board.service.pipeline.counts), LIVE_OUTCOMES))
            kept = board.service.history
            history.show(_words(msgspec.structs.asdict(kept.counts), HISTORY_OUTCOMES) if kept else [])
            problem.set_text((kept.problem or "") if kept else "no history is kept")
            skipped.show([f"{count:,}", why] for why, count in _by_label(board.service.metrics.packets_skipped))
            failed.show(
                [f"{count:,}", FAILURE_WORDS.get(why, why)] for why, count in _by_label(board.service.metrics.failures)
            )
            outputs.show(_output_row(delivery) for delivery in board.service.outputs.deliveries)
            rules.show(_rules_rows(board.service.alerts))
            parts.show(_part_rows(board))

        show()
        ui.timer(READ_SECONDS, show)


def _words(counts: dict[str, int], words: dict[str, str]) -> list[list[Cell]]:
    return [[f"{counts[name]:,}", text] for name, text in words.items() if name in counts]


def _by_label(counter: Counter) -> list[tuple[str, int]]:
    """The values of a counter with one label, largest first; what is 0 is left out."""
    samples = next(iter(counter.collect())).samples
    found = [(next(iter(each.labels.values())), int(each.value)) for each in samples if each.name.endswith("_total")]
    return sorted(((why, count) for why, count in found if count), key=lambda item: -item[1])


def _output_row(delivery: Delivery) -> list[Cell]:
    counts = delivery.counts
    return [
        delivery.name,
        toned(delivery.problem, "alarm") if delivery.problem else toned("takes what comes", "good"),
        f"{counts.written:,}",
        f"{delivery.queued + delivery.spooled:,}",
        f"{counts.dropped:,}",
        f"{counts.failed:,}",
    ]


def _rules_rows(watch: AlertWatch | None) -> list[list[Cell]]:
    if watch is None:
        return []
    state = toned("as the file says", "good") if watch.problem is None else toned(watch.problem, "alarm")
    return [[watch.rules, str(watch.path), state]]


def _part_rows(board: Board) -> list[list[Cell]]:
    return [
        [
            part.name,
            toned("runs", "good")
            if part.running
            else toned("ended", "quiet")
            if part.ended
            else toned("down", "alarm"),
            part.deaths,
            part.reason,
        ]
        for part in board.service.supervisor.parts.values()
    ]
