"""The bodies of `/v1/jobs`; `service.jobs.job.Job` and the records of the history remain the authority on them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tapline.service.api.schemas import Body, PastTrace, Summary
from tapline.service.jobs.capture_files import MAX_PATH_CHARS

Seconds = Annotated[float | None, Field(description="seconds since the epoch, null where it has not come to that")]


class CapturePath(Body):
    """A capture on the service's machine."""

    path: Annotated[
        str, Field(min_length=1, max_length=MAX_PATH_CHARS, description="below the directory `captures_dir`")
    ]


class JobOptions(Body):
    """How to classify; null is what the service does by default."""

    model: str | None
    traces: list[str] | None
    ports: bool | None
    cascade: bool | None


class Job(Body):
    """A capture that is classified in the background, as it stands."""

    id: str
    name: str
    created: float
    options: JobOptions
    state: Annotated[
        Literal["queued", "reading", "done", "failed", "cancelled"],
        Field(description="nothing follows `done`, `failed` and `cancelled`"),
    ]
    owner: Annotated[str | None, Field(description="name of the key that handed it in; null where none was wanted")]
    path: Annotated[str | None, Field(description="below the directory `captures_dir`; null where it was uploaded")]
    started: Seconds
    ended: Seconds
    size_bytes: Annotated[int, Field(description="of the capture, as stored")]
    read_bytes: int
    share: Annotated[float, Field(ge=0, le=1, description="how much of the capture has been read")]
    flows: Annotated[int, Field(description="found so far")]
    error: Annotated[str | None, Field(description="why it failed")]
    warning: Annotated[str | None, Field(description="what the result lacks")]
    summary: Annotated[Summary | None, Field(description="of a job that is done")]


class Jobs(Body):
    """Jobs, newest first."""

    jobs: list[Job]


class JobTraces(Body):
    """A page of traces."""

    traces: list[PastTrace]
    next: Annotated[str | None, Field(description="give it as `cursor` for the next page; null at the end")]
