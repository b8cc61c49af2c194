"""Which flows and traces are shown where not all can be: the first in an order, and some that these would hide."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from tapline.models.flow import Flow
from tapline.models.verdict import Verdict

Sort = Literal["time", "bytes", "packets", "confidence", "label"]
"""Order of flows: the earliest, the largest, those with most payload packets, or the least sure come first; labels by
name."""

RARE_ROWS = 2
"""Flows kept of each label that has none among the first rows."""

ODD_ROWS = 10
"""Flows kept that are unknown, and as many on unexpected ports."""

MAX_FURTHER_ROWS = 30

Row = TypeVar("Row")


class FirstRows(Generic[Row]):
    """Keeps the `limit` rows (0: all) that come first in the order of `key`, in whatever order they are added.

    Holds at most twice as many rows.
    """

    def __init__(self, limit: int, key: Callable[[Row], Any]) -> None:
        self._limit = limit
        self._key = key
        self._rows: list[Row] = []
        self._added = 0

    def add(self, row: Row) -> None:
        """Take a row."""
        self._added += 1
        self._rows.append(row)
        if self._limit and len(self._rows) >= 2 * self._limit:
            self._rows = self.rows()

    def rows(self) -> list[Row]:
        """The first rows, in order; those with equal keys in the order in which they came."""
        rows = sorted(self._rows, key=self._key)
        return rows[: self._limit] if self._limit else rows

    @property
    def left_out(self) -> int:
        """Rows that are not among the first."""
        return max(0, self._added - self._limit) if self._limit else 0


@dataclass(frozen=True, slots=True)
class FlowRow:
    """A flow to show, with its verdict; `source` is the name of the input that it came from."""

    flow: Flow
    verdict: Verdict
    source: str = ""

    @property
    def ip_bytes(self) -> int:
        """IP bytes both ways."""
        return self.flow.orig_ip_bytes + self.flow.resp_ip_bytes


_KEYS: dict[Sort, Callable[[FlowRow], Any]] = {
    "time": lambda row: row.flow.start_us,
    "bytes": lambda row: (-row.ip_bytes, row.flow.start_us),
    "packets": lambda row: (-row.flow.up - row.flow.down, row.flow.start_us),
    "confidence": lambda row: (row.verdict.confidence, row.flow.start_us),
    "label": lambda row: (row.verdict.label.lower(), row.flow.start_us),
}


class FlowSelection:
    """Takes flows and keeps those to show: the `limit` flows (0: all) that come first by `sort`, and further ones that
    these would hide: of each label that has none among them, of the unknown, and of those on unexpected ports."""

    def __init__(self, limit: int, sort: Sort = "time") -> None:
        self.sort = sort
        self._limit = limit
        self._rows = FirstRows[FlowRow](limit, _KEYS[sort])
        self._by_label: dict[str, FirstRows[FlowRow]] = {}
        self._unexpected = FirstRows[FlowRow](ODD_ROWS, _KEYS[sort])
        self._counts: dict[str, int] = {}

    def add(self, row: FlowRow) -> None:
        """Take a flow."""
        self._rows.add(row)
        if not self._limit:
            return
        label = row.verdict.label
        self._counts[label] = self._counts.get(label, 0) + 1
        if label not in self._by_label:
            self._by_label[label] = FirstRows(ODD_ROWS if row.verdict.unknown else RARE_ROWS, _KEYS[self.sort])
        self._by_label[label].add(row)
        if row.verdict.unexpected_port is True:
            self._unexpected.add(row)

    def first(self) -> list[FlowRow]:
        """The flows that come first, in order."""
        return self._rows.rows()

    @property
    def left_out(self) -> int:
        """Flows that are not among the first."""
        return self._rows.left_out

    def further(self, first: Iterable[FlowRow]) -> list[FlowRow]:
        """Flows that are not among the `first` and should be seen, at most `MAX_FURTHER_ROWS`, in order: where there is
        no room for all, those on unexpected ports and of the rarest labels."""
        if not self.left_out:
            return []
        seen = {id(row) for row in first}
        labels = {row.verdict.label for row in first}
        wanted = self._unexpected.rows()
        for label in sorted(self._by_label, key=lambda label: (self._counts[label], label)):
            wanted += [row for row in self._by_label[label].rows() if label not in labels or row.verdict.unknown]
        found = {id(row): row for row in wanted if id(row) not in seen}
        return sorted(list(found.values())[:MAX_FURTHER_ROWS], key=_KEYS[self.sort])
