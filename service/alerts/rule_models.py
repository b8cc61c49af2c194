"""What a file of alert rules may say: its tables, their keys and the bounds of each."""

from __future__ import annotations

import datetime
import difflib
import re
import string
from collections.abc import Iterable
from typing import Annotated, Literal, TypeVar, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from tapline.service.alerts.alert import Severity
from tapline.service.alerts.networks import NetworkSet
from tapline.service.drift.model_drift import Against, Measure

RuleKind = Literal["flow", "trace", "drift"]
"""What a rule is about: verdicts on flows, verdicts on traces, or what a model sees."""

Stage = Literal["any", "early", "final"]
ListOf = Literal["networks", "server names", "labels"]

DEFAULT_SUPPRESS_SECONDS = 600.0
MAX_RULES = 1000
MAX_ENTRIES = 100_000
MAX_SECONDS = 7 * 86_400.0
MAX_SUPPRESS_SECONDS = 90 * 86_400.0

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
DAY_MINUTES = 24 * 60

MAX_NAME_CHARS = 64
NAME_EXPECTED = "expected letters, digits and . _ - in between, at most 64"
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
_HOURS = re.compile(r"([01]?[0-9]|2[0-3]):([0-5][0-9])-(?:([01]?[0-9]|2[0-3]):([0-5][0-9])|24:00)")

IDENTIFIERS: dict[RuleKind, tuple[str, ...]] = {
    "flow": (
        "originator", "responder", "port", "label", "nearest", "model", "source", "sensor", "server_name", "proto",
        "port_label",
    ),
    "trace": ("subject", "label", "nearest", "model", "source"),
    "drift": ("model", "measure", "against"),
}  # fmt: skip
"""By what matches can be counted and suppressed, by the kind of rule."""

SUPPRESSED_BY: dict[RuleKind, tuple[str, ...]] = {
    "flow": ("originator", "label"),
    "trace": ("subject", "label"),
    "drift": ("model", "measure"),
}
"""By what a rule is suppressed that counts nothing and does not say."""

MESSAGE_NAMES: dict[RuleKind, tuple[str, ...]] = {
    "flow": (
        *IDENTIFIERS["flow"], "rule", "severity", "time", "version", "confidence", "originator_port", "stage", "uid",
        "matches", "share", "suppressed",
    ),
    "trace": (
        *IDENTIFIERS["trace"], "rule", "severity", "time", "version", "confidence", "suspicion", "flows", "stage",
        "matches", "share", "suppressed",
    ),
    "drift": (*IDENTIFIERS["drift"], "rule", "severity", "time", "version", "distance", "reason", "suppressed"),
}  # fmt: skip
"""What a message may name in braces, by the kind of rule."""


def _listed(value: object) -> object:
    return value if isinstance(value, list) else [value]


def _minute_range(text: str) -> str:
    if _HOURS.fullmatch(text) is None:
        raise ValueError('expected hours such as "08:00-18:00", or "22:00-06:00" over midnight')
    return text


def minutes_of(hours: str) -> tuple[int, int]:
    """The first minute of a day and the one after the last, of `HH:MM-HH:MM`; over midnight the second is not later."""
    first, last = (60 * int(part[:-3]) + int(part[-2:]) for part in hours.split("-"))
    return first, last


def days_of(text: str) -> tuple[int, ...]:
    """The days of `mon`, `mon-fri` or `sat-mon`, 0 for Monday.

    Raises:
        ValueError: it is none of these.
    """
    first, _, last = text.lower().partition("-")
    if first not in DAYS or (last or first) not in DAYS:
        raise ValueError('expected a day such as "mon", or days such as "mon-fri"')
    start, end = DAYS.index(first), DAYS.index(last or first)
    return tuple(day % 7 for day in range(start, end + 1 + (7 if end < start else 0)))


def _days(text: str) -> str:
    days_of(text)
    return text


def ports_of(given: int | str) -> range:
    """The ports of `443` or `"8000-8999"`.

    Raises:
        ValueError: it is neither.
    """
    parts = [given, given] if isinstance(given, int) and not isinstance(given, bool) else str(given).split("-")
    try:
        first, last = (int(part) for part in parts)
    except ValueError:
        first, last = -1, -1
    if not 0 <= first <= last <= 65_535:
        raise ValueError('expected a port such as 443, or ports such as "8000-8999"')
    return range(first, last + 1)


def _ports(given: object) -> object:
    if not isinstance(given, int | str):
        raise ValueError('expected a port such as 443, or ports such as "8000-8999"')
    ports_of(given)
    return given


