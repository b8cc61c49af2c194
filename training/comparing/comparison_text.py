"""How a comparison is told: in a terminal of 80 columns, and as a page."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from tapline.models.foreign_text import clean
from tapline.training.comparing.comparison import Comparison, Paired
from tapline.training.comparing.evaluated import FigureRow
from tapline.training.evaluation.measured import ReportTable
from tapline.training.evaluation.page import page_of_tables
from tapline.training.evaluation.wording import many
from tapline.training.loop.scores import Interval

WIDTH = 80
_NAME, _GAP = 24, 2
_MIN_COLUMN = 16
MOST_SIDES = (WIDTH - _NAME) // (_MIN_COLUMN + _GAP)
"""Sides that stand beside each other; more stand below."""


def _number(value: float | None, form: str = ".3f") -> str:
    return "-" if value is None else f"{value:{form}}"


def _range(interval: Interval | None, sign: str = "") -> str:
    return "-" if interval is None else f"{interval.low:{sign}.3f} to {interval.high:{sign}.3f}"


_FIGURES: tuple[tuple[str, Callable[[FigureRow], str]], ...] = (
    ("macro-F1", lambda row: _number(row.macro_f1)),
    ("  95 %", lambda row: _range(row.interval)),
    ("  of labels with", lambda row: f"{row.least} or more"),
    ("right", lambda row: _number(row.accuracy, ".1%")),
    ("calibration error", lambda row: _number(row.calibration_error)),
    ("AUROC of unknown", lambda row: _number(row.unknown_auroc)),
    ("unknown, wrongly", lambda row: _number(row.known_rejected, ".1%")),
    ("unknown, rightly", lambda row: _number(row.unknown_rejected, ".1%")),
    ("measured on", lambda row: f"{row.things:,}"),
)


def _figure_rows(comparison: Comparison) -> list[tuple[str, list[str]]]:
    return [
        (name, [text(side.figures) if side.figures else "-" for side in comparison.sides]) for name, text in _FIGURES
    ]


def comparison_lines(comparison: Comparison) -> Iterator[str]:
    """What the terminal says, in lines of 80 characters at most."""
    for number, side in enumerate(comparison.sides, 1):
        how = side.how or "not evaluated"
        yield from _wrapped(f"{number}  ", f"{clean(side.name)}: {side.kind}, {how}")
    settings = [(clean(row.name), [clean(value) for value in row.values]) for row in comparison.settings]
    yield ""
    if settings:
        yield from _block("settings that differ", settings, len(comparison.sides))
    else:
        yield "no setting differs"
    yield ""
    yield from _block("figures", _figure_rows(comparison), len(comparison.sides))
    if comparison.note:
        yield from _wrapped("note: ", comparison.note)
    yield ""
    for paired in comparison.paired:
        yield from _wrapped(f"{paired.number} - 1  ", _paired_text(paired))


def _paired_text(paired: Paired) -> str:
    if paired.why:
        return f"no difference is shown: {paired.why}"
    only = [
        f"{count:,} that {who} alone was measured on"
        for count, who in ((paired.only_in_first, "1"), (paired.only_in_second, paired.number))
        if count
    ]
    if paired.relabelled:
        only.append(f"{paired.relabelled:,} under different labels")
    width = f" ({_range(paired.gain_interval, '+')})" if paired.gain_interval else " (a single capture: no interval)"
    return (
        f"macro-F1 {paired.gain:+.3f}{width} on {many(paired.common, f'common {paired.unit}')} of "
        f"{many(paired.captures, 'capture')} "
        f"({paired.second:.3f}, {paired.first:.3f}); where they differ {paired.number} alone is right on "
        f"{paired.only_second_right:,}, 1 alone on {paired.only_first_right:,}"
        + (f"; left out {', '.join(only)}" if only else "")
        + (f"; {paired.note}" if paired.note else "")
    )


def _wrapped(first: str, text: str) -> Iterator[str]:
    line = first
    for word in text.split():
        word = word[: WIDTH - len(first)]
        if len(line) + len(word) > WIDTH and line.strip() and line != " " * len(first):
            yield line.rstrip()
            line = " " * len(first)
        line += f"{word} "
    yield line.rstrip()


def _block(title: str, rows: Sequence[tuple[str, list[str]]], sides: int) -> Iterator[str]:
    """The rows with so many columns as there is room for, the others below, each set with its heads."""
    for start in range(0, sides, MOST_SIDES):
        shown = range(start, min(sides, start + MOST_SIDES))
        width = (WIDTH - _NAME) // len(shown) - _GAP
        yield f"{title:{_NAME}}" + "".join(f"{' ' * _GAP}{number + 1:<{width}}" for number in shown).rstrip()
        for name, values in rows:
            cells = [_cut(values[number], width) for number in shown]
            yield (f"{_cut(name, _NAME):{_NAME}}" + "".join(f"{' ' * _GAP}{cell:{width}}" for cell in cells)).rstrip()


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"


def comparison_page(comparison: Comparison) -> str:
    """The page."""
    heads = [f"{number}: {clean(side.name)}" for number, side in enumerate(comparison.sides, 1)]
    tables = [
        ReportTable(
            "Figures", ("", *heads), [(name.strip(), *values) for name, values in _figure_rows(comparison)],
            comparison.note,
        ),
        ReportTable(
            "The difference from the first",
            ("", "on the same things, intervals over captures"),
            [(heads[paired.number - 1], _paired_text(paired)) for paired in comparison.paired],
        ),
        ReportTable(
            "Settings that differ",
            ("", *heads),
            [(clean(row.name), *(clean(value) for value in row.values)) for row in comparison.settings],
        ),
        ReportTable(
            "What they are", ("", "is"),
            [
                (head, f"{side.kind}, {side.how or 'not evaluated'}")
                for head, side in zip(heads, comparison.sides, strict=True)
            ],
        ),
    ]  # fmt: skip
    return page_of_tables("Runs beside each other", [table for table in tables if table.rows])
