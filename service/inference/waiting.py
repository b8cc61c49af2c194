"""Flows on their way to an engine, and what becomes of them: who waits for which outcome, and who hands flows over."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from tapline.models.flow import Flow
from tapline.service.inference.classifier import FlowOutcome


class QueueFullError(RuntimeError):
    """The queue has no room; come again later."""


class VerdictError(RuntimeError):
    """Flows get no verdicts because the service is stopping."""


Answers = asyncio.Future[list[FlowOutcome | None]]
"""Outcomes of flows in order, None where the engine failed on a flow; cancelled by who does not want them any more."""


@dataclass(frozen=True, slots=True)
class Fed:
    """Flows that a feed hands over, when each came by `time.perf_counter`, and where their outcomes go."""

    flows: Sequence[Flow]
    arrived_at: Sequence[float]
    answers: Answers


class Feed(Protocol):
    """Flows that wait elsewhere until an engine is ready for them."""

    @property
    def busy_since(self) -> float:
        """Since when there have always been some, by `time.perf_counter`, where there are some now."""
        ...

    @property
    def queued_flows(self) -> int:
        """How many there are."""
        ...

    def hand_over(self, number: int) -> Fed | None:
        """At most so many, for the batch that is about to be computed; none where all were given up just now."""
        ...

    def failed(self, error: BaseException) -> None:
        """`hand_over` raised this: the batcher no longer takes from here, and its engines go on."""
        ...


@dataclass(eq=False)
class Group:
    """Flows submitted together; answered when the last has its outcome."""

    done: Answers
    outcomes: list[FlowOutcome | None]
    missing: int

    def answer(self, index: int, outcome: FlowOutcome | None) -> None:
        """Take the outcome of one flow; None if the engine failed on it."""
        self.outcomes[index] = outcome
        self.missing -= 1
        if not self.missing and not self.done.done():
            self.done.set_result(self.outcomes)


@dataclass(slots=True, eq=False)
class Waiting:
    """One flow of a group. `ports` and `cascade`: whether verdicts read ports and a student may answer, None: as the
    classifier does."""

    flow: Flow
    group: Group
    index: int
    ports: bool | None
    cascade: bool | None
    queued_at: float
    answered: bool = False

    def answer(self, outcome: FlowOutcome | None) -> None:
        """Give the flow its outcome, None if the engine failed on it; only the first counts."""
        if not self.answered:
            self.answered = True
            self.group.answer(self.index, outcome)
