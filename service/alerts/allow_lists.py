"""Named lists of networks, names of servers or labels: their entries, and until when these count."""

from __future__ import annotations

import datetime
import re
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from tapline.models.foreign_text import clean
from tapline.service.alerts.networks import NameSet, NetworkSet, host_bits
from tapline.service.alerts.rule_models import ListOf, check_network

_LINE = re.compile(r"(?P<value>\S+)(?:\s+until\s+(?P<until>\S+))?")
_EXPECTED = "expected one entry a line, such as `10.0.0.5`, or `10.0.0.5 until 2026-12-31  # why`"


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry that can be looked up; `until_us` None: for ever."""

    value: str
    until_us: int | None


class Members:
    """What is in a list at a time."""

    def __init__(self, of: ListOf, entries: Iterable[Entry]) -> None:
        self.of = of
        values: dict[int | None, list[str]] = defaultdict(list)
        for entry in entries:
            values[entry.until_us].append(entry.value)
        make = NetworkSet if of == "networks" else NameSet
        self._lasting: NetworkSet | NameSet = make(values.pop(None, []))
        self._ending = [(until_us, make(found)) for until_us, found in values.items() if until_us is not None]

    def has(self, value: str, time_us: int) -> bool:
        """Whether a value is in it then."""
        return value in self._lasting or any(time_us < until_us and value in found for until_us, found in self._ending)


def checked_entry(
    of: ListOf, value: str, until: datetime.date | datetime.datetime | None, zone: datetime.tzinfo
) -> Entry:
    """An entry of a list of a kind.

    Raises:
        ValueError: it is none of that kind; the message says what was expected.
    """
    if of == "networks":
        check_network(value)
    return Entry(value, None if until is None else _end_us(until, zone))


def entry_note(of: ListOf, entry: Entry) -> str | None:
    """What is to be said of an entry that is no mistake, and hardly meant; None of others."""
    if entry.until_us is not None and entry.until_us <= time.time() * 1e6:
        return f"`{clean(entry.value, 64)}` counts no more since {_moment(entry.until_us)}: take it out, or set `until`"
    return host_bits(entry.value) if of == "networks" else None


def _moment(time_us: int) -> str:
    moment = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC) + datetime.timedelta(microseconds=time_us)
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"


def _end_us(until: datetime.date | datetime.datetime, zone: datetime.tzinfo) -> int:
    if isinstance(until, datetime.datetime):
        if until.tzinfo is None:
            raise ValueError("until: expected a date, or a time with its offset such as 2026-12-31T18:00:00Z")
        moment = until
    else:
        try:
            moment = datetime.datetime.combine(until + datetime.timedelta(1), datetime.time(), zone)
        except OverflowError:
            raise ValueError("until: expected a date before 9999-12-31") from None
    return round(moment.timestamp() * 1e6)


def line_entry(of: ListOf, line: str, zone: datetime.tzinfo) -> Entry | None:
    """The entry on a line of a file, None where there is but a comment.

    Raises:
        ValueError: the line cannot be read.
    """
    text = line.partition("#")[0].strip()
    if not text:
        return None
    found = _LINE.fullmatch(text)
    if found is None:
        raise ValueError(_EXPECTED)
    until: datetime.date | datetime.datetime | None = None
    if given := found["until"]:
        try:
            until = datetime.date.fromisoformat(given) if len(given) == 10 else datetime.datetime.fromisoformat(given)
        except ValueError:
            raise ValueError(_EXPECTED) from None
    return checked_entry(of, found["value"], until, zone)
