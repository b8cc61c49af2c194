"""`/v1/jobs`: captures of any size that are classified in the background, and what is asked of their results."""

from __future__ import annotations

import asyncio
import contextlib
import io
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from pathlib import PurePath
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from fastapi import FastAPI, Path, Query, Request, Response
from fastapi.responses import HTMLResponse, StreamingResponse

from tapline.models.flow import MAX_COUNT
from tapline.service.api import job_schemas, schemas
from tapline.service.api.asked import Ascending, Content, Cursor, FlowsAsked, Limit, TracesAsked, history_errors
from tapline.service.api.choice import MayAnswer, ReadPorts, TraceNames, choice_of
from tapline.service.api.errors import ApiError, ErrorBody
from tapline.service.api.gate import caller_of
from tapline.service.api.job_bodies import SentCapture
from tapline.service.api.limits import JOBS_ROUTE
from tapline.service.api.models_route import model_errors
from tapline.service.api.openapi import JOB_BODY
from tapline.service.api.wanted import resources
from tapline.service.history.past import PastFlow
from tapline.service.jobs.capture_files import MAX_PATH_CHARS, BadPathError
from tapline.service.jobs.job import (
    CaptureGoneError,
    Job,
    JobError,
    JobOptions,
    JobQueueFullError,
    NoRoomError,
    NotDoneError,
    State,
    UnknownJobError,
)
from tapline.service.jobs.job_store import TooLargeError
from tapline.service.results.writers import CsvWriter, JsonWriter, NdjsonWriter, TraceCsvWriter
from tapline.service.runtime import Service

if TYPE_CHECKING:
    from tapline.service.results.report_page import ReportBuilder

MAX_PATH_BODY_BYTES = 64 << 10
NDJSON = "application/x-ndjson"
PCAP = "application/vnd.tcpdump.pcap"
_PCAPNG_MAGIC = b"\x0a\x0d\x0d\x0a"

_STATUS: dict[type[JobError], tuple[int, str]] = {
    UnknownJobError: (404, "no_job"),
    NotDoneError: (409, "not_done"),
    CaptureGoneError: (410, "capture_gone"),
    TooLargeError: (413, "too_large"),
    BadPathError: (422, "bad_path"),
    JobQueueFullError: (503, "busy"),
    NoRoomError: (507, "no_room"),
    JobError: (422, "bad_capture"),
}
_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody} for status in (400, 404, 409, 410, 413, 415, 422, 503, 507)
}

Id = Annotated[str, Path(max_length=64, description="of the job")]
Number = Annotated[int, Path(ge=1, le=MAX_COUNT, description="of the flow, as its page gives it")]
JobName = Annotated[str | None, Query(max_length=128, description="what to call the capture")]
ModelName = Annotated[
    str | None, Query(max_length=64, description="a loaded model; the default one where none is named")
]
Sort = Annotated[Literal["time", "confidence", "bytes"], Query(description="in which order")]


class _PathBody(msgspec.Struct, forbid_unknown_fields=True):
    """The JSON body of a job on a capture of this machine."""

    path: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_PATH_CHARS)]


@contextlib.contextmanager
def job_errors() -> Iterator[None]:
    """Turn what is wrong with a job, or a question about it, into its status."""
    try:
        with history_errors():
            yield
    except JobError as error:
        status, code = next(found for kind, found in _STATUS.items() if isinstance(error, kind))
        raise ApiError(status, code, str(error), retry=status in (503, 507)) from None


def add_jobs(app: FastAPI, service: Service) -> None:
    """Add the routes."""
    _add_taking(app, service)
    _add_asking(app, service)
    _add_results(app, service)
    _add_questions(app, service)


def _add_taking(app: FastAPI, service: Service) -> None:
    @app.post(
        JOBS_ROUTE, tags=["jobs"], status_code=202, openapi_extra=JOB_BODY, response_model=job_schemas.Job,
        responses=_ERRORS,
    )  # fmt: skip
    async def submit(
        request: Request,
        name: JobName = None,
        model: ModelName = None,
        ports: ReadPorts = None,
        cascade: MayAnswer = None,
        traces: TraceNames = None,
    ) -> Response:
        """Classify a capture in the background: as the multipart part `file`, as the body, or, as JSON `{"path": ...}`,
        one that lies below the directory of the setting `captures_dir`. `Location` says where the job is.
        """
        owner = caller_of(request).owner
        wanted = choice_of(service.trace_models, ports, cascade, traces, content=False)
        chosen = None if wanted.traces is None else sorted(wanted.traces)
        options = JobOptions(model=model, traces=chosen, ports=wanted.ports, cascade=wanted.cascade)
        with model_errors(), job_errors():
            if request.headers.get("content-type", "").partition(";")[0].strip().lower() == "application/json":
                job = await service.jobs.submit_path(await _path(request), options, owner)
            else:
                sent = SentCapture(request)
                await sent.begin()
                job = await service.jobs.submit(sent.chunks(), name or sent.name, options, owner)
        return _json(_shown(job), 202, {"Location": f"{JOBS_ROUTE}/{job.id}"})


