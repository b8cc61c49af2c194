"""`GET /v1/stream`: verdicts as they come, as server-sent events (WHATWG HTML, 9.2)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Query, Request
from fastapi.responses import StreamingResponse

from tapline.service.api.asked import FlowsAsked, TracesAsked
from tapline.service.api.errors import ApiError, ErrorBody
from tapline.service.api.wanted import resources
from tapline.service.history.filters import FlowFilter, TraceFilter
from tapline.service.live.verdict_stream import Listener, ListenersError
from tapline.service.runtime import Service

HEARTBEAT_SECONDS = 15.0
"""After so much silence a comment is sent, so that nobody between takes the connection for dead."""

EVENTS = "text/event-stream"
_ANSWERS: dict[int | str, dict[str, Any]] = {
    **{status: {"model": ErrorBody} for status in (422, 503)},
    200: {
        "description": 'Events: `flow` and `trace` with a record each, `missed` with `{"verdicts": N}`',
        "content": {EVENTS: {"schema": {"type": "string"}}},
    },
}
Kind = Annotated[Literal["flow", "trace"] | None, Query(description="only verdicts on flows, or only on traces")]
_FLOWS_ALONE = ("port", "sensor", "unexpected_port", "uid")
_TRACES_ALONE = ("subject", "suspicious")


def add_stream(app: FastAPI, service: Service) -> None:
    """Add the route."""

    @app.get("/v1/stream", tags=["live"], response_class=StreamingResponse, responses=_ANSWERS)
    async def stream(request: Request, flows: FlowsAsked, traces: TracesAsked, kind: Kind = None) -> StreamingResponse:
        """Verdicts on live flows and traces as they come, early and final ones: events `flow` and `trace`.

        Filters are those of `/v1/flows` and `/v1/traces`, times apart; one that only flows have leaves traces out, and
        the other way round. A client that reads too slowly, or asks for more than can be sent, misses verdicts, and is
        told how many by an event `missed`. 503 where too many listen.
        """
        wanted = (
            flows if kind != "trace" and not _asks(traces, _TRACES_ALONE) else None,
            traces if kind != "flow" and not _asks(flows, _FLOWS_ALONE) else None,
        )
        try:
            listener = resources(request).enter_context(service.stream.listening(*wanted))
        except ListenersError as error:
            raise ApiError(503, "busy", str(error), retry=True) from None
        return StreamingResponse(_events(listener), media_type=EVENTS, headers={"Cache-Control": "no-store"})


def _asks(wanted: FlowFilter | TraceFilter, names: tuple[str, ...]) -> bool:
    return any(getattr(wanted, name) is not None for name in names)


async def _events(listener: Listener) -> AsyncIterator[bytes]:
    yield b": verdicts from now on\n\n"
    while True:
        found = await listener.next(HEARTBEAT_SECONDS)
        parts = [b"event: %s\ndata: %s\n\n" % (event.kind.encode(), event.json) for event in found]
        if missed := listener.take_missed():
            parts.insert(0, b'event: missed\ndata: {"verdicts":%d}\n\n' % missed)
        yield b"".join(parts) or b": still here\n\n"
