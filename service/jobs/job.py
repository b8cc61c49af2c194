"""What is known of a job: its record, which is also how it is kept on disk and shown in REST; and what can go wrong."""

from __future__ import annotations

from typing import Literal

import msgspec

from tapline.service.results.records import Summary

State = Literal["queued", "reading", "done", "failed", "cancelled"]
"""`done`, `failed` and `cancelled` are ends: nothing follows them."""

ENDED: tuple[State, ...] = ("done", "failed", "cancelled")


class JobError(RuntimeError):
    """A job cannot be taken, or asked for that; the message says why and what to do."""


class UnknownJobError(JobError):
    """There is no such job, or it has been deleted."""


class NotDoneError(JobError):
    """The job has no result: not yet, or it failed or was cancelled."""


class JobQueueFullError(JobError):
    """As many jobs as are allowed wait: come again later."""


class NoRoomError(JobError):
    """The disk has no room for the capture; nothing of it was kept."""


class CaptureGoneError(JobError):
    """The capture of the job is not what it was when it was read, or not there any more."""


class ResultError(OSError):
    """The result cannot be written; in words."""


class JobOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How to classify.

    * `model`: a loaded flow model, None for the default one.
    * `traces`: loaded trace models, None for all of them, empty for no traces.
    * `ports`: whether verdicts read ports, None as the service is set.
    * `cascade`: whether a student may answer, None as the service is set.
    """

    model: str | None = None
    traces: list[str] | None = None
    ports: bool | None = None
    cascade: bool | None = None


AS_BY_DEFAULT = JobOptions()


class Job(msgspec.Struct, kw_only=True):
    """One job as it stands. Times are seconds since the epoch, None where it has not come to that.

    * `path`: the capture below the configured directory; None where it was uploaded, and is kept with the job.
    * `owner`: the name of the key that handed it in; None where no key was wanted.
    * `modified_ns`: when the file at `path` was last written, in nanoseconds since the epoch.
    * `size_bytes`, `read_bytes`: of the capture, as stored; `share` of it has been read, from 0 to 1.
    * `flows`: that were found so far.
    * `error`: why it failed. `warning`: its result lacks something, and what.
    * `summary`: of a job that is done.
    """

    id: str
    name: str
    created: float
    options: JobOptions = AS_BY_DEFAULT
    state: State = "queued"
    owner: str | None = None
    path: str | None = None
    modified_ns: int | None = None
    started: float | None = None
    ended: float | None = None
    size_bytes: int = 0
    read_bytes: int = 0
    flows: int = 0
    error: str | None = None
    warning: str | None = None
    summary: Summary | None = None

    @property
    def share(self) -> float:
        """How much of the capture has been read."""
        if self.state == "done":
            return 1.0
        return min(1.0, self.read_bytes / self.size_bytes) if self.size_bytes else 0.0

    @property
    def has_ended(self) -> bool:
        """Whether nothing follows any more."""
        return self.state in ENDED
