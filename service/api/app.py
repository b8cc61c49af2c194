"""The routes of the REST API; each hands over to the service and tells OpenAPI what it takes and gives."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import msgspec
from fastapi import Depends, FastAPI, Query, Request, Response
from fastapi.responses import JSONResponse, RedirectResponse
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from models.flow import Flow, FlowError, FlowLine, line_to_flow
from service import __version__
from service.api import errors, schemas
from service.api.errors import ApiError, ErrorBody, error_response, overload_as_api_error
from service.api.limits import CAPTURE_ROUTE, BodyLimit, Measured, check_key, while_wanted
from service.api.live import live
from service.api.models import add_models, model_errors
from service.api.traces import add_traces, all_traces
from service.api.uploads import NDJSON, classify_upload
from service.report import InputSummary, SummaryBuilder, classified
from service.runtime import Service

ModelName = Annotated[
    str | None, Query(max_length=64, description="a loaded model; the default one where none is named")
]
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_CAPTURE_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {"file": {"type": "string", "format": "binary"}},
                }
            },
            "application/octet-stream": _BINARY,
            "application/vnd.tcpdump.pcap": _BINARY,
        },
    }
}
_REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody} for status in (400, 401, 404, 413, 422, 429, 503)
}


def create_app(service: Service) -> FastAPI:
    """The application around a service; its lifespan warms the service up and drains it."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with service.running():
            yield

    app = FastAPIOffline(
        title="tapline",
        version=__version__,
        summary="Deep models on network traffic: what each flow is.",
        lifespan=lifespan,
        dependencies=[Depends(check_key)],
    )
    app.state.service = service
    errors.install(app)
    app.add_middleware(BodyLimit, settings=service.settings)
    app.add_middleware(Measured, metrics=service.metrics)
    _add_classify(app, service)
    add_models(app, service)
    add_traces(app, service)
    _add_state(app, service)
    return app


def _add_classify(app: FastAPI, service: Service) -> None:
    @app.post(
        CAPTURE_ROUTE,
        tags=["classify"],
        openapi_extra=_CAPTURE_BODY,
        response_model=schemas.Classified,
        responses={**_REFUSALS, 200: {"content": {NDJSON: {}}, "model": schemas.Classified}},
    )
    async def classify_pcap(request: Request, model: ModelName = None) -> Response:
        """Classify a capture: pcap or pcapng, plain, gzip or zstd, as the multipart part `file` or as the body.

        With `Accept: application/x-ndjson` each flow is a line, as it comes, each trace a line `{"trace": ...}` when it
        is complete; the last line holds the summary.
        """
        with model_errors():
            batcher = service.models.batcher(model)
        return await classify_upload(request, service, batcher)

    @app.post("/v1/classify/flows", tags=["classify"], response_model=schemas.Classified, responses=_REFUSALS)
    async def classify_flows(request: Request, body: schemas.FlowsRequest, model: ModelName = None) -> Response:
        """Classify flows from a sensor of your own, in the form that `tapline features` writes, and their traces.

        Flows need packet heads to count in traces.
        """
        flows = [_flow(index, fields) for index, fields in enumerate(body.flows)]
        with model_errors():
            batcher = service.models.batcher(model)
        classifier = batcher.classifier
        accepted = [flow for flow in flows if classifier.accepts(flow)]
        traces = service.capture_traces(classifier, "flows")
        builder = SummaryBuilder(classifier.checkpoint, traces.checkpoint if traces else None)
        for flow in flows:
            if not classifier.accepts(flow):
                builder.leave_out(flow)
        with overload_as_api_error():
            found = await while_wanted(request, batcher.submit(accepted), service.settings.request_timeout_seconds)
        records = []
        for flow, outcome in zip(accepted, found, strict=True):
            if outcome is not None and outcome.verdict is None:
                builder.leave_out(flow)
            else:
                verdict = outcome.verdict if outcome else None
                builder.add(flow, verdict)
                records.append(classified(flow, verdict, ""))
            if traces is not None and outcome is not None:
                traces.add(flow, outcome)
        found_traces = await asyncio.to_thread(all_traces, traces, builder)
        summary = builder.finish([InputSummary("flows", len(flows))])
        answer = {"flows": records, "traces": found_traces, "summary": summary}
        return Response(msgspec.json.encode(answer), media_type="application/json")


def _flow(index: int, fields: schemas.FlowIn) -> Flow:
    given = fields.model_dump(exclude={"ps_tokens", "bytes_tokens", "bytes_types"})
    try:
        return line_to_flow(msgspec.convert(given, FlowLine))
    except (FlowError, msgspec.ValidationError) as error:
        raise ApiError(422, "invalid", f"flows.{index}: {error}") from None


def _add_state(app: FastAPI, service: Service) -> None:
    @app.get("/v1/live", tags=["live"], response_model=schemas.Live)
    async def live_account() -> schemas.Live:
        """The live path: counts, what was shed and of whom, and the state of every sensor."""
        return live(service)

    @app.get("/", include_in_schema=False)
    async def root() -> RedirectResponse:
        """To the documentation, the only page there is."""
        return RedirectResponse("/docs")

    @app.get("/healthz", tags=["state"], response_model=schemas.Health)
    async def healthz() -> dict[str, str]:
        """Alive: the process answers."""
        return {"status": "ok"}

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
