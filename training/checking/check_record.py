"""What the evaluation of a checkpoint on captures found, as its `evaluation.json` holds it."""

from __future__ import annotations

import msgspec

from tapline.training.checking.provenance import Provenance
from tapline.training.loop.scores import ClassScore, Interval


class GroupFigures(msgspec.Struct, frozen=True):
    """Of the things of known labels of one corpus or capture: their number, the share that is right, macro-F1 of the
    labels with `CheckFigures.min_support` of them, None where there is none, the share called *unknown* wrongly; and
    how many more are of labels never learned."""

    name: str
    things: int
    accuracy: float
    macro_f1: float | None
    called_unknown: float
    never_learned: int


class NeverLearned(msgspec.Struct, frozen=True):
    """Things of a label that the checkpoint does not know: the share called *unknown*, and what the others were called
    most often, with their number."""

    label: str
    things: int
    captures: int
    called_unknown: float
    called: list[tuple[str, int]]


class SuspicionOf(msgspec.Struct, frozen=True):
    """Traces of a label, and the share of them that the model calls suspicious."""

    label: str
    traces: int
    suspicious: float


class Side(msgspec.Struct, frozen=True):
    """One of two that are compared on the same things: the share that is right, and macro-F1 with its interval over
    captures, None where there is a single one."""

    accuracy: float
    macro_f1: float
    interval: Interval | None


class Disagreement(msgspec.Struct, frozen=True):
    """So many things of `label` the model calls `model`, and the tool `tool`."""

    label: str
    model: str
    tool: str
    things: int


class ToolFigures(msgspec.Struct, frozen=True):
    """What another tool says of things of known labels, beside the model on the same ones.

    It has a row for `with_row` of `things`, and says something of `said`; `tool`, `model` and `gain`, what the model
    has more of macro-F1, are of these alone, None where it says nothing. `strange_words`: what it says most often that
    is none of the labels. `macro_f1_of_all` is the tool's on all things, saying nothing as wrong; the other figures
    count the labels with `min_support` of what it says something of. `only_model_right`, `only_tool_right`,
    `both_wrong`: where they disagree.
    """

    name: str
    things: int
    with_row: int
    said: int
    rows: int
    rows_without_thing: int
    rows_malformed: int
    tool: Side | None = None
    model: Side | None = None
    gain: float | None = None
    gain_interval: Interval | None = None
    only_model_right: int = 0
    only_tool_right: int = 0
    both_wrong: int = 0
    disagreements: list[Disagreement] = []
    strange_words: list[tuple[str, int]] = []
    macro_f1_of_all: float = 0.0
    min_support: int = 0
    clock_hint: str = ""


class CheckFigures(msgspec.Struct, frozen=True):
    """Everything measured. The model's own label counts as `macro_f1` also where a verdict says *unknown*; what that
    costs is `called_unknown`. `macro_f1_ports` is what the checkpoint's knowledge of ports says alone,
    `macro_f1_without_ports` the model without it; None where it knows none. Intervals are None of a single capture."""

    things: int
    captures: int
    macro_f1: float
    interval: Interval | None
    min_support: int
    accuracy: float
    weighted_f1: float
    calibration_error: float
    called_unknown: float
    never_learned: int
    never_learned_called_unknown: float | None
    unknown_auroc: float | None
    classes: list[ClassScore]
    corpora: list[GroupFigures]
    by_capture: list[GroupFigures]
    strange: list[NeverLearned]
    suspicion: list[SuspicionOf]
    tools: list[ToolFigures]
    macro_f1_ports: float | None = None
    macro_f1_without_ports: float | None = None

    @property
    def counted(self) -> int:
        """The number of labels that macro-F1 counts."""
        return sum(row.support >= self.min_support for row in self.classes)


class Joined(msgspec.Struct, frozen=True):
    """How labels found their things: rows of the table with a label, those of nothing, those that cannot be read;
    things by what they were joined by; names of labels that were taken for the checkpoint's;
    `no_labels`: words that were taken for none, with their things."""

    source: str
    rows: int = 0
    rows_without_thing: int = 0
    rows_malformed: int = 0
    by: dict[str, int] = {}
    contradicted: int = 0
    names: dict[str, str] = {}
    no_labels: dict[str, int] = {}
    clock_hint: str = ""


class CheckRecord(msgspec.Struct, frozen=True):
    """The evaluation of a checkpoint on labelled captures that nothing was trained or calibrated on here."""

    checkpoint: str
    version: str
    directory: str
    unit: str
    captures: list[str]
    tolerance_seconds: float
    ports: str
    joined: Joined
    left_out: dict[str, int]
    warnings: dict[str, str]
    figures: CheckFigures
    provenance: Provenance
    seconds: float
    notes: list[str] = []
