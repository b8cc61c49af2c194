"""What a reader of the history may ask for; REST, the export and the stream of verdicts ask by the same names."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime
from typing import Annotated, get_args

import msgspec

from tapline.models.flow import MAX_COUNT, MAX_NAME_CHARS
from tapline.service.alerts.alert import AlertKind, Severity

_SPAN = re.compile(r"([0-9]{1,6})([smhd])")
_SPAN_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}

Time = Annotated[int, msgspec.Meta(ge=0, le=MAX_COUNT)]
Text = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Uid = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_NAME_CHARS)]


class FilterError(ValueError):
    """A filter cannot be understood; the message says what was expected."""


class SeenFilter(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What every record is asked for; None asks for nothing. `since_us`: seen at or after, `until_us`: seen before."""

    since_us: Time | None = None
    until_us: Time | None = None


class VerdictFilter(SeenFilter, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What flows and traces are both asked for. `label` is the one shown, `unknown` for unknown ones; `nearest` the
    nearest that the model knows.
    """

    label: Text | None = None
    nearest: Text | None = None
    unknown: bool | None = None
    min_confidence: Share | None = None
    max_confidence: Share | None = None
    model: Text | None = None
    source: Text | None = None
    final: bool | None = None


class FlowFilter(VerdictFilter, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which flows. `host`: an address or a network in CIDR, of either side; `port`: the responder's."""

    host: Text | None = None
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] | None = None
    sensor: Text | None = None
    unexpected_port: bool | None = None
    uid: Uid | None = None


class TraceFilter(VerdictFilter, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which traces. `subject`: as it is shown, in capitals or not; `host`: an address or a network, of subjects that
    are one."""

    subject: Text | None = None
    host: Text | None = None
    suspicious: bool | None = None


class AlertFilter(SeenFilter, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which alerts. `severity`: this one or a higher; `host`: an address or a network, of either side or the subject;
    `acknowledged`: those that somebody has seen to, or the others."""

    severity: Severity | None = None
    rule: Text | None = None
    kind: AlertKind | None = None
    host: Text | None = None
    label: Text | None = None
    model: Text | None = None
    uid: Uid | None = None
    acknowledged: bool | None = None

    @property
    def severities(self) -> tuple[str, ...]:
        """The severities that are asked for."""
        every = get_args(Severity)
        return every if self.severity is None else every[every.index(self.severity) :]


def time_us(text: str, now_us: int | None = None) -> int:
    """Microseconds since the epoch of an ISO 8601 time (UTC where it names no zone), of seconds or microseconds since
    the epoch, or of a span before now: `90s`, `15m`, `2h`, `7d`.

    Raises:
        FilterError: it is none of these.
    """
    text = text.strip()
    if span := _SPAN.fullmatch(text):
        now = time.time_ns() // 1000 if now_us is None else now_us
        return max(0, now - int(span[1]) * _SPAN_SECONDS[span[2]] * 1_000_000)
    try:
        if text.isascii() and text.isdigit():
            number = int(text[:17])
            found = number if number >= 10**12 else number * 1_000_000
        else:
            moment = datetime.fromisoformat(text)
            found = round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1e6)
    except (ValueError, OverflowError):
        found = -1
    if not 0 <= found <= MAX_COUNT:
        raise FilterError("expected a time such as 2025-06-01T08:00:00Z, seconds since the epoch, or 15m, 2h, 7d")
    return found
