"""What jobs are deleted when: those that ended too long ago, and the longest ended where all take too much room."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping

from tapline.service.jobs.job import Job, UnknownJobError
from tapline.service.log_lines import log
from tapline.service.metrics import Metrics
from tapline.service.settings import Settings

_DAY_SECONDS = 86_400


class JobRetention:
    """Keeps to `job_days` and `jobs_mb`. Jobs that have not ended are never deleted."""

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        jobs: Mapping[str, Job],
        size_bytes: Callable[[str], Awaitable[int]],
        delete: Callable[[str], Awaitable[None]],
    ) -> None:
        """`jobs`: those that there are, by their ids, at any time; `size_bytes` and `delete` are asked by id."""
        self._settings = settings
        self._metrics = metrics
        self._jobs = jobs
        self._size_bytes = size_bytes
        self._delete = delete

    async def sweep(self) -> None:
        """Delete what is too old, or has no room."""
        oldest = time.time() - self._settings.job_days * _DAY_SECONDS
        for job in [job for job in self._jobs.values() if job.has_ended and (job.ended or 0) < oldest]:
            await self._retire(job, "age")
        await self.fit()

    async def fit(self, more_bytes: int = 0) -> bool:
        """Delete the longest ended jobs until the rest, and so many bytes more, fit; whether they still do not."""
        sizes = {id: await self._size_bytes(id) for id in list(self._jobs)}
        total = more_bytes + sum(sizes.values())
        for job in sorted((job for job in self._jobs.values() if job.has_ended), key=lambda job: job.ended or 0):
            if total <= self._settings.jobs_mb << 20:
                return False
            total -= sizes.get(job.id, 0)
            await self._retire(job, "room")
        return total > self._settings.jobs_mb << 20

    async def _retire(self, job: Job, reason: str) -> None:
        log.info("deleting an old job", job=job.id, reason=reason)
        self._metrics.jobs_removed.labels(reason).inc()
        with contextlib.suppress(UnknownJobError):
            await self._delete(job.id)
