"""The label map: which labels of a table are another one, or none, and why. What bears a label belongs to `labels`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tapline.training.data.tables import Table, TableError

COLUMNS = ("label", "becomes", "why")


class LabelError(ValueError):
    """A table of labels cannot be used; the message says which line and why."""


@dataclass(frozen=True)
class LabelMap:
    """Labels by those that become them, None for those whose flows have no label; `sha256` is that of its file."""

    name: str = ""
    sha256: str = ""
    becomes: Mapping[str, str | None] = field(default_factory=dict)

    def of(self, label: str | None) -> str | None:
        """What a label becomes: itself where the map does not name it."""
        return None if label is None else self.becomes.get(label, label)


def read_label_map(path: Path, *, reasons: bool = True) -> LabelMap:
    """Read a CSV table with `COLUMNS`; where `becomes` is empty, flows of the label have none. Without `reasons` rows
    need not say why.

    Raises:
        LabelError: it is unreadable, a column is missing, a label or its reason is empty, a label occurs twice,
            becomes itself, or becomes one that becomes another.
    """
    becomes: dict[str, str | None] = {}
    lines: dict[str, int] = {}
    try:
        table = Table(path, COLUMNS if reasons else COLUMNS[:2])
        for number, row in table:
            label = row["label"]
            if not label or (reasons and not row["why"]):
                why = ", and why" if reasons else ""
                raise LabelError(f"{path} line {number}: expected a label, what it becomes{why}")
            if label in lines:
                raise LabelError(f"{path} line {number}: {label!r} is in line {lines[label]} already")
            if row["becomes"] == label:
                raise LabelError(f"{path} line {number}: {label!r} becomes itself: leave it out")
            becomes[label], lines[label] = row["becomes"] or None, number
    except TableError as error:
        raise LabelError(str(error)) from None
    for label, other in becomes.items():
        if other in becomes:
            raise LabelError(
                f"{path} line {lines[label]}: {label!r} becomes {other!r}, which line {lines[other]} changes too: name "
                "what it becomes in the end"
            )
    if not becomes:
        raise LabelError(f"{path}: no label in it")
    return LabelMap(path.name, hashlib.sha256(table.content).hexdigest(), becomes)
