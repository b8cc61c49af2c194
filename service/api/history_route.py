"""`GET /v1/flows`, `/v1/flows/{number}` and `/v1/traces`: what was decided, out of the history."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from fastapi import FastAPI, Path, Query, Response

from tapline.service.api import schemas
from tapline.service.api.asked import Ascending, Content, Cursor, FlowsAsked, Limit, TracesAsked, history_errors
from tapline.service.api.errors import ApiError, ErrorBody
from tapline.service.history.filters import TraceFilter
from tapline.service.history.past import PastFlow
from tapline.service.runtime import Service

if TYPE_CHECKING:
    from tapline.service.history.history import History

_ERRORS: dict[int | str, dict[str, Any]] = {status: {"model": ErrorBody} for status in (404, 422, 503)}
Number = Annotated[int, Path(ge=1, le=2**53 - 1, description="`number` of a flow")]
Sort = Annotated[
    Literal["time", "confidence", "bytes"], Query(description="in which order; largest first, or as `ascending` says")
]


def add_history(app: FastAPI, service: Service) -> None:
    """Add the routes."""

    @app.get("/v1/flows", tags=["history"], response_model=schemas.PastFlows, responses=_ERRORS)
    async def flows(
        wanted: FlowsAsked,
        sort: Sort = "time",
        ascending: Ascending = False,
        limit: Limit = 100,
        cursor: Cursor = None,
        content: Content = False,
    ) -> Response:
        """Verdicts on live flows, newest first: the final one of each flow, an early one while there is no other.

        Times are those at which a verdict came. 404 where no history is kept; 503 where an answer takes too long, as
        it may in another order than that of time: ask for less time.
        """
        with history_errors():
            page = await history_of(service).flows(wanted, sort=sort, ascending=ascending, limit=limit, cursor=cursor)
        shown = page.items if content else [_without_content(flow) for flow in page.items]
        return _json({"flows": shown, "next": page.next})

    @app.get("/v1/flows/{number}", tags=["history"], response_model=schemas.PastFlow, responses=_ERRORS)
    async def flow(number: Number, content: Content = False) -> Response:
        """A flow by its number; 404 where there is none, or no more."""
        with history_errors():
            found = await history_of(service).flow_of(number)
        if found is None:
            raise ApiError(404, "no_flow", "there is no flow of this number, or no more")
        return _json(found if content else _without_content(found))

    @app.get("/v1/traces", tags=["history"], response_model=schemas.Traces, responses=_ERRORS)
    async def traces(
        wanted: TracesAsked, ascending: Ascending = False, limit: Limit = 100, cursor: Cursor = None
    ) -> Response:
        """Verdicts on live traces, newest first: the final one of each window, the last early one while it is open.

        404 where none can be: no history, no trace model, none that fits the flow model, or no live traffic. A share
        is how much a flow counted for the label: it shows what went together with the label, not what caused it.
        """
        reason, live = service.no_live_traces(), service.traces
        with history_errors():
            history = history_of(service)
            page = await history.traces(wanted, ascending=ascending, limit=limit, cursor=cursor)
            if reason is not None and not page.items and not (await history.traces(TraceFilter(), limit=1)).items:
                raise ApiError(404, "no_traces", f"no live traces: {reason}")
        answer = {
            "traces": page.items,
            "next": page.next,
            "open_windows": live.open_windows if live is not None else 0,
            "open_flows": live.open_flows if live is not None else 0,
        }
        return _json(answer)


def history_of(service: Service) -> History:
    """The history.

    Raises:
        ApiError: 404, none is kept.
    """
    if service.history is None:
        raise ApiError(404, "no_history", "no history is kept: start without --history none")
    return service.history


def _without_content(flow: PastFlow) -> PastFlow:
    return msgspec.structs.replace(flow, orig_bytes="", resp_bytes="")


def _json(answer: object) -> Response:
    return Response(msgspec.json.encode(answer), media_type="application/json")
