"""What is wrong with alert rules, each mistake with its place. Who only tells of it needs no rules."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

MAX_PROBLEMS = 50
"""Most mistakes that are told of one file."""

MAX_FOUND = 500
"""Most mistakes that are looked for: to say what is nearest to each costs time."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A mistake: in which file, on which line, and what was expected."""

    path: Path
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.text}"


class AlertRulesError(ValueError):
    """Rules cannot be used; the message has a line for each mistake."""

    def __init__(self, problems: list[Problem]) -> None:
        shown = problems[:MAX_PROBLEMS]
        left_out = "many" if len(problems) >= MAX_FOUND else len(problems) - len(shown)
        more = [f"… and {left_out} more"] if left_out else []
        self.problems = problems
        self.lines = [*map(str, shown), *more]
        super().__init__("\n".join(self.lines))
