"""Several feature directories as one: a flow that was corrected has that label alone, a flow that is in two of them is
learned from once, and what was captured twice is one capture. Decides by row; reading rows belongs to `samples`."""

from __future__ import annotations

from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from tapline.training.data.corrections import START_TOLERANCE_US

Capture = tuple[str, str]
"""Corpus and capture."""
_Place = tuple[int, Capture]
"""A capture with the number of its directory."""


@dataclass(frozen=True)
class Identity:
    """What says of a row which flow it is, and what is said of it. `corrected`: the label is a correction's."""

    proto: str
    ends: tuple[tuple[str, int], tuple[str, int]]
    start_us: int
    first_length: int
    capture: Capture
    label: str | None
    corrected: bool


class TwoLabelsError(ValueError):
    """Two corrections of one flow say different things: `rows` are theirs, counted over all directories."""

    def __init__(self, rows: tuple[int, int], labels: tuple[str | None, str | None]) -> None:
        super().__init__("two corrections of one flow")
        self.rows, self.labels = rows, labels


@dataclass
class Plan:
    """What becomes of the rows of the directories, counted over all of them: which are left out, which have another
    label, and which capture of a directory is another one."""

    left_out: set[int] = field(default_factory=set)
    label_of: dict[int, str | None] = field(default_factory=dict)
    capture_of: dict[tuple[int, Capture], Capture] = field(default_factory=dict)


@dataclass(frozen=True)
class _Table:
    """The identities of all rows, one after another: hashes of the endpoints uint64 [n], starts int64 [n], hashes of
    endpoints and first length uint64 [n], directories int32 [n], places of captures and labels int32 [n], corrected
    bool [n]."""

    ends: NDArray[np.uint64]
    starts: NDArray[np.int64]
    content: NDArray[np.uint64]
    directories: NDArray[np.int32]
    captures: NDArray[np.int32]
    labels: NDArray[np.int32]
    corrected: NDArray[np.bool_]
    capture_names: list[_Place]
    label_names: list[str | None]


def plan_rows(directories: Sequence[Iterable[Identity]]) -> Plan:
    """Decide what becomes of the rows of these directories.

    Rows are of one flow where transport and endpoints are the same and starts no more than `START_TOLERANCE_US` apart.
    Of a flow with a correction the first row remains, with that label, from a directory without corrections if there is
    one: it stands in the capture that was learned. Of other flows those rows of later directories are left out whose
    first payload length is the same, and whose label is, or is None. A capture of which most such rows are in a capture
    of another directory is that one.

    Raises:
        TwoLabelsError: a flow has two corrections that differ.
    """
    table = _table(directories)
    with_corrections = np.bincount(table.directories, table.corrected, len(directories)) > 0
    places = np.lexsort((np.arange(len(directories)), with_corrections))
    rank = np.empty(len(directories), np.int64)
    rank[places] = np.arange(len(directories))
    plan = Plan()
    shared: defaultdict[_Place, Counter[_Place]] = defaultdict(Counter)
    for rows in _same(table):
        rows.sort(key=lambda row: (rank[table.directories[row]], row))
        pairs = _keep_corrected(plan, table, rows) if table.corrected[rows].any() else _keep_first(plan, table, rows)
        for dropped, kept in pairs:
            if table.directories[dropped] != table.directories[kept]:
                own, other = (table.capture_names[table.captures[row]] for row in (dropped, kept))
                shared[own][other] += 1
    nearest = {capture: max(sorted(counts), key=counts.__getitem__) for capture, counts in shared.items()}
    plan.capture_of = {place: _followed(place, nearest)[1] for place in nearest}
    return plan


def _followed(place: _Place, nearest: dict[_Place, _Place]) -> _Place:
    """The capture at the end of the chain, which has one: each is of a directory before the last one's, by rank."""
    while place in nearest:
        place = nearest[place]
    return place


def _keep_corrected(plan: Plan, table: _Table, rows: list[int]) -> Iterator[tuple[int, int]]:
    """Keep one row of a corrected flow; gives each row left out with that one."""
    said = [row for row in rows if table.corrected[row]]
    kept = rows[0]
    for row in said:
        if table.labels[row] != table.labels[said[0]]:
            labels = table.label_names[table.labels[said[0]]], table.label_names[table.labels[row]]
            raise TwoLabelsError((said[0], row), labels)
    if table.labels[kept] != table.labels[said[0]]:
        plan.label_of[kept] = table.label_names[table.labels[said[0]]]
    for row in rows[1:]:
        plan.left_out.add(row)
        yield row, kept


def _keep_first(plan: Plan, table: _Table, rows: list[int]) -> Iterator[tuple[int, int]]:
    """Leave out rows of directories after the first that say nothing else; gives each with the one that remains."""
    first_of: dict[int, int] = {}
    for row in rows:
        kept = first_of.setdefault(int(table.content[row]), row)
        if table.directories[row] == table.directories[kept]:
            continue
        label, known = table.label_names[table.labels[row]], table.label_names[table.labels[kept]]
        if label is not None and known is None:
            plan.label_of.setdefault(kept, label)
            known = plan.label_of[kept]
        if label in (None, known):
            plan.left_out.add(row)
            yield row, kept


def _same(table: _Table) -> Iterator[list[int]]:
    """The rows of each flow that are in two directories, or corrected and there twice."""
    order = np.lexsort((table.starts, table.ends))
    ends, starts = table.ends[order], table.starts[order]
    new = np.ones(len(order), np.bool_)
    new[1:] = (ends[1:] != ends[:-1]) | (starts[1:] - starts[:-1] > START_TOLERANCE_US)
    bounds = np.append(np.flatnonzero(new), len(order))
    for place in np.flatnonzero(np.diff(bounds) > 1).tolist():
        rows = order[bounds[place] : bounds[place + 1]]
        if table.corrected[rows].any() or len(np.unique(table.directories[rows])) > 1:
            yield rows.tolist()


def _table(directories: Sequence[Iterable[Identity]]) -> _Table:
    names: dict[_Place, int] = {}
    labels: dict[str | None, int] = {}
    columns = [array(kind) for kind in "QqQiiib"]
    for place, directory in enumerate(directories):
        for row in directory:
            ends = repr((row.proto, row.ends)).encode()
            capture = names.setdefault((place, row.capture), len(names))
            label = labels.setdefault(row.label, len(labels))
            content = _hash(ends + str(abs(row.first_length)).encode())
            values = _hash(ends), row.start_us, content, place, capture, label, row.corrected
            for column, value in zip(columns, values, strict=True):
                column.append(value)
    ends_of, starts, contents, places, captures, labels_of, corrected = columns
    return _Table(
        np.array(ends_of, np.uint64),
        np.array(starts, np.int64),
        np.array(contents, np.uint64),
        np.array(places, np.int32),
        np.array(captures, np.int32),
        np.array(labels_of, np.int32),
        np.array(corrected, np.bool_),
        list(names),
        list(labels),
    )


def _hash(content: bytes) -> int:
    return int.from_bytes(blake2b(content, digest_size=8).digest())