async def _path(request: Request) -> str:
    """The path of a JSON body.

    Raises:
        ApiError: 413 too large, 422 something else.
    """
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_PATH_BODY_BYTES:
            raise ApiError(413, "too_large", f"expected a body of at most {MAX_PATH_BODY_BYTES >> 10} KiB")
    try:
        return msgspec.json.decode(body, type=_PathBody).path
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise ApiError(422, "invalid", 'body: expected {"path": "..."}, and nothing else') from None


def _add_asking(app: FastAPI, service: Service) -> None:
    @app.get(JOBS_ROUTE, tags=["jobs"], response_model=job_schemas.Jobs, responses=_ERRORS)
    async def jobs(
        state: Annotated[State | None, Query(description="only in this state")] = None, limit: Limit = 100
    ) -> Response:
        """The newest jobs."""
        found = [job for job in service.jobs.list() if state in (None, job.state)]
        return _json({"jobs": [_shown(job) for job in found[:limit]]})

    @app.get(JOBS_ROUTE + "/{id}", tags=["jobs"], response_model=job_schemas.Job, responses=_ERRORS)
    async def job(id: Id) -> Response:
        """A job as it stands."""
        with job_errors():
            return _json(_shown(service.jobs.get(id)))

    @app.delete(JOBS_ROUTE + "/{id}", tags=["jobs"], response_model=job_schemas.Job, responses=_ERRORS)
    async def delete(request: Request, id: Id) -> Response:
        """Cancel a job that waits or runs; remove one that has ended, with its capture and its result. The answer is
        the job as it was left. A job that another key handed in wants the scope *admin*."""
        with job_errors():
            found = service.jobs.get(id)
            if not caller_of(request).owns(found.owner):
                raise ApiError(403, "scope", "another key handed this job in: that wants a key of the scope admin")
            if found.has_ended:
                await service.jobs.delete(id)
            else:
                found = await service.jobs.cancel(id)
        return _json(_shown(found))


def _add_results(app: FastAPI, service: Service) -> None:
    @app.get(
        JOBS_ROUTE + "/{id}/result",
        tags=["jobs"],
        response_model=schemas.Classified,
        responses={**_ERRORS, 200: {"content": {NDJSON: {}, "text/csv": {}}, "model": schemas.Classified}},
    )
    async def result(
        request: Request,
        id: Id,
        format: Annotated[
            Literal["json", "ndjson", "csv"] | None, Query(description="as `Accept` says otherwise")
        ] = None,
        show: Annotated[Literal["flows", "traces"], Query(description="what the rows of a CSV are")] = "flows",
        content: Content = False,
    ) -> Response:
        """The whole result, as `/v1/classify/pcap` answers it; as CSV without summary."""
        chosen = format or ("ndjson" if NDJSON in request.headers.get("accept", "") else "json")
        with job_errors():
            found = service.jobs.get(id)
            answer = _Answer(service, found, chosen, show)
            resources(request).callback(answer.close)
            chunks = await _begun(request, answer.chunks(content=content))
        kind = {"json": "application/json", "ndjson": NDJSON, "csv": "text/csv; charset=utf-8"}[chosen]
        return StreamingResponse(chunks, media_type=kind)

    @app.get(
        JOBS_ROUTE + "/{id}/report",
        tags=["jobs"],
        response_class=Response,
        responses={**_ERRORS, 200: {"content": {"text/html": {"schema": {"type": "string"}}}}},
    )
    async def report(id: Id) -> Response:
        """The result as one page to send, without content bytes: summary, plots, hosts, flows, what was left out."""
        with job_errors():
            job = service.jobs.get(id)
            builder = await asyncio.to_thread(_report_builder, job.name)
            async for _ in service.jobs.write(id, builder, content=False):
                pass
            assert job.summary is not None  # else there were nothing to write
            page = await asyncio.to_thread(builder.finish, job.summary)
        name = f"{PurePath(job.name).stem[:64]}-report.html".encode("ascii", "replace").decode().replace('"', "_")
        return HTMLResponse(page, headers={"Content-Disposition": f'attachment; filename="{name}"'})


def _report_builder(name: str) -> ReportBuilder:
    from tapline.service.results.report_page import ReportBuilder  # imports a template engine

    return ReportBuilder(name)


