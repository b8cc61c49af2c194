"""What the names in somebody's table are among a checkpoint's labels: by a map, in another case, as in nDPI."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from tapline.training.data.label_map import LabelError, read_label_map

NOTHING_SAID = frozenset({"", "-", "unknown", "none", "n/a"})
"""Words, in lower case, with which a tool says that it does not know."""


class LabelNames:
    """Finds labels by the names that tables give them; `changed` are those that it called otherwise than they are,
    `becomes` what the map has.

    A name that the map has becomes what it says. Else it is the label that it equals, whatever its case; else, as nDPI
    writes `TLS.Google`, the label before the point. A name of none of the labels stays as it is.
    """

    def __init__(self, labels: Sequence[str], becomes: Mapping[str, str | None]) -> None:
        self._labels = set(labels)
        by_case = Counter(label.casefold() for label in labels)
        self._by_case = {label.casefold(): label for label in labels if by_case[label.casefold()] == 1}
        self.becomes = dict(becomes)
        self._found: dict[str, str | None] = {}
        self.changed: dict[str, str] = {}

    def of(self, name: str) -> str | None:
        """The label of a name, the name itself where it is none; None where the map leaves it out."""
        if name not in self._found:
            found = self.becomes[name] if name in self.becomes else self._alike(name)
            self._found[name] = found
            if found is not None and found != name:
                self.changed[name] = found
        return self._found[name]

    def is_label(self, name: str) -> bool:
        """Whether the name says anything: it does not where it is a word for nothing (`Unknown`, `-`) that is neither
        in the map nor a label."""
        return name in self.becomes or said(name) or self._alike(name) in self._labels

    def _alike(self, name: str) -> str:
        if name in self._labels:
            return name
        for part in (name, name.partition(".")[0]):
            if (found := self._by_case.get(part.casefold())) is not None:
                return found
        return name


def said(name: str) -> bool:
    """Whether a tool says anything by this word."""
    return name.strip().casefold() not in NOTHING_SAID


def read_names(maps: Collection[str]) -> dict[str, str | None]:
    """What the values of `--map` make of names: each is `NAME=LABEL`, or a CSV file with label,becomes.

    Raises:
        LabelError: one is neither, or a name is given twice.
    """
    becomes: dict[str, str | None] = {}
    for text in maps:
        if Path(text).is_file():
            given: Mapping[str, str | None] = read_label_map(Path(text), reasons=False).becomes
        else:
            name, equals, label = text.partition("=")
            if not equals or not name:
                raise LabelError(f"--map {text}: expected NAME=LABEL, or a CSV file with the columns label,becomes")
            given = {name: label or None}
        for name, found in given.items():
            if becomes.setdefault(name, found) != found:
                raise LabelError(f"--map {text}: {name!r} is mapped twice: leave one of them out")
    return becomes
