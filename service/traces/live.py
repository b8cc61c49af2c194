"""The traces of live traffic: flows into windows, windows to verdicts off the event loop, verdicts to their sinks."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import structlog

from models.flow import Flow
from models.verdict import Verdict
from service.classifier import FlowOutcome
from service.metrics import Metrics
from service.traces.history import TraceHistory, shown_label
from service.traces.records import ScoreJob, TraceVerdict
from service.traces.scorer import TraceScorer
from service.traces.state import TraceState
from service.traces.windows import TraceWindows, WindowCounts

log = structlog.get_logger()

CHECK_SECONDS = 1.0
"""How often windows are looked at that no flow closes."""

BATCH_TRACES = 64
SAVE_SECONDS = 60.0

TraceWatcher = Callable[[TraceVerdict], None]


class LiveTraces:
    """Takes flows without waiting; a task scores and delivers, from `start` to `stop`. Used in one event loop."""

    def __init__(
        self,
        windows: TraceWindows,
        scorer: TraceScorer,
        metrics: Metrics,
        history: TraceHistory,
        *,
        state: TraceState | None = None,
        watcher: TraceWatcher = lambda trace: None,
    ) -> None:
        """`watcher` is told of every verdict; without a `state` open windows are closed at the end."""
        self.windows = windows
        self.history = history
        self._scorer = scorer
        self._metrics = metrics
        self._state = state
        self._watcher = watcher
        self._sinks: dict[str, TraceWatcher] = {}
        self._counted = WindowCounts()
        self._work = asyncio.Event()
        self._scoring = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="traces")
        self._saved_at = time.monotonic()
        self._stopping = False
        self._task: asyncio.Task[None] | None = None
        if state is not None:
            state.load(windows)

    def deliver_to(self, source: str, sink: TraceWatcher) -> None:
        """Tell `sink` of the verdicts on traces of a source."""
        self._sinks[source] = sink

    def take(self, source: str, flow: Flow, outcome: FlowOutcome) -> None:
        """Take a flow of a source, with what the networks made of it."""
        self.windows.add(source, flow, outcome, time.time())
        if self.windows.jobs:
            self._work.set()

    def start(self) -> None:
        """Start to work; call once, in the event loop in which flows come."""
        self._task = asyncio.create_task(self._run(), name="traces")
        self._task.add_done_callback(_report_death)

    async def _run(self) -> None:
        """Close windows when they are over, score, deliver and keep the state."""
        while not self._stopping:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CHECK_SECONDS):
                    await self._work.wait()
            self._work.clear()
            self.windows.close_due(time.time())
            await self._score()
            self._count()
            if time.monotonic() - self._saved_at >= SAVE_SECONDS:
                await self.save()

    async def finish(self, source: str) -> None:
        """A source has ended: close its windows and deliver their verdicts."""
        self.windows.close_all(source)
        await self._score()
        self._count()

    async def stop(self) -> None:
        """Keep what is open for the next run, or close and deliver it where nothing is kept. No flow may come after."""
        self._stopping = True
        self._work.set()
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)
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
            while jobs := self.windows.take_jobs(BATCH_TRACES):
                await self._score_batch(jobs)

    async def _score_batch(self, jobs: list[ScoreJob]) -> None:
        started = time.perf_counter()
        found = await asyncio.get_running_loop().run_in_executor(self._thread, self._scorer.score_each, jobs)
        self._metrics.trace_score_seconds.observe(time.perf_counter() - started)
        for job, trace in zip(jobs, found, strict=True):
            if trace is None:
                self._metrics.trace_failures.inc()
            else:
                self._emit(job, trace)

    def _emit(self, job: ScoreJob, trace: TraceVerdict) -> None:
        if not job.final and not self._is_sure(job, trace.verdict):
            return
        if job.final and self._state is not None and not self.windows.is_capture(job.key.source):
            self._state.closed(job.key)
        self._metrics.trace_verdicts.labels(shown_label(trace), "final" if job.final else "early").inc()
        self.history.add(trace)
        self._watcher(trace)
        sink = self._sinks.get(job.key.source)
        if sink is not None:
            sink(trace)

    def _is_sure(self, job: ScoreJob, verdict: Verdict) -> bool:
        """Whether an early verdict is worth giving: confident, and not what was said of the window before."""
        rule = self._scorer.checkpoint.early
        if verdict.unknown or verdict.confidence < rule.confidence:
            return False
        return self.windows.note_early(job.key, verdict.label)

    async def save(self) -> None:
        """Write what is open to the state directory, where there is one; the task does it every `SAVE_SECONDS`."""
        self._saved_at = time.monotonic()
        if self._state is None:
            return
        try:
            await self._state.save(self.windows)
        except OSError as error:
            self._metrics.trace_state_failures.inc()
            log.warning("open traces were not saved", reason=error.strerror)

    def _count(self) -> None:
        """Bring the metrics up to date."""
        now, before = self.windows.counts, self._counted
        self._counted = dataclasses.replace(now)
        for outcome in ("flows", "replaced", "late", "cut"):
            self._metrics.trace_flows.labels(outcome).inc(getattr(now, outcome) - getattr(before, outcome))
        for reason in ("time", "end", "evicted"):
            name = f"closed_{reason}"
            self._metrics.trace_windows_closed.labels(reason).inc(getattr(now, name) - getattr(before, name))
        for outcome in ("below_min_flows", "shed"):
            self._metrics.trace_windows_unscored.labels(outcome).inc(getattr(now, outcome) - getattr(before, outcome))
        self._metrics.trace_windows_open.set(self.windows.open_windows)
        self._metrics.trace_open_flows.set(self.windows.open_flows)


def _report_death(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        log.error("live traces died", error=type(task.exception()).__name__, exc_info=task.exception())
