"""*Models*: what there is, what serves, their cards; load and unload."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import Request
from nicegui import ui

from tapline.models.card_header import headline_of, read_card
from tapline.models.checkpoint import Checkpoint, CheckpointError, TracegramCheckpoint
from tapline.service.access.access import Caller
from tapline.service.dashboard.allowed import accounted, is_allowed, signed_in
from tapline.service.dashboard.board import Board, address
from tapline.service.dashboard.frame import PlainTable, frame, panel, tag
from tapline.service.dashboard.shown_drift import DRIFT_COLUMNS, drift_meanings, drift_rows, drift_state
from tapline.service.engines.engine import EngineError
from tapline.service.inference.repository import UnknownModelError
from tapline.service.inference.served import ModelBusyError

_REFUSALS = (UnknownModelError, ModelBusyError, CheckpointError, EngineError)


def models_page(board: Board, request: Request) -> None:
    """Build the page."""
    service = board.service
    serving = _serving(board)
    with frame(request, "Models"):
        if not signed_in(request).may("admin"):
            ui.label("Loading and unloading want a key of the scope admin.").classes("quiet")
        for name in sorted({*service.models.repository.names(), *serving}):
            with panel(name):
                _model(board, signed_in(request), name, serving.get(name))


def _serving(board: Board) -> dict[str, Checkpoint | TracegramCheckpoint]:
    found: dict[str, Checkpoint | TracegramCheckpoint] = {**board.service.models.loaded()}
    return found | {name: scorer.checkpoint for name, scorer in board.service.trace_models.scorers.items()}


def _model(board: Board, caller: Caller, name: str, serving: Checkpoint | TracegramCheckpoint | None) -> None:
    service = board.service
    versions = service.models.repository.versions(name)
    if serving is None:
        ui.html(tag("not loaded"), sanitize=False)
    else:
        kind = "of single flows" if isinstance(serving, Checkpoint) else "of traces, all flows of a host together"
        default = ", the default one" if name == service.models.default else ""
        ui.html(tag(f"version {serving.version} serves{default}", "good"), sanitize=False)
        ui.label(f"A model {kind}; {len(serving.labels)} labels.")
        ui.label(measured(serving.metrics)).classes("quiet")
        _drift(board, name)
        with ui.expansion("labels").props("dense"):
            ui.label(", ".join(serving.labels))
    with ui.row().style("align-items: center"):
        if caller.may("admin"):
            _change(board, caller, name, versions, may_unload=serving is not None and name != service.models.default)
        if versions:
            ui.link("Card: data, figures, limits", address("/card", {"model": name, "version": versions[-1]}))


def _change(board: Board, caller: Caller, name: str, versions: list[str], *, may_unload: bool) -> None:
    """Load a version, or unload the model."""
    service = board.service
    version = ui.select(versions, value=versions[-1] if versions else None, label="version").props("outlined dense")

    async def load() -> None:
        chosen = version.value
        action, done = f"load model {name} {chosen}", f"{name} {chosen} serves"
        await _ask(caller, action, lambda: service.load_model(name, chosen), done)

    async def unload() -> None:
        await _ask(caller, f"unload model {name}", lambda: service.unload_model(name), f"{name} serves no more")

    ui.button("Load", on_click=load).props("unelevated no-caps")
    if may_unload:
        ui.button("Unload", on_click=unload).props("outline no-caps")


def _drift(board: Board, name: str) -> None:
    """What the model sees now, beside what it was measured on and last week; of live traffic."""
    if not board.service.settings.is_live:
        return
    drift, problem = board.service.drift.standing().get(name), board.service.drift.problem
    words = "drift: what it sees now, beside what was expected"
    moved = len(drift.drifted) if drift is not None else 0
    with ui.expansion(f"{words} ({moved} moved)" if moved else words, value=bool(moved)).props("dense"):
        ui.label(drift_state(drift, problem)).classes("quiet")
        if drift is not None and drift.measures:
            PlainTable(DRIFT_COLUMNS, ("distance", "limit")).show(drift_rows(drift))
            for meaning in drift_meanings(drift):
                ui.label(meaning)


async def _ask(caller: Caller, action: str, change: Callable[[], Awaitable[object]], done: str) -> None:
    """Change what serves, say how it went."""
    if not is_allowed(caller, "admin", action):
        return
    try:
        await accounted(caller, action, change)
    except _REFUSALS as error:
        ui.notify(str(error), type="warning", multi_line=True)
        return
    ui.notify(done)
    ui.navigate.reload()


def measured(metrics: dict[str, Any]) -> str:
    """The headline of a checkpoint's own evaluation, in words; a foreign checkpoint may hold anything."""
    found = headline_of(metrics)
    if found is None:
        return "Its checkpoint holds no cross-validation."
    return f"Macro-F1 {found.value:.3f} ({found.low:.3f} to {found.high:.3f}) on what was left out of training."


def card_page(board: Board, request: Request) -> None:
    """Build the page of a model's card."""
    name, version = request.query_params.get("model", ""), request.query_params.get("version")
    try:
        text = read_card(board.service.models.repository.find(name, version))
    except (UnknownModelError, OSError):
        text = "There is no such card."
    with frame(request, f"{name} {version or ''}", heading=False), panel() as box:
        box.classes("card")
        ui.markdown(text, extras=["tables", "fenced-code-blocks"])
