"""Tables of labels, and of what other tools say: which row is of which flow. `label_reading` reads them.

A row is of a flow by its uid, its Community ID, its endpoints in either direction, or its capture alone, and then of
those of its capture and of its time, as far as the row has them.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from statistics import median
from typing import Literal, NamedTuple

import msgspec

from tapline.models.flow import Flow
from tapline.service.community_id import community_id
from tapline.training.data.label_columns import Ends, ends_of

TOLERANCE_SECONDS = 1.0
"""By default the start of a flow and the time of its row differ by no more: there are tables in whole seconds."""
EXACT_US = 1_000
"""Where rows are so near, others that are merely within the tolerance do not count: times in milliseconds."""
MAX_OFFSETS = 10_000
"""Offsets that an account remembers."""
MOST_OFFSET_US = 48 * 3_600_000_000
"""Rows that are further off are of another flow between the same endpoints, not of another clock."""
NO_TIME = -(1 << 62)
"""The time of a row without one."""
_ZONE_SECONDS = 900
"""Time zones differ by quarters of an hour."""

JoinedBy = Literal["", "uid", "community ID", "endpoints", "capture", "subject"]
Key = str | Ends


class Row(NamedTuple):
    """A row of a table: its time in microseconds or `NO_TIME`, what it says, its capture or "", and its line."""

    time_us: int
    label: str
    capture: str
    line: int


class Match(NamedTuple):
    """What a table says of a flow: the label, None without, and the lines that say so.

    `by`: what they were found by. `ambiguous`: they say different things. `offset_us`: where the table has rows with
    this key, of other times alone, how much later the nearest one is.
    """

    label: str | None = None
    by: JoinedBy = ""
    lines: tuple[int, ...] = ()
    ambiguous: bool = False
    offset_us: int | None = None


class JoinAccount(msgspec.Struct):
    """What became of flows and rows: flows by what they were `joined` by, those on which rows contradict each other,
    those without a row; the lines that were of a flow; by how many seconds rows with a flow's endpoints were off."""

    joined: dict[str, int] = {}
    ambiguous: int = 0
    without: int = 0
    lines: set[int] = set()
    offsets_seconds: list[float] = []

    def take(self, match: Match) -> str | None:
        """Account for a flow; gives its label."""
        self.lines.update(match.lines)
        if match.label is not None:
            self.joined[match.by] = self.joined.get(match.by, 0) + 1
        elif match.ambiguous:
            self.ambiguous += 1
        else:
            self.without += 1
        offset_us = match.offset_us
        if offset_us is not None and abs(offset_us) < MOST_OFFSET_US and len(self.offsets_seconds) < MAX_OFFSETS:
            self.offsets_seconds.append(offset_us / 1e6)
        return match.label

    def add(self, other: JoinAccount) -> None:
        """Take another account in."""
        for by, flows in other.joined.items():
            self.joined[by] = self.joined.get(by, 0) + flows
        self.ambiguous += other.ambiguous
        self.without += other.without
        self.lines |= other.lines
        self.offsets_seconds += other.offsets_seconds[: MAX_OFFSETS - len(self.offsets_seconds)]

    def clock_hint(self) -> str:
        """What the times of rows that were off say, "" without any, and where rows were found by uid: then those of
        other times are of other flows."""
        if not self.offsets_seconds or self.joined.get("uid"):
            return ""
        offset = median(self.offsets_seconds)
        rows = len(self.offsets_seconds)
        flows = "1 flow has" if rows == 1 else f"{rows:,} flows have"
        text = f"{flows} rows with their endpoints at other times, by the median {offset:+.1f} s off"
        zone = round(offset / _ZONE_SECONDS) * _ZONE_SECONDS
        if zone and abs(offset - zone) < 60:
            text += f": a time zone of {zone / 3600:+g} h? Then give --time-shift {-zone}"
        return text