def bare(pattern: str) -> str:
    """A pattern without the `!` that turns it round."""
    return pattern.removeprefix("!")


def _network(pattern: str) -> str:
    if not bare(pattern).startswith("@"):
        check_network(bare(pattern))
    return pattern


def check_network(text: str) -> None:
    """See whether a text is an address or a network.

    Raises:
        ValueError: it is neither.
    """
    try:
        NetworkSet([text])
    except ValueError:
        raise ValueError("expected an address, or a network such as 10.0.0.0/8 or 2001:db8::/32") from None


def _pattern(text: str) -> str:
    if not bare(text) or bare(text).startswith("!"):
        raise ValueError("expected a text, a glob or @list, with at most one ! before it")
    return text


def is_name(text: str) -> bool:
    """Whether a rule or a list may be called so."""
    return len(text) <= MAX_NAME_CHARS and _NAME.fullmatch(text) is not None


def _name(text: str) -> str:
    if not is_name(text):
        raise ValueError(NAME_EXPECTED)
    return text


def one_of(given: str, names: Iterable[str]) -> str:
    """The nearest name to one that is none, or all of them where none is near."""
    names = list(names)
    near = difflib.get_close_matches(given.lower(), names, n=1)
    return f"`{near[0]}`" if near else f"one of {', '.join(names)}"


Text = Annotated[str, Field(min_length=1, max_length=256)]
Pattern = Annotated[str, Field(max_length=256), AfterValidator(_pattern)]
Patterns = Annotated[list[Pattern], BeforeValidator(_listed), Field(min_length=1, max_length=1000)]
"""Globs and `@lists`, of which one must hold; those with `!` before them must not."""
Networks = Annotated[
    list[Annotated[Pattern, AfterValidator(_network)]], BeforeValidator(_listed), Field(min_length=1, max_length=1000)
]
Ports = Annotated[
    list[Annotated[int | str, BeforeValidator(_ports)]], BeforeValidator(_listed), Field(min_length=1, max_length=100)
]
Share = Annotated[float, Field(ge=0, le=1)]
Name = Annotated[str, AfterValidator(_name)]
Seconds = Annotated[float, Field(ge=1, le=MAX_SECONDS)]
Identifiers = Annotated[list[Annotated[str, Field(max_length=64)]], BeforeValidator(_listed), Field(max_length=6)]
Moment = datetime.datetime | datetime.date
"""The end of a day in the file's time zone, or a moment with its offset."""


