"""Runs one job to its end, whichever that is, and keeps the outcome."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

import msgspec

from tapline.service.classifying import BadCaptureError, Classifying, ReadLimits, open_capture
from tapline.service.inference.batcher import Batcher
from tapline.service.inference.repository import UnknownModelError
from tapline.service.inference.served import ServedModels
from tapline.service.inference.waiting import VerdictError
from tapline.service.jobs.job import Job, JobError, NoRoomError, ResultError
from tapline.service.jobs.job_store import JobStore
from tapline.service.log_lines import log
from tapline.service.metrics import Metrics
from tapline.service.process.completion import opened, to_its_end
from tapline.service.results.records import Summary
from tapline.service.settings import Settings
from tapline.service.trace_models import TraceModels

if TYPE_CHECKING:
    from tapline.service.jobs.result import ResultWriter


class Tell(Protocol):
    """Says that a job has changed; with `progress`, that it came further."""

    def __call__(self, *, progress: bool = False) -> None:
        """Say it."""
        ...


class JobRunner:
    """What jobs run with. Verdicts come from the batchers that serve everybody: a job is one caller among others there,
    after all that is urgent. Its flows are written in a thread that all jobs share."""

    def __init__(
        self,
        settings: Settings,
        models: ServedModels,
        trace_models: TraceModels,
        metrics: Metrics,
        store: JobStore,
        disk: Callable[..., Coroutine[Any, Any, Any]],
        tell: Tell,
    ) -> None:
        self._settings = settings
        self._models = models
        self._trace_models = trace_models
        self._metrics = metrics
        self._store = store
        self._disk = disk
        self._tell = tell
        self._cancelled: set[str] = set()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="results")

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown()

    def cancel(self, job: Job) -> None:
        """Let a job end as cancelled when the task that runs it is cancelled next."""
        self._cancelled.add(job.id)

    async def run(self, job: Job) -> None:
        """Run a job that is `reading` until it has ended. Cancelled without `cancel` it has not: it will run again."""
        outcome: dict[str, Any]
        try:
            summary = await self._classify(job)
            outcome = {"state": "done", "summary": summary, "warning": summary.inputs[0].warning}
        except asyncio.CancelledError:
            if job.id not in self._cancelled:
                raise
            outcome = {"state": "cancelled"}
        except VerdictError:
            outcome = {"state": "failed", "error": "its model was unloaded meanwhile"}
        except (BadCaptureError, JobError, UnknownModelError, ResultError) as error:
            outcome = {"state": "failed", "error": str(error)}
        except Exception as error:
            log.error("job failed", job=job.id, error=type(error).__name__, exc_info=error)
            outcome = {"state": "failed", "error": "something went wrong here; it has been logged"}
        finally:
            self._cancelled.discard(job.id)
        await to_its_end(self.end(job, outcome))

    async def end(self, job: Job, outcome: dict[str, Any]) -> None:
        """Keep how a job ended, and show it then. Only a result stays of those that are done."""
        ended = msgspec.structs.replace(job, ended=time.time(), **outcome)
        try:
            if ended.state == "done":
                await self._disk(self._store.save, ended)
        except NoRoomError as error:
            ended = msgspec.structs.replace(ended, state="failed", error=str(error), summary=None)
        if ended.state != "done":
            await self._disk(self._store.keep_record_alone, job.id)
            with contextlib.suppress(NoRoomError):  # at the next start it will be tried again
                await self._disk(self._store.save, ended)
        for name in Job.__struct_fields__:
            setattr(job, name, getattr(ended, name))
        self._metrics.jobs_ended.labels(job.state).inc()
        self._tell()

    async def _classify(self, job: Job) -> Summary:
        """Read and classify the capture of a job, and keep the result."""
        batcher = self._models.batcher(job.options.model)
        async with opened(self._disk(self._store.capture, job)) as file:
            writer = await self._aside(_result_writer, self._store.result(job.id))
            try:
                await self._aside(writer.open)
                summary = await self._read(job, batcher, file, writer)
                await self._aside(writer.keep)
            finally:
                await to_its_end(self._aside(writer.close))
        return summary

    async def _read(self, job: Job, batcher: Batcher, file: BinaryIO, writer: ResultWriter) -> Summary:
        settings = self._settings
        limits = ReadLimits(settings.max_job_mb << 20, settings.parse_memory_mb << 20, settings.job_timeout_seconds)
        chosen = None if job.options.traces is None else frozenset(job.options.traces)
        traces = self._trace_models.captured(batcher.classifier, job.name, chosen)
        work = Classifying(
            job.name, batcher, traces, writer, self._metrics, self._aside,
            caller=f"job {job.id}", ports=job.options.ports,
            cascade=job.options.cascade,
        )  # fmt: skip
        async with open_capture(file, batcher, limits) as capture:
            try:
                async for flows in capture.batches():
                    await work.take(flows)
                    job.flows = work.entry.flows
                    job.read_bytes = os.lseek(file.fileno(), 0, os.SEEK_CUR)  # the process that reads moves it
                    self._tell(progress=True)
                await work.settle()
            finally:
                work.give_up()
            await work.finish()
            return work.summary(capture.stream)

    async def _aside(self, work: Callable[..., Any], *args: Any) -> Any:
        return await asyncio.wrap_future(self._thread.submit(work, *args))


def _result_writer(path: Path) -> ResultWriter:
    from tapline.service.jobs.result import ResultWriter  # imports a database, which most services have no use for

    return ResultWriter(path)
