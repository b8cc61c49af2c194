"""What the live path did in the last minutes: read from the service's counters every few seconds, once for all pages.

Nothing here is on the way of a verdict.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections import deque
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from tapline.service.runtime import Service

STEP_SECONDS = 2.0
STEPS = 300
"""Ten minutes."""

CURRENT_STEPS = 5
"""What is called *now*: the mean of so many steps."""


@dataclass(frozen=True)
class Step:
    """What happened between two readings; `latency_seconds` are p50 and p99 of the verdicts of this step, if any."""

    ended_at: float
    seconds: float
    labels: dict[str, int]
    counts: dict[str, int]
    latency_seconds: tuple[float, float] | None = None


@dataclass
class _Totals:
    at: float = 0.0
    labels: dict[str, int] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)


class Activity:
    """The newest steps, oldest first."""

    def __init__(self, service: Service) -> None:
        self.steps: deque[Step] = deque(maxlen=STEPS)
        self._service = service
        self._before = self._totals()

    async def run(self) -> None:
        """Read until cancelled."""
        while True:
            await asyncio.sleep(STEP_SECONDS)
            self.read()

    def read(self) -> None:
        """Add what happened since the last reading."""
        now, before = self._totals(), self._before
        self._before = now
        counts = _grown(now.counts, before.counts)
        delivered = counts.get("delivered", 0)
        self.steps.append(
            Step(time.time(), now.at - before.at, _grown(now.labels, before.labels), counts, self._latency(delivered))
        )

    def rate(self, *outcomes: str) -> float:
        """Flows a second of some outcomes of `LiveCounts`, now."""
        steps = self._current()
        seconds = sum(step.seconds for step in steps)
        return sum(step.counts.get(name, 0) for step in steps for name in outcomes) / seconds if seconds else 0.0

    def share(self, label: str, steps: int = CURRENT_STEPS) -> float | None:
        """The share of a label in the verdicts of the newest steps; None without verdicts."""
        newest = self._current(steps)
        total = sum(sum(step.labels.values()) for step in newest)
        return sum(step.labels.get(label, 0) for step in newest) / total if total else None

    @property
    def latency_seconds(self) -> tuple[float, float] | None:
        """p50 and p99 of the newest step that had verdicts, among those that are *now*."""
        return next((step.latency_seconds for step in reversed(self._current()) if step.latency_seconds), None)

    def _current(self, steps: int = CURRENT_STEPS) -> list[Step]:
        return list(islice(reversed(self.steps), steps))[::-1]

    def _latency(self, verdicts: int) -> tuple[float, float] | None:
        newest = list(islice(reversed(self._service.pipeline.latencies_seconds), verdicts))
        if not newest:
            return None
        p50, p99 = np.percentile(newest, (50, 99))
        return float(p50), float(p99)

    def _totals(self) -> _Totals:
        labels: dict[str, int] = {}
        for sample in next(iter(self._service.metrics.verdicts.collect())).samples:
            if sample.name.endswith("_total"):
                label = sample.labels["label"]
                labels[label] = labels.get(label, 0) + int(sample.value)
        return _Totals(time.monotonic(), labels, dataclasses.asdict(self._service.pipeline.counts))


def _grown(now: dict[str, int], before: dict[str, int]) -> dict[str, int]:
    return {name: value - before.get(name, 0) for name, value in now.items() if value > before.get(name, 0)}
