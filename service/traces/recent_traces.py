"""The newest trace verdicts of the live path, bounded, for people who ask what was seen lately."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import count, islice

from tapline.service.traces.trace_verdict import TraceVerdict


@dataclass(frozen=True, slots=True)
class PastTrace:
    """A verdict and its number; later ones have higher numbers."""

    number: int
    trace: TraceVerdict


class RecentTraces:
    """Keeps the newest verdicts, early and final ones alike."""

    def __init__(self, size: int) -> None:
        self._past: deque[PastTrace] = deque(maxlen=size)
        self._numbers = count(1)

    def add(self, trace: TraceVerdict) -> None:
        """Keep a verdict; the oldest makes room."""
        self._past.append(PastTrace(next(self._numbers), trace))

    def newest(
        self,
        limit: int,
        *,
        subject: str | None = None,
        label: str | None = None,
        model: str | None = None,
        suspicious: bool | None = None,
        before: int | None = None,
    ) -> list[PastTrace]:
        """Verdicts, newest first: of a subject, in capitals or not, with a label (`unknown` for unknown ones), of a
        model, suspicious or not, with lower numbers.
        """
        wanted = subject.lower() if subject is not None else None
        found = (
            past
            for past in reversed(self._past)
            if (before is None or past.number < before)
            and (wanted is None or past.trace.subject.lower() == wanted)
            and (label is None or past.trace.verdict.label == label)
            and (model is None or past.trace.verdict.model == model)
            and (suspicious is None or (past.trace.suspicious is True) == suspicious)
        )
        return list(islice(found, limit))