@dataclass
class LabelTable:
    """Rows by what they are of a flow by. What they contradict each other on has no label. `lines` are those with a
    label; `any_capture`: some do not name their capture.

    A capture is named by its file, or by its path where files of one name lie in several folders.
    """

    name: str = ""
    sha256: str = ""
    tolerance_us: int = round(TOLERANCE_SECONDS * 1e6)
    rows: int = 0
    left_out: int = 0
    malformed: int = 0
    lines: int = 0
    columns: tuple[str, ...] = ()
    labels: set[str] = field(default_factory=set)
    any_capture: bool = False
    _rows: dict[str, dict[Key, list[Row]]] = field(default_factory=dict)
    _captures: dict[str, set[tuple[str, ...]]] = field(default_factory=dict)
    _names: dict[str, str | None] = field(default_factory=dict)

    @property
    def captures(self) -> set[str]:
        """The captures that it names."""
        return {"/".join(parts) for named in self._captures.values() for parts in named}

    @property
    def labels_flows(self) -> bool:
        """Whether rows are of single flows, and not of hosts or whole captures."""
        return bool({"uid", "community ID", "endpoints"} & self._rows.keys())

    @property
    def labels_subjects(self) -> bool:
        """Whether its rows are of hosts, and not of flows."""
        return "subject" in self._rows

    def add(self, by: JoinedBy, key: Key, row: Row) -> None:
        """Take a row in, under one of its keys."""
        self._rows.setdefault(by, {}).setdefault(key, []).append(row)
        self.labels.add(row.label)
        self.any_capture |= not row.capture
        if row.capture:
            self.cover(row.capture)

    def take(self, capture: str, flow: Flow, label: str) -> None:
        """Take the label of a flow of a capture in."""
        self.add("endpoints", _ends_of(flow), Row(NO_TIME, label, capture, 0))

    def cover(self, capture: str) -> None:
        """Say that a capture was looked at, whether or not anything in it gets a label."""
        parts = path_parts(capture)
        self._captures.setdefault(parts[-1], set()).add(parts)

    def finish(self) -> LabelTable:
        """Put rows in the order of their time; the table is then asked, and takes no more."""
        for keys in self._rows.values():
            for rows in keys.values():
                rows.sort()
        return self

    def name_of(self, capture: str) -> str | None:
        """What the table calls the capture of this path: the longest end of it that it names, or a name that ends with
        this path; None without any."""
        if capture not in self._names:
            self._names[capture] = self._find_name(path_parts(capture))
        return self._names[capture]

    def _find_name(self, parts: tuple[str, ...]) -> str | None:
        named = self._captures.get(parts[-1], ())
        ends: list[tuple[str, ...]] = [each for each in named if parts[-len(each) :] == each]
        if ends:
            return "/".join(sorted(ends, key=len)[-1])
        own = parts[:1] if len(parts) == 2 and parts[0] == parts[1] else parts  # a file that was given by itself
        longer = [each for each in named if each[-len(own) :] == own]
        return "/".join(longer[0]) if len(longer) == 1 else None

    def left_over(self, account: JoinAccount) -> dict[str, int]:
        """How many rows and flows found each other not, by reason; those of none are left out."""
        counts = {
            "flow that label rows contradict each other on": account.ambiguous,
            "label row of no flow with payload": self.lines - self.malformed - len(account.lines),
            "label row that cannot be read": self.malformed,
        }
        return {reason: count for reason, count in counts.items() if count}

    def label_of(self, capture: str, flow: Flow) -> str | None:
        """The label of a flow of the capture of this path, None when it has none."""
        return self.match(capture, flow).label

    def match(self, capture: str, flow: Flow) -> Match:
        """What the table says of a flow of the capture of this path, by the first of uid, Community ID, endpoints and
        capture that finds anything."""
        name, nothing = self.name_of(capture), Match()
        for by, rows in self._of(flow, name):
            found = self._among(by, rows, name, flow.start_us, flow.start_us)
            if found.lines:
                return found
            nothing = found if nothing.offset_us is None else nothing
        return nothing

    def match_subject(self, capture: str, subject: str, start_us: int, end_us: int) -> Match:
        """What the table says of a host in a capture, by rows of hosts, else by rows of whole captures; a row with a
        time counts where that lies within these."""
        name = self.name_of(capture)
        found = self._among("subject", self._under("subject", subject.lower()), name, start_us, end_us)
        return found if found.lines else self._among("capture", self._under("capture", name or ""), name, 0, 0)

    def _of(self, flow: Flow, name: str | None) -> Iterable[tuple[JoinedBy, Sequence[Row]]]:
        if "uid" in self._rows:
            yield "uid", self._under("uid", flow.uid)
        if "community ID" in self._rows:
            yield "community ID", self._under("community ID", community_id(flow))
        if "endpoints" in self._rows:
            yield "endpoints", self._under("endpoints", _ends_of(flow))
        if "capture" in self._rows and name is not None:
            yield "capture", self._under("capture", name)

    def _under(self, by: JoinedBy, key: Key) -> Sequence[Row]:
        return self._rows.get(by, {}).get(key, ())

    def _among(self, by: JoinedBy, rows: Sequence[Row], name: str | None, first_us: int, last_us: int) -> Match:
        """What those of the rows say that are of this capture and of a time between these."""
        if not rows:
            return Match()
        start = bisect_left(rows, first_us - self.tolerance_us, key=_time)
        end = bisect_right(rows, last_us + self.tolerance_us, key=_time)
        timeless = bisect_right(rows, NO_TIME, key=_time)
        near = [*rows[:timeless], *rows[max(start, timeless) : end]]
        mine = [row for row in near if row.capture in ("", name)]
        exact = [
            row for row in mine if row.time_us == NO_TIME or first_us - EXACT_US <= row.time_us <= last_us + EXACT_US
        ]
        mine = _nearest(exact, first_us, last_us) or mine
        if not mine:
            off = [row.time_us - first_us for row in rows[timeless:] if row.capture in ("", name)]
            return Match(offset_us=min(off, key=abs, default=None))
        lines = tuple(row.line for row in mine)
        labels = {row.label for row in mine}
        return Match(labels.pop(), by, lines) if len(labels) == 1 else Match(None, by, lines, ambiguous=True)


def path_parts(capture: str) -> tuple[str, ...]:
    """The parts of a path, of whatever system, without its root."""
    return tuple(part for part in PurePosixPath(capture.replace("\\", "/")).parts if part != "/") or ("",)


def _nearest(rows: Sequence[Row], first_us: int, last_us: int) -> list[Row]:
    """Those of the rows that are nearest to these times, and all without a time. Only times that are exact are told
    apart so: those in whole seconds are cut, and the nearest of them may be that of the next flow."""

    def off(row: Row) -> int:
        return 0 if row.time_us == NO_TIME else max(first_us - row.time_us, row.time_us - last_us, 0)

    least = min((off(row) for row in rows if row.time_us != NO_TIME), default=0)
    return [row for row in rows if row.time_us == NO_TIME or off(row) == least]


def _time(row: Row) -> int:
    return row.time_us


def _ends_of(flow: Flow) -> Ends:
    return ends_of(flow.proto, (flow.orig_h, flow.orig_p), (flow.resp_h, flow.resp_p))
