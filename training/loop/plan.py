"""What a command would do, for `--dry-run`: one record for all of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec


class Plan(msgspec.Struct, frozen=True):
    """What a command does, in words: the verb, with what, where it writes, and what is worth a look before."""

    does: str
    facts: list[str]
    writes: list[Path]
    notes: list[str] = []

    def lines(self) -> list[str]:
        """The plan as the user reads it."""
        return [
            f"would {self.does}: {', '.join(self.facts)}",
            *(f"note: {note}" for note in self.notes),
            f"would write: {', '.join(map(str, self.writes))}",
        ]


def too_few(labels: Iterable[tuple[str, int]], least: int) -> list[str]:
    """A note on labels, each with its captures, that fewer than `least` captures hold."""
    few = [f"{label} ({captures})" for label, captures in labels if captures < least]
    return [f"in fewer than {least} captures, not learned: {', '.join(few)}"] if few else []


def joined(facts: Sequence[str | None]) -> list[str]:
    """The facts there are."""
    return [fact for fact in facts if fact]
