"""Watches what every live model says, and tells how far that is from its baseline and from last week.

On the way of a verdict it adds to histograms and copies some embeddings. All else is done every few minutes in a
thread: reading baselines, counting embeddings, statistics, files.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from tapline.installation import install_command
from tapline.models.baseline import Baseline, Projection, read_baseline
from tapline.models.checkpoint import BASELINE, CheckpointError, TracegramCheckpoint, read_any_manifest
from tapline.models.flow import Flow
from tapline.models.foreign_text import clean
from tapline.models.verdict import Verdict
from tapline.service.drift.counts import (
    DAY_HOURS,
    HOUR_SECONDS,
    KEPT_HOURS,
    WEEK_DAYS,
    Counts,
    Hour,
    of_baseline,
    total,
)
from tapline.service.drift.distances import compare, has_scipy
from tapline.service.drift.drift_state import DriftState, ModelHours
from tapline.service.drift.model_drift import MIN_VERDICTS, DriftMeasure, ModelDrift
from tapline.service.log_lines import log
from tapline.service.metrics import Metrics
from tapline.service.process.quiet_log import QuietLog
from tapline.service.traces.trace_verdict import TraceVerdict

LOOK_SECONDS = 120.0
"""How often it is looked whether something moved, and saved."""

MAX_SAMPLES = 4096
"""Embeddings of a model that are kept from one look to the next, the newest."""

MIN_DAYS = 3
"""So many of the seven days before must have enough verdicts before anything is compared with last week."""

Find = Callable[[str, str], Path]
"""Gives the directory of a version of a model; raises LookupError or CheckpointError where there is none."""


@dataclass(eq=False)
class _Watched:
    """What is known of the version of a model that serves."""

    model: str
    version: str
    hours: deque[Hour] = field(default_factory=lambda: deque(maxlen=KEPT_HOURS + 1))
    axes: str = ""
    samples: deque[NDArray[np.float32]] = field(default_factory=lambda: deque(maxlen=MAX_SAMPLES))
    baseline: Baseline | None = None
    projection: Projection | None = None
    is_known: bool = False

    def current(self, hour: int) -> Hour:
        """The counts of an hour; of the newest, where a clock went back a little."""
        if not self.hours or self.hours[-1].hour < hour:
            self.hours.append(Hour(hour=hour))
        return self.hours[-1]

    def forget(self, hour: int) -> None:
        """Forget what is older than is looked at, or from a future that a clock showed by mistake."""
        kept = [each for each in self.hours if hour - KEPT_HOURS < each.hour <= hour + 1]
        if len(kept) < len(self.hours):
            self.hours = deque(kept, maxlen=KEPT_HOURS + 1)

    def learn(self, baseline: Baseline | None, sha256: str) -> None:
        """Take a baseline; embeddings that were counted along the axes of another are forgotten."""
        self.baseline, self.is_known = baseline, True
        self.projection = Projection(baseline.axes) if baseline is not None and baseline.axes else None
        if self.axes != sha256:
            for hour in self.hours:
                hour.axes = []
        self.axes = sha256

    def take_samples(self) -> list[NDArray[np.float32]]:
        """The samples since this was asked last."""
        found = list(self.samples)
        self.samples.clear()
        return found

    def snapshot(self) -> ModelHours:
        """What is remembered, as it is now: only the newest hour still changes."""
        hours = list(self.hours)
        if hours:
            last = hours[-1]
            hours[-1] = msgspec.structs.replace(last, labels=dict(last.labels), confidence=list(last.confidence))
        return ModelHours(self.model, self.version, self.axes, hours)


class DriftMonitor:
    """An observer of the service, in its event loop; `logits` may be called by any thread.

    `newest` holds by model what was found at the last look, without measures where there is too little to compare;
    `problem` says why nothing can be compared, or is None.
    """

    def __init__(
        self,
        find: Find,
        metrics: Metrics,
        tell: Callable[[ModelDrift], None],
        *,
        directory: Path | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`tell` is told of every comparison, drifted or not. `directory`: where hours are kept over a restart, if
        it can be used."""
        self.newest: dict[str, ModelDrift] = {}
        self.problem = None if has_scipy() else f"SciPy is not installed: {install_command('drift')}"
        self._find = find
        self._metrics = metrics
        self._tell = tell
        self._clock = clock
        self._models: dict[str, _Watched] = {}
        self._logits: deque[tuple[str, str, NDArray[np.float32]]] = deque(maxlen=MAX_SAMPLES)
        self._log = QuietLog(log)
        self._state: DriftState | None = None
        self._saved: dict[str, ModelHours] = {}
        self._directory = directory

    def start(self) -> None:
        """Read what was saved; to be called before anything is counted."""
        if self._directory is None:
            return
        try:
            self._state = DriftState(self._directory)
            self._saved = self._state.load()
        except OSError as error:
            where = str(self._directory)
            log.warning("drift is not remembered over a restart", directory=where, reason=error.strerror)

    def flow(self, source: str, flow: Flow, verdict: Verdict | None) -> None:
        """Count a final verdict."""
        if verdict is not None and verdict.final:
            self._count(verdict)

    def trace(self, trace: TraceVerdict) -> None:
        """Count a final verdict."""
        if trace.verdict.final:
            self._count(trace.verdict)

    def alert(self, alert: object) -> None:
        """No verdict: not counted."""

    def embedding(self, verdict: Verdict, embedding: NDArray[np.float32]) -> None:
        """Take a sample of what the flow network computes, float32 [2 width]; of a flow that changed after its early
        verdict, twice."""
        self._watched(verdict.model, verdict.version).samples.append(embedding.copy())

    def logits(self, checkpoint: TracegramCheckpoint, logits: NDArray[np.float32]) -> None:
        """Take samples of what a trace network computes, float32 [n, classes]."""
        self._logits.extend((checkpoint.name, checkpoint.version, row.copy()) for row in logits)

    async def run(self) -> None:
        """Look every few minutes, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            await self.look()

    async def look(self) -> None:
        """Compare and save what was counted until now, and tell of it."""
        for _ in range(len(self._logits)):
            name, version, row = self._logits.popleft()
            if (known := self._models.get(name)) is not None and known.version == version:
                known.samples.append(row)
        for watched in list(self._models.values()):
            if not watched.is_known:
                watched.learn(*await asyncio.to_thread(self._read, watched.model, watched.version))
            found = await asyncio.to_thread(_counted, watched.projection, watched.take_samples())
            hour = self._hour()
            if found is not None:
                watched.current(hour).add_embeddings(found)
            watched.forget(hour)
            drift = await asyncio.to_thread(self._look, watched.snapshot(), watched.baseline, hour)
            if self._models.get(watched.model) is watched:  # no other version serves by now
                self.newest[watched.model] = drift
        self._show()
        for drift in list(self.newest.values()):
            if drift.measures:
                self._tell(drift)

    def standing(self) -> dict[str, ModelDrift]:
        """By model what was found at the last look; of one that was not looked at yet how many verdicts it has."""
        hour = self._hour()
        counted = {
            name: self._found(watched, _day(list(watched.hours), hour, 0).verdicts, hour, [])
            for name, watched in self._models.items() if name not in self.newest
        }  # fmt: skip
        return {**self.newest, **counted}

    async def stop(self) -> None:
        """Save, and end; nothing may be counted any more."""
        for watched in self._models.values():
            await asyncio.to_thread(self._save, watched.snapshot())
        if self._state is not None:
            self._state.close()
            self._state = None

    def _hour(self) -> int:
        return int(self._clock() // HOUR_SECONDS)

    def _count(self, verdict: Verdict) -> None:
        self._watched(verdict.model, verdict.version).current(self._hour()).add(verdict)

    def _watched(self, model: str, version: str) -> _Watched:
        """What is known of a model; where another version serves than did, anew."""
        found = self._models.get(model)
        if found is None or found.version != version:
            found = self._models[model] = _Watched(model, version)
            self.newest.pop(model, None)
            saved = self._saved.pop(model, None)
            if saved is not None and saved.version == version:
                found.hours.extend(saved.hours)
                found.axes = saved.axes
        return found

    def _read(self, model: str, version: str) -> tuple[Baseline | None, str]:
        """The baseline of a model, and its SHA-256; in a thread."""
        try:
            directory = self._find(model, version)
            checkpoint = read_any_manifest(directory)
            if checkpoint.version == version and (baseline := read_baseline(directory, checkpoint)) is not None:
                return baseline, checkpoint.files[BASELINE].sha256
        except (CheckpointError, LookupError) as error:
            log.warning("a model has no baseline that can be used", model=model, reason=clean(str(error)))
        return None, ""

    def _look(self, kept: ModelHours, baseline: Baseline | None, hour: int) -> ModelDrift:
        """Compare and save; in a thread."""
        self._save(kept)
        now = _day(kept.hours, hour, 0)
        measures: list[DriftMeasure] = []
        if self.problem is None:
            if baseline is not None:
                before = [of_baseline(baseline)]
                measures += compare(now, before, "baseline", training=baseline.traffic == "training")
            week = [_day(kept.hours, hour, days) for days in range(1, WEEK_DAYS + 1)]
            if sum(day.verdicts >= MIN_VERDICTS for day in week) >= MIN_DAYS:
                measures += compare(now, week, "last week")
        return self._found(kept, now.verdicts, hour, measures)

    def _found(self, kept: ModelHours | _Watched, verdicts: int, hour: int, measures: list[DriftMeasure]) -> ModelDrift:
        start_us = (hour - DAY_HOURS + 1) * HOUR_SECONDS * 1_000_000
        problem = None if measures else self.problem or _too_little(verdicts)
        return ModelDrift(
            kept.model, kept.version, start_us, round(self._clock() * 1e6), verdicts, measures, problem=problem
        )  # fmt: skip

    def _save(self, kept: ModelHours) -> None:
        if self._state is None:
            return
        try:
            self._state.save(kept)
        except OSError as error:
            self._log.warning("save", "drift was not saved", model=kept.model, reason=error.strerror)

    def _show(self) -> None:
        self._metrics.drift_distance.clear()
        self._metrics.drift_limit.clear()
        for drift in self.newest.values():
            for each in drift.measures:
                labels = (drift.model, each.measure, each.against.replace(" ", "_"))
                self._metrics.drift_distance.labels(*labels).set(each.distance)
                self._metrics.drift_limit.labels(*labels).set(each.limit)


def _too_little(verdicts: int) -> str:
    """Why so many verdicts were compared with nothing."""
    if verdicts < MIN_VERDICTS:
        return f"too few verdicts in the last 24 hours: {verdicts} of {MIN_VERDICTS}"
    return f"no baseline to compare with, and no {MIN_DAYS} days of the last week with {MIN_VERDICTS} verdicts each"


def _counted(projection: Projection | None, samples: list[NDArray[np.float32]]) -> NDArray[np.int64] | None:
    """Samples by axis and bin, None where there are none that fit."""
    if projection is None:
        return None
    fitting = [each for each in samples if each.shape == (projection.width,)]
    return projection.counts(np.array(fitting)) if fitting else None


def _day(hours: list[Hour], hour: int, ago: int) -> Counts:
    """The 24 hours that end with an hour, so many days ago."""
    last = hour - DAY_HOURS * ago
    return total(each for each in hours if last - DAY_HOURS < each.hour <= last)
