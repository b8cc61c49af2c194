"""`GET /v1/stream`: verdicts and alerts as they come, as server-sent events (WHATWG HTML, 9.2)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

import msgspec
from fastapi import FastAPI, Query, Request
from fastapi.responses import StreamingResponse

from tapline.service.api.alerts_route import Rule, SeverityOf
from tapline.service.api.asked import FlowsAsked, TracesAsked
from tapline.service.api.errors import ApiError, ErrorBody
from tapline.service.api.wanted import resources
from tapline.service.history.filters import AlertFilter, FlowFilter, TraceFilter
from tapline.service.live.verdict_stream import EventKind, Listener, ListenersError
from tapline.service.runtime import Service

HEARTBEAT_SECONDS = 15.0
"""After so much silence a comment is sent, so that nobody between takes the connection for dead."""

EVENTS = "text/event-stream"
_ANSWERS: dict[int | str, dict[str, Any]] = {
    **{status: {"model": ErrorBody} for status in (422, 503)},
    200: {
        "description": 'Events: `flow`, `trace` and `alert` with a record each, `missed` with `{"verdicts": N}`',
        "content": {EVENTS: {"schema": {"type": "string"}}},
    },
}
Kind = Annotated[
    Literal["flow", "trace", "alert"] | None,
    Query(description="only verdicts on flows, only on traces, or only alerts"),
]
_FLOWS_ALONE = ("port", "sensor", "unexpected_port")
_TRACES_ALONE = ("subject", "suspicious")
_VERDICTS_ALONE = ("nearest", "unknown", "min_confidence", "max_confidence", "source", "final")
_ALERTS_ALONE = ("severity", "rule")


def add_stream(app: FastAPI, service: Service) -> None:
    """Add the route."""

    @app.get("/v1/stream", tags=["live"], response_class=StreamingResponse, responses=_ANSWERS)
    async def stream(
        request: Request,
        flows: FlowsAsked,
        traces: TracesAsked,
        kind: Kind = None,
        severity: SeverityOf = None,
        rule: Rule = None,
    ) -> StreamingResponse:
        """Verdicts on live flows and traces as they come, early and final ones, and alerts: events `flow`, `trace` and
        `alert`.

        Filters are those of `/v1/flows`, `/v1/traces` and `/v1/alerts`, times apart; one that only flows have leaves
        traces and alerts out, and so on. A client that reads too slowly, or asks for more than can be sent, misses
        some, and is told how many by an event `missed`. 503 where too many listen.
        """
        wanted = _wanted(flows, traces, AlertFilter(severity=severity, rule=rule), kind)
        try:
            listener = resources(request).enter_context(service.stream.listening(*wanted))
        except ListenersError as error:
            raise ApiError(503, "busy", str(error), retry=True) from None
        return StreamingResponse(_events(listener), media_type=EVENTS, headers={"Cache-Control": "no-store"})


def _wanted(
    flows: FlowFilter, traces: TraceFilter, alerts: AlertFilter, kind: EventKind | None
) -> tuple[FlowFilter | None, TraceFilter | None, AlertFilter | None]:
    """The filters of what is asked for, None of what is not."""
    for_flows, for_traces = _asks(flows, _FLOWS_ALONE), _asks(traces, _TRACES_ALONE)
    for_alerts, for_verdicts = _asks(alerts, _ALERTS_ALONE), _asks(flows, _VERDICTS_ALONE)
    has_uid = flows.uid is not None
    shared = {name: getattr(flows, name) for name in ("host", "label", "model", "uid")}
    return (
        flows if kind in (None, "flow") and not (for_traces or for_alerts) else None,
        traces if kind in (None, "trace") and not (for_flows or for_alerts or has_uid) else None,
        msgspec.structs.replace(alerts, **shared)
        if kind in (None, "alert") and not (for_flows or for_traces or for_verdicts)
        else None,
    )


def _asks(wanted: FlowFilter | TraceFilter | AlertFilter, names: tuple[str, ...]) -> bool:
    return any(getattr(wanted, name) is not None for name in names)


async def _events(listener: Listener) -> AsyncIterator[bytes]:
    yield b": verdicts from now on\n\n"
    while True:
        found = await listener.next(HEARTBEAT_SECONDS)
        parts = [b"event: %s\ndata: %s\n\n" % (event.kind.encode(), event.json) for event in found]
        if missed := listener.take_missed():
            parts.insert(0, b'event: missed\ndata: {"verdicts":%d}\n\n' % missed)
        yield b"".join(parts) or b": still here\n\n"