class Table(BaseModel):
    """A table takes only the keys that it knows, and only values of their types."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class TimeWindow(Table):
    """Days of the week and hours of the day, of a rule's time zone. `hours` over midnight belong to the day on which
    they begin."""

    days: Annotated[list[Annotated[str, AfterValidator(_days)]], BeforeValidator(_listed), Field(min_length=1)] = [
        "mon-sun"
    ]
    hours: Annotated[str, AfterValidator(_minute_range)] = "00:00-24:00"


Times = Annotated[list[TimeWindow], BeforeValidator(_listed), Field(min_length=1, max_length=100)]


class Suppress(Table):
    """After an alert no further one of the same identifiers for so long; 0: each match is an alert."""

    by: Identifiers | None = None
    seconds: Annotated[float, Field(ge=0, le=MAX_SUPPRESS_SECONDS)] = DEFAULT_SUPPRESS_SECONDS


class Rate(Table):
    """`count` matches within `seconds`, of the same identifiers, make one alert."""

    count: Annotated[int, Field(ge=2, le=1_000_000)]
    seconds: Seconds
    by: Identifiers


class UnknownShare(Table):
    """At least this share of the flows that a rule is about were unknown, of `min_flows` or more, within `seconds`."""

    min: Annotated[float, Field(gt=0, le=1)]
    seconds: Seconds
    min_flows: Annotated[int, Field(ge=1, le=10_000_000)] = 100
    by: Identifiers = ["model"]


_By = TypeVar("_By", Suppress, Rate | None, UnknownShare | None)


class Rule(Table):
    """What rules of every kind may say. All conditions must hold; one that is not given holds."""

    name: Name
    kind: RuleKind = "flow"
    comment: str = ""
    enabled: bool = True
    severity: Severity = "medium"
    message: Annotated[str, Field(max_length=500)] = ""
    model: Patterns | None = None
    during: Times | None = None
    outside: Times | None = None
    timezone: Text | None = None
    suppress: Suppress = Suppress()

    @field_validator("message")
    @classmethod
    def _names_are_known(cls, message: str, info: ValidationInfo) -> str:
        names = MESSAGE_NAMES[info.data.get("kind", "flow")]
        for given in _names_in(message):
            if given not in names:
                raise ValueError(f"{{{given}}} is no name of such a rule: expected {one_of(given, names)}")
        return message

    @field_validator("suppress", "rate", "unknown_share", check_fields=False)
    @classmethod
    def _identifiers_are_known(cls, table: _By, info: ValidationInfo) -> _By:
        names = IDENTIFIERS[info.data.get("kind", "flow")]
        for given in (table.by or []) if table is not None else []:
            if given not in names:
                raise ValueError(f"by: `{given}` is no identifier of such a rule: expected {one_of(given, names)}")
        return table

    @property
    def counted(self) -> Rate | UnknownShare | None:
        """What is counted before there is an alert."""
        return None

    @property
    def suppressed_by(self) -> tuple[str, ...]:
        """By what it is suppressed, also where it does not say so."""
        if self.suppress.by is not None:
            return tuple(self.suppress.by)
        return tuple(self.counted.by) if self.counted is not None else SUPPRESSED_BY[self.kind]


class VerdictRule(Rule):
    """What rules about verdicts may say, of flows or traces."""

    label: Patterns | None = None
    nearest: Patterns | None = None
    unknown: bool | None = None
    min_confidence: Share | None = None
    max_confidence: Share | None = None
    stage: Stage = "any"
    source: Patterns | None = None
    host: Networks | None = None
    allow: Annotated[list[Name], BeforeValidator(_listed)] = []
    rate: Rate | None = None
    unknown_share: UnknownShare | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> VerdictRule:
        if self.rate is not None and self.unknown_share is not None:
            raise ValueError("rate and unknown_share: expected one of them; make two rules")
        if self.unknown_share is not None and self.unknown is not None:
            raise ValueError("unknown and unknown_share: expected one of them; the share is of known and unknown ones")
        low, high = self.min_confidence, self.max_confidence
        if low is not None and high is not None and low > high:
            raise ValueError(f"min_confidence {low:g} is more than max_confidence {high:g}: nothing can meet both")
        return self

    @property
    def counted(self) -> Rate | UnknownShare | None:
        """Matches, or unknown ones among them."""
        return self.rate or self.unknown_share


class FlowRule(VerdictRule):
    """A rule about flows. `port` is the responder's."""

    originator: Networks | None = None
    responder: Networks | None = None
    port: Ports | None = None
    originator_port: Ports | None = None
    proto: Patterns | None = None
    sensor: Patterns | None = None
    server_name: Patterns | None = None
    port_label: Patterns | None = None
    unexpected_port: bool | None = None


class TraceRule(VerdictRule):
    """A rule about traces. `subject` as it is shown, an address or a MAC; `host` where it is an address."""

    subject: Patterns | None = None
    suspicious: bool | None = None
    min_suspicion: Share | None = None


class DriftRule(Rule):
    """A rule about what a model sees: what is beyond its own limit, or `min_distance` where that is given."""

    measure: Annotated[list[Measure], BeforeValidator(_listed), Field(min_length=1)] | None = None
    against: Annotated[list[Against], BeforeValidator(_listed), Field(min_length=1)] | None = None
    min_distance: Share | None = None


RULES: dict[str, type[Rule]] = {"flow": FlowRule, "trace": TraceRule, "drift": DriftRule}
"""The table of a rule by its kind."""

assert set(RULES) == set(get_args(RuleKind))


class ListEntry(Table):
    """An entry of a list. After `until` it counts no more."""

    value: Text
    comment: str = ""
    until: Moment | None = None


def _entry(given: object) -> object:
    return {"value": given} if isinstance(given, str) else given


class AllowList(Table):
    """A list that rules name: entries of one kind, here and in a file beside the rules, one a line."""

    of: ListOf
    comment: str = ""
    entries: list[Annotated[ListEntry, BeforeValidator(_entry)]] = Field([], max_length=MAX_ENTRIES)
    file: Text | None = None


def _names_in(message: str) -> list[str]:
    """The names that a message has in braces.

    Raises:
        ValueError: it is no template, or asks for more than names.
    """
    try:
        parts = list(string.Formatter().parse(message))
    except ValueError as error:
        raise ValueError(f"{error}; write {{{{ and }}}} for braces") from None
    found = []
    for _, name, form, conversion in parts:
        if name is None:
            continue
        if form or conversion:
            raise ValueError(f"expected a name alone in braces, such as {{{name}}}")
        found.append(name)
    return found
