"""`/v1/alerts`: alerts out of the history, and noting that somebody has seen to one; `GET /v1/drift`."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from fastapi import Depends, FastAPI, Path, Query, Request, Response

from tapline.service.alerts.alert import AlertKind, Severity
from tapline.service.api import alert_schemas
from tapline.service.api.asked import (
    Ascending,
    Cursor,
    Host,
    Label,
    Limit,
    ModelOf,
    Since,
    Uid,
    Until,
    history_errors,
    times_and_host,
)
from tapline.service.api.errors import ApiError, ErrorBody
from tapline.service.api.gate import caller_of
from tapline.service.api.history_route import history_of
from tapline.service.history.filters import AlertFilter
from tapline.service.runtime import Service

_ERRORS: dict[int | str, dict[str, Any]] = {status: {"model": ErrorBody} for status in (404, 422, 503)}

SeverityOf = Annotated[Severity | None, Query(description="only of this severity, or a higher one")]
Rule = Annotated[str | None, Query(min_length=1, max_length=256, description="only of this rule")]
KindOf = Annotated[AlertKind | None, Query(description="only on flows, on traces, of rates, or of drift")]
Acknowledged = Annotated[bool | None, Query(description="only such that somebody has seen to, or others")]
Identifier = Annotated[str, Path(min_length=1, max_length=256, description="`id` of an alert")]


def alerts_asked(
    since: Since = None,
    until: Until = None,
    host: Host = None,
    severity: SeverityOf = None,
    rule: Rule = None,
    kind: KindOf = None,
    label: Label = None,
    model: ModelOf = None,
    uid: Uid = None,
    acknowledged: Acknowledged = None,
) -> AlertFilter:
    """The filter of alerts that a request asks for."""
    with history_errors():
        return AlertFilter(
            **times_and_host(since, until, host),
            severity=severity,
            rule=rule,
            kind=kind,
            label=label,
            model=model,
            uid=uid,
            acknowledged=acknowledged,
        )


def add_alerts(app: FastAPI, service: Service) -> None:
    """Add the routes."""

    @app.get("/v1/alerts", tags=["alerts"], response_model=alert_schemas.Alerts, responses=_ERRORS)
    async def alerts(
        wanted: Annotated[AlertFilter, Depends(alerts_asked)],
        ascending: Ascending = False,
        limit: Limit = 100,
        cursor: Cursor = None,
    ) -> Response:
        """Alerts that rules made of live verdicts, newest first. `host`: an end of the flow, or the host of the trace.

        404 where no history is kept. Without rules there are none.
        """
        with history_errors():
            page = await history_of(service).alerts(wanted, ascending=ascending, limit=limit, cursor=cursor)
        return _json({"alerts": page.items, "next": page.next})

    @app.post("/v1/alerts/{id}/acknowledge", tags=["alerts"], status_code=204, responses=_ERRORS)
    async def acknowledge(id: Identifier, request: Request) -> Response:
        """Note that somebody has seen to an alert: when, and with the key of which name (`acknowledged_us` and
        `acknowledged_by` of the alert). Who does so first stays; 404 where there is no such alert, or no more."""
        with history_errors():
            if not await history_of(service).acknowledge(id, caller_of(request).name):
                raise ApiError(404, "no_alert", "there is no alert of this identifier, or no more")
        return Response(status_code=204)

    @app.get("/v1/drift", tags=["alerts"], response_model=alert_schemas.Drift)
    async def drift() -> Response:
        """How far what each model sees now is from its baseline and from last week, as of the last look some minutes
        ago."""
        return _json({"models": list(service.drift.standing().values()), "problem": service.drift.problem})


def _json(answer: object) -> Response:
    return Response(msgspec.json.encode(answer), media_type="application/json")
