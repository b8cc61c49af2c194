"""The traces of live traffic: flows into windows, windows to verdicts off the event loop, verdicts to their sinks."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import get_args

import structlog

from tapline.models.flow import Flow
from tapline.models.verdict import Verdict
from tapline.service.inference.classifier import FlowOutcome
from tapline.service.metrics import Metrics
from tapline.service.process.quiet_log import QuietLog
from tapline.service.process.supervisor import Part, Supervisor
from tapline.service.traces.recent_traces import RecentTraces, shown_label
from tapline.service.traces.scorer import TraceScorer
from tapline.service.traces.trace_verdict import ScoreJob, TraceVerdict
from tapline.service.traces.window_state import WRITE_FAULTS, TraceState
from tapline.service.traces.windows import CloseReason, TraceWindows, WindowCounts

log = structlog.get_logger()

CHECK_SECONDS = 1.0
"""How often windows are looked at that no flow closes."""

BATCH_TRACES = 64
SAVE_SECONDS = 60.0

TraceWatcher = Callable[[TraceVerdict], None]


@dataclass(frozen=True)
class _Model:
    """A trace model, and the windows of the flows that were embedded for it."""

    windows: TraceWindows
    scorer: TraceScorer


class LiveTraces:
    """Takes flows without waiting; a task scores and delivers, from `start` to `stop`. Used in one event loop.

    There is one trace model, but between `open` and `close_old` two: flows go to the windows of the one that they were
    embedded for.
    """

    def __init__(
        self,
        windows: TraceWindows,
        scorer: TraceScorer,
        metrics: Metrics,
        history: RecentTraces,
        *,
        state: TraceState | None = None,
        watcher: TraceWatcher = lambda trace: None,
    ) -> None:
        """`watcher` is told of every verdict; without a `state` open windows are closed at the end."""
        self.history = history
        self._models = [_Model(windows, scorer)]
        self._metrics = metrics
        self._state = state
        self._watcher = watcher
        self._sinks: dict[str, TraceWatcher] = {}
        self._counted = WindowCounts()
        self._work = asyncio.Event()
        self._scoring = asyncio.Lock()
        self._saving = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="traces")
        self._saved_at = time.monotonic()
        self._stopping = False
        self._part: Part | None = None
        self._log = QuietLog(log)
        if state is not None:
            state.load(windows)

    @property
    def windows(self) -> TraceWindows:
        """Where new flows go."""
        return self._models[-1].windows

    def deliver_to(self, source: str, sink: TraceWatcher) -> None:
        """Tell `sink` of the verdicts on traces of a source."""
        self._sinks[source] = sink

    def take(self, source: str, flow: Flow, outcome: FlowOutcome) -> None:
        """Take a flow of a source, with what the networks made of it."""
        read_by = outcome.embedded_for
        model = next((each for each in self._models if each.windows.has_early(source, flow.uid)), None)
        if model is not None and read_by is not None and read_by is not model.scorer.checkpoint:
            outcome = FlowOutcome(outcome.verdict)  # its early form counts, which was embedded for the other model
        elif model is None:
            newest_first = reversed(self._models)
            model = next((each for each in newest_first if read_by is None or each.scorer.checkpoint is read_by), None)
        if model is None:
            self.windows.counts.late += 1  # the model that could have read it is gone
            return
        model.windows.add(source, flow, outcome, time.time())
        if model.windows.jobs:
            self._work.set()

    def start(self, supervisor: Supervisor) -> None:
        """Start to work; call once, in the event loop in which flows come."""
        self._part = supervisor.start("traces", self._run)

    async def _run(self) -> None:
        """Close windows when they are over, score, deliver and keep the state."""
        while not self._stopping:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CHECK_SECONDS):
                    await self._work.wait()
            self._work.clear()
            for model in self._models:
                model.windows.close_due(time.time())
            await self._score()
            self._count()
            if time.monotonic() - self._saved_at >= SAVE_SECONDS:
                await self.save()

    async def finish(self, source: str) -> None:
        """A source has ended: close its windows and deliver their verdicts."""
        for model in self._models:
            model.windows.close_all(source)
        await self._score()
        self._count()

    def open(self, windows: TraceWindows, scorer: TraceScorer) -> None:
        """Take flows that are embedded for another model into windows of their own, which come `after` those there are.

        `close_old` is to be called once no more flows come that were embedded for the model before.
        """
        self._models.append(_Model(windows, scorer))

    async def close_old(self) -> int:
        """Close and deliver what is open of the models before the newest; gives how many windows that were.

        The state is then that of the newest.
        """
        before = self.windows.counts.closed_swapped
        while len(self._models) > 1:
            oldest = self._models[0]
            oldest.windows.close_all(reason="swapped")
            await self._score()
            if not oldest.windows.open_windows and not oldest.windows.jobs:
                self._models = [model for model in self._models if model is not oldest]
        self._count()
        if self._state is not None:
            self._state.keep_for(self._models[-1].scorer.checkpoint)
        await self.save()
        return self.windows.counts.closed_swapped - before

    async def stop(self) -> None:
        """Keep what is open for the next run, or close and deliver it where nothing is kept. No flow may come after."""
        self._stopping = True
        self._work.set()
        if self._part is not None and self._part.task is not None:
            await asyncio.gather(self._part.task, return_exceptions=True)
        if len(self._models) > 1:
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
            for model in list(self._models):
                while jobs := model.windows.take_jobs(BATCH_TRACES):
                    await self._score_batch(model, jobs)

    async def _score_batch(self, model: _Model, jobs: list[ScoreJob]) -> None:
        started = time.perf_counter()
        found: list[TraceVerdict | None] = [None] * len(jobs)
        try:
            found = await asyncio.get_running_loop().run_in_executor(self._thread, model.scorer.score_each, jobs)
        finally:
            self._metrics.trace_score_seconds.observe(time.perf_counter() - started)
            self._metrics.trace_failures.inc(found.count(None))
        for job, trace in zip(jobs, found, strict=True):
            if trace is None:
                continue
            try:
                self._emit(model, job, trace)
            except Exception as error:  # of a sink: it costs this verdict, not the others
                self._metrics.trace_failures.inc()
                self._log.error("emit", "a verdict was not delivered", error=type(error).__name__, exc_info=error)

    def _emit(self, model: _Model, job: ScoreJob, trace: TraceVerdict) -> None:
        if not job.final and not _is_sure(model, job, trace.verdict):
            return
        if job.final and self._state is not None and not model.windows.is_capture(job.key.source):
            self._note_closed(self._state, job)
        self._metrics.trace_verdicts.labels(shown_label(trace), "final" if job.final else "early").inc()
        self.history.add(trace)
        self._watcher(trace)
        sink = self._sinks.get(job.key.source)
        if sink is not None:
            sink(trace)

    def _note_closed(self, state: TraceState, job: ScoreJob) -> None:
        try:
            state.closed(job.key)
        except WRITE_FAULTS as error:
            self._note_failure("closed", "a closed trace was not noted", error)

    def _note_failure(self, kind: str, event: str, error: BaseException) -> None:
        self._metrics.trace_state_failures.inc()
        self._log.warning(kind, event, reason=getattr(error, "strerror", None) or type(error).__name__)

    async def save(self) -> None:
        """Write what is open to the state directory, where there is one; the task does it every `SAVE_SECONDS`.

        While there are two models, what was saved before stays: a snapshot holds the windows of one.
        """
        self._saved_at = time.monotonic()
        if self._state is None:
            return
        async with self._saving:
            if len(self._models) > 1:
                return
            try:
                await self._state.save(self.windows)
            except WRITE_FAULTS as error:
                self._note_failure("save", "open traces were not saved", error)

    def _count(self) -> None:
        """Bring the metrics up to date."""
        now, before = self.windows.counts, self._counted
        self._counted = dataclasses.replace(now)
        for outcome in ("flows", "replaced", "late", "cut"):
            self._metrics.trace_flows.labels(outcome).inc(getattr(now, outcome) - getattr(before, outcome))
        for reason in get_args(CloseReason):
            name = f"closed_{reason}"
            self._metrics.trace_windows_closed.labels(reason).inc(getattr(now, name) - getattr(before, name))
        for outcome in ("below_min_flows", "shed"):
            self._metrics.trace_windows_unscored.labels(outcome).inc(getattr(now, outcome) - getattr(before, outcome))
        self._metrics.trace_windows_open.set(sum(model.windows.open_windows for model in self._models))
        self._metrics.trace_open_flows.set(sum(model.windows.open_flows for model in self._models))


def _is_sure(model: _Model, job: ScoreJob, verdict: Verdict) -> bool:
    """Whether an early verdict is worth giving: confident, and not what was said of the window before."""
    rule = model.scorer.checkpoint.early
    if verdict.unknown or verdict.confidence < rule.confidence:
        return False
    return model.windows.note_early(job.key, verdict.label)
