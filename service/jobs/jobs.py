"""The jobs of one service: taken in, asked about, cancelled, and deleted when they are old."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, TypeVar

import msgspec

from tapline.service.history.filters import FlowFilter, TraceFilter
from tapline.service.history.past import FlowSort, Page, PastFlow, PastTrace
from tapline.service.inference.served import ServedModels
from tapline.service.jobs.capture_files import captures_below, open_below
from tapline.service.jobs.changes import Changes
from tapline.service.jobs.job import (
    AS_BY_DEFAULT,
    Job,
    JobError,
    JobOptions,
    JobQueueFullError,
    NoRoomError,
    NotDoneError,
    UnknownJobError,
)
from tapline.service.jobs.job_retention import JobRetention
from tapline.service.jobs.job_runner import JobRunner
from tapline.service.jobs.job_store import JobStore
from tapline.service.jobs.packet_reads import PacketReads
from tapline.service.metrics import Metrics
from tapline.service.process.completion import opened, to_its_end
from tapline.service.process.supervisor import Supervisor
from tapline.service.results.writers import RecordTaker
from tapline.service.settings import Settings
from tapline.service.trace_models import TraceModels

if TYPE_CHECKING:
    from tapline.service.jobs.result import Result


MAX_NAME = 128
SWEEP_SECONDS = 600
"""How often it is looked whether jobs are too old."""

T = TypeVar("T")


class Jobs:
    """All of them, by their ids. Everything here is called in the event loop of the service; nothing blocks it.

    A `Job` that is returned is a copy: it stays as it was.
    """

    def __init__(
        self,
        settings: Settings,
        models: ServedModels,
        trace_models: TraceModels,
        metrics: Metrics,
        supervisor: Supervisor,
    ) -> None:
        self._settings = settings
        self._models = models
        self._trace_models = trace_models
        self._metrics = metrics
        self._supervisor = supervisor
        self._store = JobStore(settings.data_dir / "jobs", settings.captures_dir)
        self._runner = JobRunner(settings, models, trace_models, metrics, self._store, self._disk, self._tell)
        self._jobs: dict[str, Job] = {}
        self._retention = JobRetention(settings, metrics, self._jobs, self._size_bytes, self.delete)
        self._running: dict[str, asyncio.Task[None]] = {}
        self._packet_reads = PacketReads(settings)
        self._incoming = 0
        self._is_open = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="jobs")
        self._queued = asyncio.Event()
        self._changes = Changes()

    def open(self) -> None:
        """Take the directory of jobs, and know those that are there.

        Raises:
            JobsInUseError: it cannot be used, or another service has it.
        """
        found = sorted(self._store.open(), key=lambda job: (job.created, job.id))
        self._jobs.clear()
        self._jobs.update((job.id, job) for job in found)
        self._is_open = True

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncGenerator[None, None]:
        """Run jobs, a few at a time; those that run when this ends will run again at the next start.

        Raises:
            JobsInUseError: as of `open`.
        """
        if not self._is_open:
            self.open()
        self._queued.set()
        self._tell()
        parts = [self._supervisor.start(f"jobs {1 + n}", self._run) for n in range(self._settings.max_jobs)]
        parts.append(self._supervisor.start("old jobs", self._sweep_for_ever))
        try:
            yield
        finally:
            await self._supervisor.stop(parts)
            self._runner.close()
            self._thread.shutdown()
            self._store.close()
            self._is_open = False

    async def submit(
        self,
        chunks: AsyncIterator[bytes],
        name: str,
        options: JobOptions = AS_BY_DEFAULT,
        owner: str | None = None,
    ) -> Job:
        """Keep a capture that comes in pieces, and queue it. Where that fails or is cancelled, nothing is kept.

        Raises:
            JobQueueFullError: too many wait.
            NoRoomError: the disk is full.
            JobError: the capture is empty, or larger than `max_job_mb`.
            UnknownModelError: a model of the options is not loaded.
        """
        self._check(options)
        with self._place():
            id = await self._disk(self._store.new)
            async with self._or_removed(id):
                limit = self._settings.max_job_mb << 20
                size_bytes = await self._store.receive(id, chunks, limit, self._disk)
                if not size_bytes:
                    raise JobError("the capture is empty")
                name = PurePath(name).name[:MAX_NAME] or "capture"
                job = Job(id=id, name=name, created=time.time(), options=options, owner=owner, size_bytes=size_bytes)
                if await self._retention.fit(await self._size_bytes(id)):
                    raise NoRoomError(f"jobs that wait and run take all of the {self._settings.jobs_mb} MiB for jobs")
                await self._disk(self._store.save, job)
            self._metrics.upload_bytes.inc(size_bytes)
            return self._enqueue(job)

    async def submit_path(self, path: str, options: JobOptions = AS_BY_DEFAULT, owner: str | None = None) -> Job:
        """Queue a capture that lies below the directory `captures_dir`; it is read where it lies, not copied.

        Raises:
            JobQueueFullError, NoRoomError, UnknownModelError: as of `submit`.
            BadPathError: no such directory is configured, or there is no such regular file below it.
            JobError: it is empty, or larger than `max_job_mb`.
        """
        self._check(options)
        with self._place():
            with await asyncio.to_thread(open_below, self._settings.captures_dir, path) as file:
                status = os.fstat(file.fileno())
            if not 0 < status.st_size <= self._settings.max_job_mb << 20:
                raise JobError(f"expected a capture of 1 byte to {self._settings.max_job_mb} MiB")
            id = await self._disk(self._store.new)
            job = Job(
                id=id, name=PurePath(path).name[:MAX_NAME], created=time.time(), options=options, owner=owner,
                size_bytes=status.st_size, path=path, modified_ns=status.st_mtime_ns,
            )  # fmt: skip
            async with self._or_removed(id):
                await self._disk(self._store.save, job)
            return self._enqueue(job)

    async def captures(self) -> list[str]:
        """What `submit_path` takes: the files below the directory of captures."""
        return await asyncio.to_thread(captures_below, self._settings.captures_dir)

    def list(self) -> list[Job]:
        """All jobs, newest first."""
        return [msgspec.structs.replace(job) for job in reversed(self._jobs.values())]

    def get(self, id: str) -> Job:
        """One job; UnknownJobError where there is none of that id, as of all that asks for one."""
        return msgspec.structs.replace(self._job(id))

    async def cancel(self, id: str) -> Job:
        """Let a job that waits or runs end as `cancelled`; one that has ended stays as it is."""
        job = self._job(id)
        if job.state == "queued":
            job.state = "cancelled"  # at once, so that it is not begun meanwhile
            await to_its_end(self._runner.end(job, {}))
        elif task := self._running.get(id):
            self._runner.cancel(job)
            task.cancel()
            await asyncio.wait({task})
        return self.get(id)

    async def delete(self, id: str) -> None:
        """Cancel it where it has not ended, then forget it with its capture and its result."""
        await self.cancel(id)
        self._jobs.pop(id, None)
        self._tell()
        await to_its_end(self._disk(self._store.remove, id))

    async def flows(
        self,
        id: str,
        wanted: FlowFilter = FlowFilter(),  # noqa: B008 (frozen)
        *,
        sort: FlowSort = "time",
        ascending: bool = True,
        limit: int = 100,
        cursor: str | None = None,
    ) -> Page[PastFlow]:
        """A page of the flows of a job that is done, as of `history.History.flows`. They are numbered in the order in
        which they ended; `seen_us` is the time of that on the capture's own clock.

        Raises:
            UnknownJobError, NotDoneError: there is no such result.
            FilterError, SlowQueryError: as there.
        """
        ask = partial((await self._result(id)).flows, wanted, sort, ascending=ascending, limit=limit, cursor=cursor)
        return await self._ask(id, ask)

    async def flow(self, id: str, number: int) -> PastFlow:
        """A flow by its number, with its content bytes.

        Raises:
            UnknownJobError, NotDoneError: there is no such result, or no such flow in it.
        """
        found = await self._ask(id, partial((await self._result(id)).flow, number))
        if found is None:
            raise UnknownJobError(f"the job has no flow {number}")
        return found

    async def traces(
        self,
        id: str,
        wanted: TraceFilter = TraceFilter(),  # noqa: B008 (frozen)
        *,
        ascending: bool = True,
        limit: int = 100,
        cursor: str | None = None,
    ) -> Page[PastTrace]:
        """A page of the traces of a job that is done, in the order in which they were complete; raises as `flows`."""
        ask = partial((await self._result(id)).traces, wanted, ascending=ascending, limit=limit, cursor=cursor)
        return await self._ask(id, ask)

    async def trace(self, id: str, number: int) -> PastTrace:
        """A trace by its number; raises as `flow`."""
        found = await self._ask(id, partial((await self._result(id)).trace, number))
        if found is None:
            raise UnknownJobError(f"the job has no trace {number}")
        return found

    async def write(self, id: str, writer: RecordTaker, *, content: bool) -> AsyncGenerator[None, None]:
        """Give the whole result to a writer, but for its summary, a step at a time. `content`: with content bytes.

        Raises:
            UnknownJobError, NotDoneError: there is no such result.
        """
        steps = (await self._result(id)).write(writer, content=content)
        while await self._ask(id, partial(next, steps, False)) is not False:
            yield

    async def packets(self, id: str, number: int) -> AsyncGenerator[bytes, None]:
        """The packets of a flow as a capture file, in pieces: as they were captured, read again from the job's capture
        (pcap with nanoseconds; pcapng where they have several link types).

        Raises:
            UnknownJobError, NotDoneError: there is no such flow.
            CaptureGoneError: the capture has changed or gone, or cannot be read as far any more.
            JobQueueFullError: too many ask for packets at a time.
        """
        flow = await self.flow(id, number)
        async with (
            opened(self._disk(self._store.capture, self._job(id))) as file,
            contextlib.aclosing(self._packet_reads.read(file, flow)) as pieces,
        ):
            async for piece in pieces:
                yield piece

    async def changed(self, since: int = 0) -> int:
        """Wait until any job has changed since a number that this returned before (0: return at once); the new number.

        Progress counts as a change at most twice a second. `while True: since = await jobs.changed(since)` hears of
        everything, however slow it is, and nothing piles up for it.
        """
        return await self._changes.after(since)

    def _check(self, options: JobOptions) -> None:
        self._models.batcher(options.model)
        self._trace_models.check_chosen(options.traces or ())
        if not self._is_open:
            raise JobQueueFullError("no jobs are taken: the service is starting or stopping")

    @contextlib.contextmanager
    def _place(self) -> Iterator[None]:
        """A place in the queue while a job is taken in."""
        waiting = self._incoming + sum(job.state == "queued" for job in self._jobs.values())
        if waiting >= self._settings.max_queued_jobs:
            raise JobQueueFullError(f"{waiting} jobs are waiting, the limit is {self._settings.max_queued_jobs}")
        self._incoming += 1
        try:
            yield
        finally:
            self._incoming -= 1

    @contextlib.asynccontextmanager
    async def _or_removed(self, id: str) -> AsyncGenerator[None, None]:
        """Remove a new job where the block fails or is cancelled."""
        try:
            yield
        except BaseException:
            await to_its_end(self._disk(self._store.remove, id))
            raise

    def _enqueue(self, job: Job) -> Job:
        self._jobs[job.id] = job
        self._queued.set()
        self._tell()
        return msgspec.structs.replace(job)

    async def _run(self) -> None:
        """Run one job after the other, the longest waiting first."""
        while True:
            job = next((job for job in self._jobs.values() if job.state == "queued"), None)
            if job is None:
                self._queued.clear()
                await self._queued.wait()
                continue
            job.state, job.started = "reading", time.time()
            self._tell()
            task = self._running[job.id] = asyncio.create_task(self._runner.run(job), name=f"job {job.id}")
            try:
                await asyncio.wait({task})
            finally:
                if not task.done():
                    task.cancel()
                    await asyncio.wait({task})
                del self._running[job.id]
            if not task.cancelled():
                task.result()  # an error here is a fault of ours: the supervisor tells it
            await self._retention.sweep()

    async def _sweep_for_ever(self) -> None:
        while True:
            await self._retention.sweep()
            await asyncio.sleep(SWEEP_SECONDS)

    async def _size_bytes(self, id: str) -> int:
        return await self._disk(self._store.size_bytes, id)

    def _tell(self, *, progress: bool = False) -> None:
        """Say that something changed."""
        if self._changes.tell(progress=progress):
            for state in ("queued", "reading"):
                self._metrics.jobs.labels(state).set(sum(job.state == state for job in self._jobs.values()))

    def _job(self, id: str) -> Job:
        found = self._jobs.get(id)
        if found is None:
            raise UnknownJobError("there is no such job: it has been deleted, or never was")
        return found

    async def _result(self, id: str) -> Result:
        job = self._job(id)
        if job.state != "done":
            why = f": {job.error}" if job.error else ""
            raise NotDoneError(f"the job has no result, it is {job.state}{why}")
        return await asyncio.to_thread(_open_result, self._store.result(id))

    async def _ask(self, id: str, question: Callable[[], T]) -> T:
        """An answer of a result; where it cannot be given because the job was deleted meanwhile, that is said."""
        try:
            return await asyncio.to_thread(question)
        except Exception:
            self._job(id)
            raise

    async def _disk(self, work: Callable[..., T], *args: object) -> T:
        """Do something with the disk, one thing after the other."""
        return await asyncio.wrap_future(self._thread.submit(work, *args))


def _open_result(path: Path) -> Result:
    from tapline.service.jobs.result import Result  # imports a database, which a service without history may never ask

    return Result(path)
