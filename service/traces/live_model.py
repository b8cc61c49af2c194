"""One trace model on live traffic: flows into its windows, windows to verdicts off the event loop, state to disk."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from tapline.models.checkpoint import TracegramCheckpoint
from tapline.models.flow import Flow
from tapline.service.inference.flow_features import FlowFeatures
from tapline.service.log_lines import log
from tapline.service.metrics import Metrics
from tapline.service.process.quiet_log import QuietLog
from tapline.service.process.supervisor import Part, Supervisor
from tapline.service.traces.scorer import TraceScorer
from tapline.service.traces.trace_verdict import ScoreJob, TraceFlow, TraceVerdict
from tapline.service.traces.window_state import WRITE_FAULTS, TraceState
from tapline.service.traces.windows import CloseReason, TraceWindows, WindowCounts

CHECK_SECONDS = 1.0
"""How often windows are looked at that no flow closes."""

BATCH_TRACES = 64
SAVE_SECONDS = 60.0

Scored = Callable[[TracegramCheckpoint, NDArray[np.float32]], None]
"""Is told of logits float32 [n, classes], in a thread of the model's."""

Deliver = Callable[[str, TraceVerdict], None]
"""Takes the name of a source, and a verdict on a trace of it."""


@dataclass(frozen=True)
class _Version:
    """A version of the model, and the windows of the flows that it reads."""

    windows: TraceWindows
    scorer: TraceScorer

    @property
    def checkpoint(self) -> TracegramCheckpoint:
        return self.scorer.checkpoint