def _add_questions(app: FastAPI, service: Service) -> None:
    @app.get(JOBS_ROUTE + "/{id}/flows", tags=["jobs"], response_model=schemas.PastFlows, responses=_ERRORS)
    async def flows(
        id: Id,
        wanted: FlowsAsked,
        sort: Sort = "time",
        ascending: Ascending = True,
        limit: Limit = 100,
        cursor: Cursor = None,
        content: Content = False,
    ) -> Response:
        """A page of the flows with verdicts, in the order in which they ended unless `sort` says otherwise. Times are
        those of the capture."""
        with job_errors():
            page = await service.jobs.flows(id, wanted, sort=sort, ascending=ascending, limit=limit, cursor=cursor)
        shown = page.items if content else [_without_content(flow) for flow in page.items]
        return _json({"flows": shown, "next": page.next})

    @app.get(JOBS_ROUTE + "/{id}/flows/{number}", tags=["jobs"], response_model=schemas.PastFlow, responses=_ERRORS)
    async def flow(id: Id, number: Number, content: Content = False) -> Response:
        """A flow by its number."""
        with job_errors():
            found = await service.jobs.flow(id, number)
        return _json(found if content else _without_content(found))

    @app.get(
        JOBS_ROUTE + "/{id}/flows/{number}/packets",
        tags=["jobs"],
        response_class=Response,
        responses={**_ERRORS, 200: {"content": {PCAP: {"schema": {"type": "string", "format": "binary"}}}}},
    )
    async def packets(request: Request, id: Id, number: Number) -> Response:
        """The packets of a flow as they were captured, with the tunnel around them and all their fragments: pcap with
        nanoseconds, or pcapng where the packets have several link types."""
        with job_errors():
            chunks = await _begun(request, service.jobs.packets(id, number))
        suffix = "pcapng" if chunks.first.startswith(_PCAPNG_MAGIC) else "pcap"
        disposition = f'attachment; filename="flow-{number}.{suffix}"'
        return StreamingResponse(chunks, media_type=PCAP, headers={"Content-Disposition": disposition})

    @app.get(JOBS_ROUTE + "/{id}/traces", tags=["jobs"], response_model=job_schemas.JobTraces, responses=_ERRORS)
    async def traces(
        id: Id, wanted: TracesAsked, ascending: Ascending = True, limit: Limit = 100, cursor: Cursor = None
    ) -> Response:
        """A page of the traces."""
        with job_errors():
            page = await service.jobs.traces(id, wanted, ascending=ascending, limit=limit, cursor=cursor)
        return _json({"traces": page.items, "next": page.next})


class _Begun:
    """Chunks of an answer of which the first has come: what is wrong is known before the status is sent."""

    def __init__(self, first: Any, rest: AsyncGenerator[Any, None]) -> None:
        self.first = first
        self._rest = rest

    async def __aiter__(self) -> AsyncIterator[Any]:
        yield self.first
        async for chunk in self._rest:
            yield chunk


async def _begun(request: Request, chunks: AsyncGenerator[Any, None]) -> _Begun:
    """Wait for the first chunk; what makes them ends with the request."""
    await resources(request).enter_async_context(contextlib.aclosing(chunks))
    return _Begun(await anext(chunks, ""), chunks)


class _Answer:
    """The result of a job in one of its forms."""

    def __init__(self, service: Service, job: Job, form: Literal["json", "ndjson", "csv"], show: str) -> None:
        self._jobs = service.jobs
        self._job = job
        self._buffer = io.StringIO()
        self._writer = _writer(form, show, self._buffer)

    def close(self) -> None:
        """Forget what waits to be written."""
        if isinstance(self._writer, JsonWriter):
            self._writer.close()

    async def chunks(self, *, content: bool) -> AsyncGenerator[str, None]:
        """The body, piece by piece."""
        async for _ in self._jobs.write(self._job.id, self._writer, content=content):
            if text := self._taken():
                yield text
        summary = self._job.summary
        assert summary is not None
        if isinstance(self._writer, JsonWriter):
            for piece in self._writer.ending(summary):
                yield piece
        elif isinstance(self._writer, NdjsonWriter):  # a client of a stream must see that it is whole
            yield msgspec.json.encode({"summary": summary}).decode() + "\n"

    def _taken(self) -> str:
        text = self._buffer.getvalue()
        self._buffer.seek(0)
        self._buffer.truncate()
        return text


def _writer(form: str, show: str, buffer: io.StringIO) -> JsonWriter | NdjsonWriter | CsvWriter | TraceCsvWriter:
    if form == "json":
        return JsonWriter(buffer)
    if form == "ndjson":
        return NdjsonWriter(buffer)
    return TraceCsvWriter(buffer) if show == "traces" else CsvWriter(buffer)


def _without_content(flow: PastFlow) -> PastFlow:
    return msgspec.structs.replace(flow, orig_bytes="", resp_bytes="")


def _shown(job: Job) -> dict[str, Any]:
    """The record of a job as it is shown."""
    record = msgspec.structs.asdict(job)
    del record["modified_ns"]
    return {**record, "share": round(job.share, 4)}


def _json(body: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(body), status, headers, "application/json")
