"""What the cards of all checkpoints are made of, in Markdown: tables, figures, and sections put together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from tapline.training.evaluation.evaluation_record import Confused, Confusion
from tapline.training.loop.scores import ClassScore, Interval

NOT_EVALUATED = "Not evaluated: the confidence is not calibrated."


def joined_sections(*parts: str) -> str:
    """The card of these sections, those that are empty left out."""
    return "\n\n".join(part for part in parts if part) + "\n"


def table(head: Sequence[str], rows: Iterable[Iterable[str]]) -> str:
    """A table; rows as wide as its head."""
    first = _row(head) if head[0] else f"| {_row(head[1:])}"
    return "\n".join([first, f"|{'---|' * len(head)}", *map(_row, rows)])


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def by_points(name: str, macro_f1: Mapping[str, float], error: Mapping[str, float]) -> str:
    """Macro-F1 and calibration error after so much of what `name` counts."""
    rows = (
        [name, *macro_f1],
        ["---"] * (len(macro_f1) + 1),
        ["macro-F1", *map(figure_text, macro_f1.values())],
        ["calibration error", *map(figure_text, error.values())],
    )
    return "\n".join(_row(row) for row in rows)


def by_class(name: str, counts: Mapping[str, str], classes: Sequence[ClassScore]) -> str:
    """`counts`: for each column of counts the field of a score that it shows."""
    rows = [
        (
            row.label,
            *(str(getattr(row, count)) for count in counts.values()),
            *(f"{share:.2f}" for share in (row.precision, row.recall, row.f1)),
        )
        for row in classes
    ]
    return table((name, *counts, "precision", "recall", "F1"), rows)


def confusions(counts: Sequence[str], found: Sequence[Confusion | Confused]) -> str:
    """`counts`: the columns after the two labels; the first names the things, more than one of them."""
    if not found:
        return f"None: every {counts[0].removesuffix('s')} was called by its label."
    return table(("is", "was called", *counts), [map(str, msgspec.structs.astuple(each)) for each in found])


def figure_text(value: float | None) -> str:
    """A figure, or a dash where there is none."""
    return "-" if value is None else f"{value:.3f}"


def share_text(value: float | None) -> str:
    """A share in per cent, or a dash where there is none."""
    return "-" if value is None else f"{value:.1%}"


def interval_text(interval: Interval) -> str:
    """An interval in words."""
    return f"{interval.low:.3f} to {interval.high:.3f}"
