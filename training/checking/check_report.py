"""How the evaluation of a checkpoint on captures is told: on its page, and in the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from tapline.models.foreign_text import clean
from tapline.training.checking.check_record import CheckFigures, CheckRecord, GroupFigures, Joined, ToolFigures
from tapline.training.checking.provenance import provenance_facts
from tapline.training.checking.verdict_table import VERDICT_TABLE
from tapline.training.evaluation.measured import Measured, ReportTable
from tapline.training.evaluation.wording import counted, many
from tapline.training.loop.scores import Interval

MOST_ROWS = 50
"""Captures that the page has rows of; `evaluation.json` has all."""
MOST_TOLD = 8
"""Rows of a kind that the terminal shows."""


def check_page(measured: Measured, record: CheckRecord) -> Measured:
    """What was measured, with all that the page says beside."""
    return replace(measured, facts=_facts(record), tables=list(_tables(record)), notes=list(_notes(record)))


def _facts(record: CheckRecord) -> dict[str, str]:
    return {
        "checkpoint": f"{record.checkpoint} {record.version}, as it is served (ONNX Runtime), ports {record.ports}",
        "captures": ", ".join(clean(each) for each in record.captures),
        "labels": "; ".join(filter(None, (clean(record.joined.source), _joined_text(record.joined, record.unit)))),
        "verdict by verdict": f"{VERDICT_TABLE} beside this page: every mistake, with what names it",
        "not measured": ", ".join(f"{count:,} x {reason}" for reason, count in record.left_out.items()) or "nothing",
        "measured by": "verdicts on labelled captures; nothing was trained or calibrated on them here",
        **{name: clean(text) for name, text in provenance_facts(record.provenance).items()},
    }


def _joined_text(joined: Joined, unit: str) -> str:
    by = ", ".join(f"{count:,} by {by}" for by, count in joined.by.items())
    parts = [
        f"{many(joined.rows, 'row')} with a label" if joined.rows else "",
        f"found {by}" if by else "",
        f"{many(joined.rows_without_thing, 'row')} of no {unit} with payload here" if joined.rows_without_thing else "",
        f"{joined.rows_malformed:,} that cannot be read" if joined.rows_malformed else "",
        "taken for no label " + ", ".join(f"{count:,} x {clean(word)}" for word, count in joined.no_labels.items())
        if joined.no_labels
        else "",
        f"{joined.contradicted:,} left out, on which rows contradict each other" if joined.contradicted else "",
    ]
    return "; ".join(part for part in parts if part)


def _tables(record: CheckRecord) -> Iterator[ReportTable]:
    figures, unit = record.figures, record.unit
    for title, rows in (("By corpus", figures.corpora), ("By capture", figures.by_capture)):
        if len(rows) > 1:
            yield _groups(title, rows, unit, figures.min_support)
    if figures.strange:
        yield ReportTable(
            "Labels that it never learned",
            ("class", f"{unit}s", "captures", "called unknown", "was called"),
            [
                (each.label, f"{each.things:,}", str(each.captures), f"{each.called_unknown:.1%}",
                 ", ".join(f"{label} ({count})" for label, count in each.called) or "-")
                for each in figures.strange
            ],
            "Right is that a verdict says unknown. Background that it learned as none of its labels counts here too.",
        )  # fmt: skip
    if figures.suspicion:
        yield ReportTable(
            "Called suspicious",
            ("class", f"{unit}s", "suspicious"),
            [(each.label, f"{each.traces:,}", f"{each.suspicious:.1%}") for each in figures.suspicion],
            "Its labels are all of a malicious kind: of benign traffic every one is a false alarm.",
        )
    for tool in figures.tools:
        yield from _tool_tables(tool, unit)


def _groups(title: str, rows: list[GroupFigures], unit: str, least: int) -> ReportTable:
    shown = sorted(rows, key=lambda row: (-row.things, row.name))[:MOST_ROWS]
    text = f"Macro-F1 counts the labels with {counted(least, unit)} there: - where there is none."
    if len(rows) > MOST_ROWS:
        text += f" The {MOST_ROWS} with most {unit}s of {len(rows)}; evaluation.json has all."
    return ReportTable(
        title,
        ("on", f"{unit}s", "right", "macro-F1", "called unknown", "never learned"),
        [
            (clean(row.name), f"{row.things:,}", f"{row.accuracy:.1%}" if row.things else "-",
             "-" if row.macro_f1 is None else f"{row.macro_f1:.3f}", f"{row.called_unknown:.1%}" if row.things else "-",
             f"{row.never_learned:,}")
            for row in shown
        ],
        text,
    )  # fmt: skip


def _tool_tables(tool: ToolFigures, unit: str) -> Iterator[ReportTable]:
    name = clean(tool.name)
    covered = f"It has a row for {tool.with_row:,} of {many(tool.things, unit)} and says something of {tool.said:,}"
    if tool.tool is None or tool.model is None or tool.gain is None:
        yield ReportTable(f"Beside {name}", ("on",), [], f"{covered}: nothing to compare. {tool.clock_hint}".strip())
        return
    words = ", ".join(f"{clean(word)} ({count})" for word, count in tool.strange_words)
    yield ReportTable(
        f"Beside {name}",
        ("on", "macro-F1", "95 %", "right"),
        [
            *((who, f"{side.macro_f1:.3f}", _range(side.interval), f"{side.accuracy:.1%}")
              for who, side in (("this model", tool.model), (name, tool.tool))),
            ("this model gains", f"{tool.gain:+.3f}", _range(tool.gain_interval, "+"), ""),
        ],
        f"{covered}; both are measured on these, by labels with {counted(tool.min_support, unit)} of them. "
        f"{_of_all(tool, unit)}{tool.rows_without_thing:,} of its rows are of no labelled {unit}."
        + (f" None of the labels (--map NAME=LABEL says what they are): {words}." if words else ""),
    )  # fmt: skip
    yield ReportTable(
        f"Where {name} disagrees",
        ("is", "this model", "says", f"{unit}s"),
        [(each.label, each.model, each.tool, f"{each.things:,}") for each in tool.disagreements],
        f"This model alone is right on {tool.only_model_right:,}, {name} alone on {tool.only_tool_right:,}, neither on "
        f"{tool.both_wrong:,}. `Says` is {name}'s word.",
    )


def _of_all(tool: ToolFigures, unit: str) -> str:
    """What a tool has where saying nothing is wrong, as in the chart; "" where it is never silent."""
    if tool.said == tool.things:
        return ""
    all_things = many(tool.things, unit)
    return f"On all {all_things}, silence as wrong, {clean(tool.name)} has macro-F1 {tool.macro_f1_of_all:.3f}. "


def _range(interval: Interval | None, sign: str = "") -> str:
    return "-" if interval is None else f"{interval.low:{sign}.3f} to {interval.high:{sign}.3f}"


def _notes(record: CheckRecord) -> Iterator[str]:
    figures, unit = record.figures, record.unit
    yield (
        "Whether the checkpoint learned from these captures is not known here: on those that it learned from, and on "
        "others of the same devices at the same time, figures are too good. Its card says what it learned from."
    )
    yield (
        f"Macro-F1 is the mean F1 of the labels with {counted(figures.min_support, unit)}, {figures.counted} of the "
        f"{len(figures.classes)} that occur, by the nearest label of each verdict, also where the verdict says "
        "unknown. Intervals are of a bootstrap over captures."
    )
    if figures.captures == 1:
        yield "All of them are of a single capture: there is no interval, and what is shown as one has no width."
    if figures.macro_f1_ports is not None:
        yield (
            "A table of ports cannot be made of what is measured: the rival is what the checkpoint knows of ports from "
            "its training, alone."
        )
    if record.figures.tools:
        yield (
            "Other tools are drawn above on all things, where saying nothing is wrong (`silence as wrong`); in their "
            "own tables on those that they say something of."
        )
    if record.joined.names:
        yield "Names taken for labels: " + ", ".join(
            f"{clean(a)} as {b}" for a, b in sorted(record.joined.names.items())
        )
    yield from map(clean, record.notes)
    if record.joined.clock_hint:
        yield record.joined.clock_hint
    for capture, warning in record.warnings.items():
        yield clean(f"{capture}: {warning}")


def check_lines(record: CheckRecord) -> Iterator[str]:
    """What the terminal says."""
    figures, unit = record.figures, record.unit
    yield ": ".join(text for text in ("labels", clean(record.joined.source), _joined_text(record.joined, unit)) if text)
    for reason, count in record.left_out.items():
        yield f"not measured: {count:,} x {reason}"
    yield from (f"note: {clean(note)}" for note in record.notes)
    if record.joined.clock_hint:
        yield f"note: {record.joined.clock_hint}"
    width = f"({_range(figures.interval)})" if figures.interval else "(a single capture: no interval)"
    yield (
        f"{record.checkpoint} {record.version}: macro-F1 {figures.macro_f1:.3f} over the {figures.counted} of "
        f"{many(len(figures.classes), 'label')} with {counted(figures.min_support, unit)} {width}, "
        f"{figures.accuracy:.1%} right, calibration error {figures.calibration_error:.3f}; "
        f"{many(figures.things, unit)} of {many(figures.captures, 'capture')}"
    )
    if figures.macro_f1_ports is not None and figures.macro_f1_without_ports is not None:
        yield (
            f"  macro-F1 with ports off {figures.macro_f1_without_ports:.3f}, what it knows of ports alone "
            f"{figures.macro_f1_ports:.3f}"
        )
    yield f"  called unknown wrongly: {figures.called_unknown:.1%}"
    if figures.never_learned_called_unknown is not None:
        yield (
            f"  of {many(figures.never_learned, unit)} of labels never learned "
            f"{figures.never_learned_called_unknown:.1%} are called unknown"
        )
    yield from _label_lines(figures, unit)
    for tool in figures.tools:
        yield from _tool_lines(tool, unit)
    yield "  figures on captures that the checkpoint learned from are too good: its card says what these were"


def _label_lines(figures: CheckFigures, unit: str) -> Iterator[str]:
    yield from (
        f"  {row.label}: F1 {row.f1:.3f}, precision {row.precision:.3f}, recall {row.recall:.3f}; "
        f"{many(row.support, unit)} of {many(row.captures, 'capture')}"
        for row in figures.classes[:MOST_TOLD]
    )
    if (more := len(figures.classes) - MOST_TOLD) > 0:
        yield f"  and {many(more, 'more label')}: see the report"
    yield from (
        f"  {each.label}, never learned: {each.called_unknown:.1%} of {each.things:,} called unknown"
        for each in figures.strange[:MOST_TOLD]
    )
    yield from (f"  {each.label}: {each.suspicious:.1%} of {each.traces} suspicious" for each in figures.suspicion)


def _tool_lines(tool: ToolFigures, unit: str) -> Iterator[str]:
    name = clean(tool.name)
    if tool.tool is None or tool.model is None or tool.gain is None:
        yield f"  {name}: a row for {tool.with_row:,} of {many(tool.things, unit)}, and says nothing of any"
    else:
        yield (
            f"  {name} says something of {tool.said:,} of {many(tool.things, unit)}: macro-F1 "
            f"{tool.tool.macro_f1:.3f}, {tool.tool.accuracy:.1%} right; this model on the same "
            f"{tool.model.macro_f1:.3f}, {tool.model.accuracy:.1%} right; difference {tool.gain:+.3f} "
            f"({_range(tool.gain_interval, '+')})"
        )
        if of_all := _of_all(tool, unit):
            yield f"    {of_all.strip()}"
    if tool.strange_words:
        words = ", ".join(f"{clean(word)} ({count})" for word, count in tool.strange_words[:MOST_TOLD])
        yield f"    what it says that is none of the labels (--map NAME=LABEL): {words}"
    if tool.clock_hint:
        yield f"    {tool.clock_hint}"
