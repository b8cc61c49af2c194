"""The jobs of one service: taken in, run a few at a time, kept over a restart, and deleted when they are old."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from tapline.service.jobs.job import Job, JobOptions
from tapline.service.traces.trace_verdict import TraceVerdict


class Jobs:
    """All of them, by their ids. Everything here is called in the event loop of the service; nothing blocks it.

    A `Job` that is returned is a copy: it stays as it was.
    """

    async def submit(self, chunks: AsyncIterator[bytes], name: str, options: JobOptions = JobOptions()) -> Job:
        """Keep a capture that comes in pieces, and queue it. Where that fails or is cancelled, nothing is kept.

        Raises:
            JobQueueFullError: too many wait.
            NoRoomError: the disk is full.
            JobError: the capture is empty, or larger than `max_job_mb`.
            UnknownModelError: a model of the options is not loaded.
        """
        raise NotImplementedError

    async def submit_path(self, path: str, options: JobOptions = JobOptions()) -> Job:
        """Queue a capture that lies below the directory `captures_dir`; it is read where it lies, not copied.

        Raises:
            JobQueueFullError, UnknownModelError: as of `submit`.
            JobError: no such directory is configured, or there is no such regular file below it.
        """
        raise NotImplementedError

    def list(self) -> list[Job]:
        """All jobs, newest first."""
        raise NotImplementedError

    def get(self, id: str) -> Job:
        """One job.

        Raises:
            UnknownJobError: there is none of that id.
        """
        raise NotImplementedError

    async def cancel(self, id: str) -> Job:
        """Let a job that waits or runs end as `cancelled`; one that has ended stays as it is.

        Raises:
            UnknownJobError: there is none of that id.
        """
        raise NotImplementedError

    async def delete(self, id: str) -> None:
        """Cancel it where it has not ended, then forget it with its capture and its result.

        Raises:
            UnknownJobError: there is none of that id.
        """
        raise NotImplementedError

    async def flows(
        self,
        id: str,
        filters: Any = None,
        *,
        sort: str = "n",
        descending: bool = False,
        offset: int = 0,
        limit: int = 100,
    ) -> Any:
        """A page of the flows of a job that is done: `.flows` are records as the history has them, each with its
        number `n` in the order of the result, and `.total` says how many pass the filters.

        Raises:
            UnknownJobError, NotDoneError: there is no such result.
        """
        raise NotImplementedError

    async def flow(self, id: str, n: int) -> Any:
        """The flow with the number `n`, with its content bytes, lengths and whole verdict.

        Raises:
            UnknownJobError, NotDoneError: there is no such result, or no such flow in it.
        """
        raise NotImplementedError

    async def traces(self, id: str, *, offset: int = 0, limit: int = 100) -> list[TraceVerdict]:
        """Traces of a job that is done, in the order in which they were complete.

        Raises:
            UnknownJobError, NotDoneError: there is no such result.
        """
        raise NotImplementedError

    async def packets(self, id: str, n: int) -> AsyncGenerator[bytes, None]:
        """The packets of a flow as a capture file, in pieces (pcap; pcapng where the flow's packets have several link
        types): as they were captured, read again from the job's capture.

        Raises:
            UnknownJobError, NotDoneError: there is no such flow.
            CaptureGoneError: the capture has changed or gone.
        """
        raise NotImplementedError

    async def changed(self, since: int = 0) -> int:
        """Wait until any job has changed since a number that this returned before (0: return at once); the new number.

        Progress counts as a change at most twice a second. `while True: since = await jobs.changed(since)` hears of
        everything, however slow it is, and nothing piles up for it.
        """
        raise NotImplementedError
