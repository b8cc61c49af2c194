"""The routes of the REST API; each hands over to the service and tells OpenAPI what it takes and gives."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Query, Request, Response
from fastapi.responses import JSONResponse, RedirectResponse
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from tapline.installation import version
from tapline.service.access.access import Access
from tapline.service.api import errors, live_schemas, schemas
from tapline.service.api.alerts_route import add_alerts
from tapline.service.api.choice import MayAnswer, ReadPorts, TraceNames, WithContent, choice_of
from tapline.service.api.desk import Desk
from tapline.service.api.errors import ErrorBody, error_response
from tapline.service.api.flows_route import classify_body
from tapline.service.api.gate import Gate
from tapline.service.api.history_route import add_history
from tapline.service.api.jobs_route import add_jobs
from tapline.service.api.known_query import known_query
from tapline.service.api.limits import CAPTURE_ROUTE, FLOWS_ROUTE, BodyLimit, Measured
from tapline.service.api.live_route import live
from tapline.service.api.models_route import add_models, model_errors
from tapline.service.api.openapi import CAPTURE_BODY, FLOWS_BODY, describe
from tapline.service.api.sign_in import add_sign_in
from tapline.service.api.stream_route import add_stream
from tapline.service.api.uploads import NDJSON, classify_upload
from tapline.service.api.wanted import Wanted
from tapline.service.runtime import Service

HELD_BODIES = 2
"""JSON bodies of the largest size that may be in memory at a time, or as many bytes of smaller ones."""

ModelName = Annotated[
    str | None, Query(max_length=64, description="a loaded model; the default one where none is named")
]
_REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody} for status in (400, 404, 408, 413, 415, 422, 429, 503, 507)
}


def create_app(
    service: Service, add_pages: Callable[[FastAPI], None] | None = None, access: Access | None = None
) -> FastAPI:
    """The application around a service; its lifespan warms the service up and drains it.

    `add_pages` adds the dashboard at `/`; without one `/` leads to the documentation. `access`: who is let in; as the
    settings say where it is not given.

    Raises:
        KeysError: the settings' keys, or the audit log, cannot be used.
    """
    let_in = access or Access(service.settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with service.running(), service.jobs.running():
            yield
        desk.close()
        let_in.audit.close()

    app = FastAPIOffline(
        title="tapline",
        version=version(),
        summary="Deep models on network traffic: what each flow is.",
        lifespan=lifespan,
        dependencies=[Depends(known_query)],
    )
    app.state.service = service
    errors.install(app)
    desk = Desk(HELD_BODIES * service.settings.max_body_mb << 20)
    for layer, options in (
        (BodyLimit, {"settings": service.settings}),
        (Wanted, {}),
        (Gate, {"settings": service.settings, "access": let_in, "metrics": service.metrics}),
        (Measured, {"metrics": service.metrics}),
    ):  # from the innermost to the outermost
        app.add_middleware(layer, **options)
    _add_classify(app, service, desk)
    add_jobs(app, service)
    add_models(app, service)
    add_history(app, service)
    add_alerts(app, service)
    add_stream(app, service)
    _add_state(app, service)
    add_sign_in(app, let_in)
    describe(app, has_key=let_in.is_on)
    (add_pages or _add_way_to_docs)(app)
    return app


def _add_way_to_docs(app: FastAPI) -> None:
    @app.get("/", include_in_schema=False)
    async def root() -> RedirectResponse:
        """To the documentation, the only page there is."""
        return RedirectResponse("/docs")


def _add_classify(app: FastAPI, service: Service, desk: Desk) -> None:
    @app.post(
        CAPTURE_ROUTE,
        tags=["classify"],
        openapi_extra=CAPTURE_BODY,
        response_model=schemas.Classified,
        responses={**_REFUSALS, 200: {"content": {NDJSON: {}}, "model": schemas.Classified}},
    )
    async def classify_pcap(
        request: Request,
        model: ModelName = None,
        ports: ReadPorts = None,
        cascade: MayAnswer = None,
        traces: TraceNames = None,
        content: WithContent = False,
    ) -> Response:
        """Classify a capture: pcap or pcapng, plain, gzip or zstd, as the multipart part `file` or as the body.

        With `Accept: application/x-ndjson` each flow is a line, as it comes, each trace a line `{"trace": ...}` when it
        is complete; the last line holds the summary.
        """
        with model_errors():
            batcher = service.models.batcher(model)
        wanted = choice_of(service.trace_models, ports, cascade, traces, content=content)
        return await classify_upload(request, service, batcher, desk, wanted)

    @app.post(
        FLOWS_ROUTE,
        tags=["classify"],
        openapi_extra=FLOWS_BODY,
        response_model=schemas.Classified,
        responses=_REFUSALS,
    )
    async def classify_flows(
        request: Request,
        model: ModelName = None,
        ports: ReadPorts = None,
        cascade: MayAnswer = None,
        traces: TraceNames = None,
        content: WithContent = False,
    ) -> Response:
        """Classify flows from a sensor of your own, in the form that `tapline features` writes, and their traces.

        Flows need packet heads to count in traces.
        """
        with model_errors():
            batcher = service.models.batcher(model)
        wanted = choice_of(service.trace_models, ports, cascade, traces, content=content)
        return await classify_body(request, service, batcher, desk, wanted)


def _add_state(app: FastAPI, service: Service) -> None:
    @app.get("/v1/live", tags=["live"], response_model=live_schemas.Live)
    async def live_account() -> live_schemas.Live:
        """The live path: counts, what was shed and of whom, and the state of every sensor."""
        return await live(service)

    @app.head("/healthz", include_in_schema=False)
    @app.get("/healthz", tags=["state"], response_model=schemas.Health)
    async def healthz() -> dict[str, str]:
        """Alive: the process answers."""
        return {"status": "ok"}

    @app.head("/readyz", include_in_schema=False)
    @app.get("/readyz", tags=["state"], response_model=schemas.Health, responses={503: {"model": ErrorBody}})
    async def readyz() -> JSONResponse:
        """Ready: there is room for more work."""
        reason = service.not_ready()
        if reason:
            return error_response(503, "not_ready", reason, {"Retry-After": str(errors.RETRY_AFTER_SECONDS)})
        return JSONResponse({"status": "ok"})

    @app.get("/metrics", tags=["state"], response_class=Response)
    async def metrics() -> Response:
        """Prometheus metrics."""
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)
