"""Keeps the long-lived tasks of a service alive: a part that dies is started again, counted, and shown while down.

What a part does is its own business; what happens when it ends by an error is decided here, once for all of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field

from tapline.models.foreign_text import clean
from tapline.service.log_lines import log
from tapline.service.metrics import Metrics

FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 5.0

STEADY_SECONDS = 60.0
"""A part that ran for so long had recovered: its next death is the first of a new row."""

DEATHS_IN_A_ROW = 8
"""So many deaths without recovery, and the service gives up: whoever supervises the process starts it afresh."""


@dataclass
class Part:
    """A long-lived task by name: whether it runs, how often it died, and of what it died last."""

    name: str
    running: bool = False
    deaths: int = 0
    reason: str = ""
    task: asyncio.Task[None] | None = None
    ended: bool = field(default=False, repr=False)

    @property
    def is_down(self) -> bool:
        """Whether it should run and does not."""
        return not self.running and not self.ended


class Supervisor:
    """Starts parts and starts them again. `gave_up` is set once a part cannot be kept alive; `failure` says which."""

    def __init__(
        self,
        metrics: Metrics,
        *,
        deaths_in_a_row: int = DEATHS_IN_A_ROW,
        first_pause_seconds: float = FIRST_PAUSE_SECONDS,
    ) -> None:
        self.gave_up = asyncio.Event()
        self.failure: str | None = None
        self.parts: dict[str, Part] = {}
        self._metrics = metrics
        self._deaths_in_a_row = deaths_in_a_row
        self._first_pause_seconds = first_pause_seconds

    def start(self, name: str, run: Callable[[], Awaitable[None]], steady_seconds: float = STEADY_SECONDS) -> Part:
        """Run a part in a task of its own, again whenever it ends by an error, until it is cancelled or returns.

        After `steady_seconds` it had recovered: its next death is the first of a new row.
        """
        part = self.parts[name] = Part(name, running=True)
        self._metrics.part_up.labels(name).set(1)
        part.task = asyncio.create_task(self._keep(part, run, steady_seconds), name=name)
        return part

    def down(self) -> str | None:
        """Which part does not run now, and why, or None."""
        found = next((part for part in self.parts.values() if part.is_down), None)
        return f"{found.name} is down: {found.reason}" if found else None

    async def stop(self, parts: Iterable[Part]) -> None:
        """Cancel parts, wait for their end and forget them."""
        stopping = [part for part in parts if part.task is not None]
        for part in stopping:
            assert part.task is not None
            part.task.cancel()
        await asyncio.gather(*(part.task for part in stopping if part.task), return_exceptions=True)
        for part in stopping:
            self.forget(part)

    def forget(self, part: Part) -> None:
        """Leave a part that has ended out of the account."""
        if self.parts.get(part.name) is part:
            del self.parts[part.name]
            with contextlib.suppress(KeyError):
                self._metrics.part_up.remove(part.name)

    async def _keep(self, part: Part, run: Callable[[], Awaitable[None]], steady_seconds: float) -> None:
        row = 0
        while True:
            started = time.monotonic()
            try:
                await run()
            except (Exception, asyncio.CancelledError) as error:
                if isinstance(error, asyncio.CancelledError) and _is_cancelled():
                    raise
                row = 1 if time.monotonic() - started >= steady_seconds else row + 1
                self._died(part, error)
            else:
                part.running, part.ended = False, True
                return
            if row >= self._deaths_in_a_row:
                self.failure = f"{part.name} died {row} times in a row: {part.reason}"
                log.error("giving up", part=part.name, deaths=row, reason=part.reason)
                self.gave_up.set()
                return
            longest = min(LONGEST_PAUSE_SECONDS, self._first_pause_seconds * 2.0**row)
            await asyncio.sleep(random.uniform(longest / 2, longest))
            part.running = True
            self._metrics.part_up.labels(part.name).set(1)

    def _died(self, part: Part, error: BaseException) -> None:
        part.running = False
        part.deaths += 1
        part.reason = _kind(error)
        self._metrics.part_up.labels(part.name).set(0)
        self._metrics.part_deaths.labels(part.name).inc()
        log.error("a part died, starting it again", part=clean(part.name), error=part.reason, exc_info=error)


def _kind(error: BaseException) -> str:
    """The name of an error; of a group, of the first error in it."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return type(error).__name__


def _is_cancelled() -> bool:
    """Whether somebody cancelled this task; a library can raise the same error by itself."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
