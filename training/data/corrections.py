"""Corrections: what analysts say of single flows, from a CSV. Finds the correction of a flow, by its uid, else by its
Community ID and when it began; that it then has no other label is `one_flow`'s business."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from tapline.models.flow import Flow
from tapline.models.verdict import UNKNOWN
from tapline.service.community_id import community_id
from tapline.training.data.label_map import LabelError
from tapline.training.data.tables import Table, TableError

START_TOLERANCE_US = 1_000
"""A flow seen twice begins within so much: two sensors stamp a packet apart, and texts cut times to microseconds."""


@dataclass(frozen=True)
class Correction:
    """The label of one flow; `community_id` is "" and `start_us` None where nothing but its uid is known."""

    uid: str
    label: str
    community_id: str = ""
    start_us: int | None = None


class Corrections:
    """Corrections, each of another flow."""

    def __init__(self, rows: Iterable[Correction] = ()) -> None:
        self._of_uid = {row.uid: row for row in rows}
        self._near: defaultdict[int, list[Correction]] = defaultdict(list)
        for row in self:
            if row.community_id and row.start_us is not None:
                self._near[row.start_us // START_TOLERANCE_US].append(row)

    def __len__(self) -> int:
        return len(self._of_uid)

    def __iter__(self) -> Iterator[Correction]:
        return iter(self._of_uid.values())

    def of(self, flow: Flow) -> Correction | None:
        """The correction of a flow, whichever sensor or capture it was seen by; None without one.

        Zeek with fixed seeds gives the same uids to every capture: where a correction has a start, it counts too.
        """
        row = self._of_uid.get(flow.uid)
        if row is not None and (row.start_us is None or _began_with(row, flow.start_us)):
            return row
        return self._like(flow)

    def _like(self, flow: Flow) -> Correction | None:
        """The correction of a flow of this Community ID that began when this one did, None without one."""
        place = flow.start_us // START_TOLERANCE_US
        near = [row for at in (place - 1, place, place + 1) for row in self._near.get(at, ())]
        known = community_id(flow) if near else ""
        return next((row for row in near if row.community_id == known and _began_with(row, flow.start_us)), None)

    def update(self, digest: hashlib._Hash) -> None:
        """Take everything that decides labels into a hash."""
        for row in sorted(self, key=lambda row: row.uid):
            digest.update(f"\n{row.uid}\0{row.label}\0{row.community_id}\0{row.start_us}".encode())


def _began_with(row: Correction, start_us: int) -> bool:
    return row.start_us is not None and abs(row.start_us - start_us) <= START_TOLERANCE_US


def read_corrections(path: Path) -> Corrections:
    """Corrections from a CSV table with the columns `uid` and `label`. `community_id` and `start_us` find a flow that
    has another uid where it was captured; other columns are not read.

    Raises:
        LabelError: it is unreadable, a column is missing, a field is empty or no time, a label is *unknown*, or a flow
            has two labels, under one uid or two.
    """
    rows: dict[str, Correction] = {}
    line_of: dict[str, int] = {}
    try:
        for number, fields in Table(path, ("uid", "label")):
            row = _correction(fields, f"{path} line {number}")
            first = rows.setdefault(row.uid, row)
            at = line_of.setdefault(row.uid, number)
            if first.label != row.label:
                raise _two_labels(path, at, number, first, row)
    except TableError as error:
        raise LabelError(str(error)) from None
    if not rows:
        raise LabelError(f"{path}: no correction in it")
    _refuse_two_labels(path, rows.values(), line_of)
    return Corrections(rows.values())


def _correction(fields: dict[str, str], where: str) -> Correction:
    uid, label = fields["uid"], fields["label"]
    if not uid or not label:
        raise LabelError(f"{where}: expected a uid and a label")
    if label == UNKNOWN:
        raise LabelError(f"{where}: {UNKNOWN!r} is no label: write what the flow is, or leave the line out")
    start = fields.get("start_us", "").removesuffix(".0")
    if start and not start.isdecimal():
        raise LabelError(f"{where}: expected microseconds in start_us, as tapline's CSV has them")
    return Correction(uid, label, fields.get("community_id", ""), int(start) if start else None)


def _refuse_two_labels(path: Path, rows: Iterable[Correction], line_of: dict[str, int]) -> None:
    """Raise where rows of two uids are of one flow and say different things."""
    of_flow: defaultdict[str, list[Correction]] = defaultdict(list)
    for row in rows:
        if row.community_id and row.start_us is not None:
            of_flow[row.community_id].append(row)
    for same in of_flow.values():
        same.sort(key=lambda row: (row.start_us or 0, line_of[row.uid]))
        for first, second in pairwise(same):
            if _began_with(first, second.start_us or 0) and first.label != second.label:
                raise _two_labels(path, line_of[first.uid], line_of[second.uid], first, second)


def _two_labels(path: Path, line: int, number: int, first: Correction, second: Correction) -> LabelError:
    return LabelError(
        f"{path} line {number}: a second label for the flow of line {line}: {first.label!r} and {second.label!r}: "
        "leave one"
    )
