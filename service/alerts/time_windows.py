"""Days of the week and hours of the day in a time zone, by which rules hold or do not."""

from __future__ import annotations

import datetime
import zoneinfo
from collections.abc import Iterable

from tapline.service.alerts.rule_models import DAY_MINUTES, TimeWindow, days_of, minutes_of

MINUTE_US = 60_000_000


def zone_of(name: str) -> datetime.tzinfo:
    """The time zone of an IANA name.

    Raises:
        ValueError: there is none here.
    """
    if name == "UTC":
        return datetime.UTC
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(
            "expected a time zone that is known here, such as Europe/Zurich or UTC"
            + ("" if zoneinfo.available_timezones() else "; this machine has none: install its package tzdata")
        ) from None


class WeekTimes:
    """Whether a time is in any of some windows; remembers its answer for the minute."""

    def __init__(self, windows: Iterable[TimeWindow], zone: datetime.tzinfo) -> None:
        self._zone = zone
        self._minutes = [bytearray(DAY_MINUTES) for _ in range(7)]
        for window in windows:
            for day in {day for text in window.days for day in days_of(text)}:
                self._mark(day, window.hours)
        self._answer = (-1, False)

    def __contains__(self, time_us: int) -> bool:
        minute = time_us // MINUTE_US
        if minute != self._answer[0]:
            local = datetime.datetime.fromtimestamp(minute * 60, self._zone)
            self._answer = (minute, bool(self._minutes[local.weekday()][60 * local.hour + local.minute]))
        return self._answer[1]

    def _mark(self, day: int, hours: str) -> None:
        first, last = minutes_of(hours)
        if first < last:
            self._minutes[day][first:last] = b"\1" * (last - first)
            return
        self._minutes[day][first:] = b"\1" * (DAY_MINUTES - first)
        self._minutes[(day + 1) % 7][:last] = b"\1" * last
