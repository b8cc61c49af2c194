"""Which captures a checkpoint is measured on, and where their labels and what other tools say come from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TypeVar

from tapline.models.checkpoint import Checkpoint, TracegramCheckpoint
from tapline.models.flow import Flow
from tapline.training.checking.label_names import LabelNames
from tapline.training.checking.said import ToolSaid
from tapline.training.data.label_columns import PREDICTION
from tapline.training.data.label_map import LabelError
from tapline.training.data.label_reading import read_labels
from tapline.training.data.label_table import TOLERANCE_SECONDS, JoinAccount, LabelTable, Match
from tapline.training.data.origins import Origin

BATCH_FLOWS = 512
"""As many as `tapline classify` takes at a time."""

MOST_NAMES = 8
"""Names that a note lists."""

VERDICT_COLUMNS = (frozenset({"model", "version", "confidence"}), frozenset({"nearest", "confidence", "unknown"}))
"""Columns that `tapline classify --format csv` writes beside its labels, and `verdict_table`."""

_Item = TypeVar("_Item")


def batches(items: Iterable[_Item]) -> Iterator[list[_Item]]:
    """The items in order, `BATCH_FLOWS` at a time."""
    iterator = iter(items)
    while batch := list(islice(iterator, BATCH_FLOWS)):
        yield batch


@dataclass(frozen=True)
class LabelSource:
    """Where labels come from, as the user names it: a table and how it is read, or the first folder below the roots;
    other tools' tables as `FILE` or `FILE=NAME`."""

    table: Path | None = None
    column: str = ""
    from_folder: bool = False
    tolerance_seconds: float = TOLERANCE_SECONDS
    shift_seconds: float = 0.0
    predictions: Sequence[str] = ()
    confidence: Sequence[str] = ()


@dataclass
class OwnLabels:
    """The labels of things in captures, by the names of a checkpoint, and the tables of other tools beside them."""

    source: LabelSource
    names: LabelNames
    table: LabelTable | None = None
    tools: list[tuple[str, LabelTable]] = field(default_factory=list)
    no_labels: Counter[str] = field(default_factory=Counter)
    """Words that were taken for no label, with how many things bore them."""

    def of_flow(self, origin: Origin, flow: Flow, account: JoinAccount) -> str | None:
        """The label of a flow, None without; `account` is told what the table said."""
        if self.table is None:
            return self._named(origin.folder)
        return self._named(account.take(self.table.match(f"{origin.corpus}/{origin.capture}", flow)))

    def named(self, match: Match, account: JoinAccount) -> str | None:
        """The label that a table gives, None without; `account` is told."""
        return self._named(account.take(match))

    def of_folder(self, origin: Origin) -> str | None:
        """The label that the first folder is, None without."""
        return self._named(origin.folder)

    def _named(self, label: str | None) -> str | None:
        if label is None:
            return None
        if self.names.is_label(label):
            return self.names.of(label)
        self.no_labels[label] += 1
        return None

    def ask_tools(self, tools: Sequence[ToolSaid], capture: str, flow: Flow) -> None:
        """Note what each tool says of a flow."""
        for (_, table), said in zip(self.tools, tools, strict=True):
            said.words.append(said.account.take(table.match(capture, flow)))

    def map_notes(self, origins: Sequence[Origin], checkpoint: Checkpoint | TracegramCheckpoint) -> list[str]:
        """What is said of `--map` where nothing is called by a name of it, or the checkpoint has no such label."""
        tables = [table for table in (self.table, *(table for _, table in self.tools)) if table is not None]
        there = {name for table in tables for name in table.labels}
        if self.table is None:
            there |= {origin.folder for origin in origins if origin.folder is not None}
        mapped = self.names.becomes
        absent = sorted(mapped.keys() - there)
        strange = sorted({label for label in mapped.values() if label is not None} - set(checkpoint.labels))
        notes = [f"--map: nothing is called {_listed(absent)} in the labels and predictions"] if absent else []
        if strange:
            notes.append(
                f"--map: {checkpoint.name} {checkpoint.version} has no label {_listed(strange)}: what becomes it "
                "counts as never learned"
            )
        return notes

    def new_tools(self) -> list[ToolSaid]:
        """What the tools say of nothing yet."""
        return [ToolSaid(name, rows=table.lines, malformed=table.malformed) for name, table in self.tools]


def verdicts_note(table: LabelTable | None) -> str:
    """What is said of labels that stand beside the columns of a model's verdicts, "" of others."""
    found = next((each for each in VERDICT_COLUMNS if table is not None and each.issubset(table.columns)), None)
    if table is None or found is None:
        return ""
    return (
        f"{table.name} has the columns {', '.join(sorted(found))}: its labels look like a model's verdicts. "
        "Measured against them a model agrees with a model; who is right nobody says. Give labels that were found "
        "otherwise, or this table as --predictions"
    )


def _listed(names: Sequence[str]) -> str:
    return " or ".join(names[:MOST_NAMES]) + (f" or {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else "")


def read_own_labels(source: LabelSource, names: LabelNames) -> OwnLabels:
    """Read the tables.

    Raises:
        LabelError: labels come from nowhere or from two places, one table cannot be used, or two tools have one name.
    """
    if source.table is None and not source.from_folder:
        raise LabelError("where do labels come from? Give --labels FILE, or --label-from-folder")
    if source.table is not None and source.from_folder:
        raise LabelError("--labels and --label-from-folder: give one of them")
    labels = OwnLabels(source, names)
    if source.table is not None:
        labels.table = read_labels(
            source.table,
            source.column,
            source.confidence,
            tolerance_seconds=source.tolerance_seconds,
            shift_seconds=source.shift_seconds,
        )
    for text in source.predictions:
        name, path = tool_of(text)
        if name in (known for known, _ in labels.tools):
            raise LabelError(f"--predictions {text}: a second tool called {name}: name it otherwise, FILE=NAME")
        table = read_labels(path, tolerance_seconds=source.tolerance_seconds, called=PREDICTION)
        labels.tools.append((name, table))
    return labels


def tool_of(text: str) -> tuple[str, Path]:
    """The name of a tool and its table: of `FILE=NAME`, else the file's own."""
    path, equals, name = text.rpartition("=")
    if equals and not Path(text).exists():
        return name, Path(path)
    return Path(text).stem, Path(text)