class LiveModel:
    """Takes flows without waiting; a task of its own scores and delivers, from `start` to `stop`, so that a model that
    hangs holds up no other. Used in one event loop.

    There is one version of the model, but between `open` and `close_old` two: flows go to the windows of the one that
    reads them.
    """

    def __init__(
        self,
        windows: TraceWindows,
        scorer: TraceScorer,
        metrics: Metrics,
        deliver: Deliver,
        *,
        state: TraceState | None = None,
        scored: Scored = lambda checkpoint, logits: None,
    ) -> None:
        """`deliver` is told of every verdict, `scored` of the logits of windows that are over; without a `state` open
        windows are closed at the end."""
        self.name = scorer.checkpoint.name
        self._versions = [_Version(windows, scorer)]
        self._metrics = metrics
        self._state = state
        self._deliver = deliver
        self._scored = scored
        self._counted = WindowCounts()
        self._work = asyncio.Event()
        self._scoring = asyncio.Lock()
        self._saving = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"traces of {self.name}")
        self._saved_at = time.monotonic()
        self._stopping = False
        self.part: Part | None = None
        self._log = QuietLog(log, model=self.name)
        if state is not None:
            state.load(windows)

    @property
    def windows(self) -> TraceWindows:
        """Where new flows go."""
        return self._versions[-1].windows

    @property
    def checkpoint(self) -> TracegramCheckpoint:
        """The newest version's."""
        return self._versions[-1].checkpoint

    @property
    def open_windows(self) -> int:
        """Windows that are open, of both versions during a swap."""
        return sum(version.windows.open_windows for version in self._versions)

    @property
    def open_flows(self) -> int:
        """Flows in them."""
        return sum(version.windows.open_flows for version in self._versions)

    def take(self, source: str, flow: Flow, features: FlowFeatures | None, kept: TraceFlow | None) -> None:
        """Take a flow of a source. `kept`: of it for the version that reads its `features`; without those the flow is
        at most the newer form of one that the model has.
        """
        if features is not None and kept is None:
            self.windows.counts.unread += 1
            features = None
        version = next((each for each in self._versions if each.windows.has_early(source, flow.uid)), None)
        if version is not None and features is not None and features.checkpoint is not version.checkpoint:
            kept = None  # its early form counts, which the other version reads
        elif version is None:
            newest_first = reversed(self._versions)
            version = next(
                (each for each in newest_first if features is None or each.checkpoint is features.checkpoint), None
            )
        if version is None:
            self.windows.counts.late += 1  # the version that could have read it is gone
            return
        version.windows.add(source, flow, kept, time.time())
        if version.windows.jobs:
            self._work.set()

    def start(self, supervisor: Supervisor) -> None:
        """Start to work; call once, in the event loop in which flows come."""
        self.part = supervisor.start(f"traces of {self.name}", self._run)

    async def _run(self) -> None:
        """Close windows when they are over, score, deliver and keep the state."""
        while not self._stopping:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CHECK_SECONDS):
                    await self._work.wait()
            self._work.clear()
            for version in self._versions:
                version.windows.close_due(time.time())
            await self._score()
            self._count()
            if time.monotonic() - self._saved_at >= SAVE_SECONDS:
                await self.save()

    async def finish(self, source: str) -> None:
        """A source has ended: close its windows and deliver their verdicts."""
        for version in self._versions:
            version.windows.close_all(source)
        await self._score()
        self._count()

    def open(self, windows: TraceWindows, scorer: TraceScorer) -> None:
        """Take flows that another version reads into windows of their own, which come `after` those there are.

        `close_old` is to be called once no more flows come that the version before reads.
        """
        self._versions.append(_Version(windows, scorer))

    async def close_old(self) -> int:
        """Close and deliver what is open of the versions before the newest; gives how many windows that were.

        The state is then that of the newest.
        """
        before = self.windows.counts.closed_swapped
        while len(self._versions) > 1:
            oldest = self._versions[0]
            oldest.windows.close_all(reason="swapped")
            await self._score()
            if not oldest.windows.open_windows and not oldest.windows.jobs:
                oldest.windows.leave()
                self._versions = [version for version in self._versions if version is not oldest]
        self._count()
        if self._state is not None:
            self._state.keep_for(self.checkpoint)
        await self.save()
        return self.windows.counts.closed_swapped - before

    async def end(self) -> int:
        """Close and deliver what is open: the model serves no more. Gives how many windows that were."""
        before = self.windows.counts.closed_swapped
        for version in self._versions:
            version.windows.close_all(reason="swapped")
        await self.stop()
        for version in self._versions:
            version.windows.leave()
        return self.windows.counts.closed_swapped - before

    async def stop(self) -> None:
        """Keep what is open for the next run, or close and deliver it where nothing is kept. No flow may come after."""
        self._stopping = True
        self._work.set()
        if self.part is not None and self.part.task is not None:
            await asyncio.gather(self.part.task, return_exceptions=True)
        if len(self._versions) > 1:
            await self.close_old()
        if self._state is None:
            self.windows.close_all()
        await self._score()
        self._count()
        await self.save()
        if self._state is not None:
            self._state.close()
        self._thread.shutdown(wait=False)

    async def _score(self) -> None:
        """Score every window that waits, in order, so that an early verdict never comes after the final one."""
        async with self._scoring:
            for version in list(self._versions):
                while jobs := version.windows.take_jobs(BATCH_TRACES):
                    await self._score_batch(version, jobs)

    async def _score_batch(self, version: _Version, jobs: list[ScoreJob]) -> None:
        started = time.perf_counter()
        found: list[TraceVerdict | None] = [None] * len(jobs)
        try:
            found = await asyncio.get_running_loop().run_in_executor(
                self._thread, version.scorer.score_each, jobs, partial(self._watch, version.checkpoint)
            )
        finally:
            self._metrics.trace_score_seconds.labels(self.name).observe(time.perf_counter() - started)
            self._metrics.trace_failures.labels(self.name).inc(found.count(None))
        for job, trace in zip(jobs, found, strict=True):
            if trace is None:
                continue
            try:
                self._emit(version, job, trace)
            except Exception as error:  # of a sink: it costs this verdict, not the others
                self._metrics.trace_failures.labels(self.name).inc()
                self._log.error("emit", "a verdict was not delivered", error=type(error).__name__, exc_info=error)

    def _watch(self, checkpoint: TracegramCheckpoint, jobs: Sequence[ScoreJob], logits: NDArray[np.float32]) -> None:
        self._scored(checkpoint, logits[[job.final for job in jobs]])

    def _emit(self, version: _Version, job: ScoreJob, trace: TraceVerdict) -> None:
        if not job.final and not _is_worth_giving(version, job, trace):
            return
        if job.final and self._state is not None and not version.windows.is_capture(job.key.source):
            self._note_closed(self._state, job)
        stage = "final" if job.final else "early"
        self._metrics.trace_verdicts.labels(self.name, trace.verdict.label, stage).inc()
        if trace.suspicious:
            self._metrics.suspicious_traces.labels(self.name, stage).inc()
        self._deliver(job.key.source, trace)

    def _note_closed(self, state: TraceState, job: ScoreJob) -> None:
        try:
            state.closed(job.key)
        except WRITE_FAULTS as error:
            self._note_failure("closed", "a closed trace was not noted", error)

    def _note_failure(self, kind: str, event: str, error: BaseException) -> None:
        self._metrics.trace_state_failures.labels(self.name).inc()
        self._log.warning(kind, event, reason=getattr(error, "strerror", None) or type(error).__name__)

    async def save(self) -> None:
        """Write what is open to the state directory, where there is one; the task does it every `SAVE_SECONDS`.

        While there are two versions, what was saved before stays: a snapshot holds the windows of one.
        """
        self._saved_at = time.monotonic()
        if self._state is None:
            return
        async with self._saving:
            if len(self._versions) > 1:
                return
            try:
                await self._state.save(self.windows)
            except WRITE_FAULTS as error:
                self._note_failure("save", "open traces were not saved", error)

    def _count(self) -> None:
        """Bring the metrics up to date."""
        now, before, name = self.windows.counts, self._counted, self.name
        self._counted = dataclasses.replace(now)
        for outcome in ("flows", "replaced", "late", "cut", "unread"):
            self._metrics.trace_flows.labels(name, outcome).inc(getattr(now, outcome) - getattr(before, outcome))
        for reason in get_args(CloseReason):
            closed = getattr(now, f"closed_{reason}") - getattr(before, f"closed_{reason}")
            self._metrics.trace_windows_closed.labels(name, reason).inc(closed)
        for outcome in ("below_min_flows", "shed"):
            unscored = getattr(now, outcome) - getattr(before, outcome)
            self._metrics.trace_windows_unscored.labels(name, outcome).inc(unscored)
        self._metrics.trace_windows_open.labels(name).set(self.open_windows)
        self._metrics.trace_open_flows.labels(name).set(self.open_flows)


def _is_worth_giving(version: _Version, job: ScoreJob, trace: TraceVerdict) -> bool:
    """Whether an early verdict is: it is sure of its label or that the trace is suspicious, and was not said of the
    window before."""
    verdict = trace.verdict
    is_sure = not verdict.unknown and verdict.confidence >= version.checkpoint.early.confidence
    return version.windows.note_early(job.key, verdict.label if is_sure else None, suspicious=trace.suspicious is True)
