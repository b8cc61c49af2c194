"""`GET /v1/traces`: what the live path lately said of traces."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from fastapi import FastAPI, Query, Response

from tapline.service.api import schemas
from tapline.service.api.errors import ApiError, ErrorBody
from tapline.service.runtime import Service

MAX_PAGE = 1000

_ERRORS: dict[int | str, dict[str, Any]] = {status: {"model": ErrorBody} for status in (404, 422)}
SubjectName = Annotated[str | None, Query(max_length=128, description="only of this subject")]
LabelName = Annotated[str | None, Query(max_length=128, description="only with this label; unknown for unknown ones")]
ModelName = Annotated[str | None, Query(max_length=64, description="only by this trace model")]
Suspicious = Annotated[bool | None, Query(description="only such that are suspicious, or that are not")]
Limit = Annotated[int, Query(ge=1, le=MAX_PAGE, description="most verdicts in the answer")]
Before = Annotated[int | None, Query(ge=1, description="only verdicts with lower numbers: `next` of the page before")]


def add_traces(app: FastAPI, service: Service) -> None:
    """Add the route."""

    @app.get("/v1/traces", tags=["live"], response_model=schemas.Traces, responses=_ERRORS)
    async def traces(
        subject: SubjectName = None,
        label: LabelName = None,
        model: ModelName = None,
        suspicious: Suspicious = None,
        limit: Limit = 100,
        before: Before = None,
    ) -> Response:
        """The newest verdicts on live traces, newest first: early ones of open windows, final ones of closed windows.

        404 where none can be: no trace model, none that fits the flow model, or no live traffic. As many are kept
        as the setting `trace_history` says. A share is how much the model attended to a flow: it shows what went
        together with the label, not what caused it.
        """
        reason, live = service.no_live_traces(), service.traces
        if live is None or (reason is not None and not live.history.newest(1)):
            raise ApiError(404, "no_traces", f"no live traces: {reason}")
        found = live.history.newest(
            limit, subject=subject, label=label, model=model, suspicious=suspicious, before=before
        )
        following = found[-1].number if len(found) == limit else None
        answer = {
            "traces": [{"number": past.number, **msgspec.structs.asdict(past.trace)} for past in found],
            "next": following,
            "open_windows": live.open_windows,
            "open_flows": live.open_flows,
        }
        return Response(msgspec.json.encode(answer), media_type="application/json")
