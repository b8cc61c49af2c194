"""Days and hours in a time zone, over midnight and over a change of clocks."""

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest

from tapline.service.alerts.rule_models import TimeWindow
from tapline.service.alerts.time_windows import WeekTimes, zone_of


def holds(windows, moment, zone="Europe/Zurich"):
    times = WeekTimes([TimeWindow(**window) for window in windows], zone_of(zone))
    return round(datetime.fromisoformat(moment).timestamp() * 1e6) in times


@pytest.mark.parametrize(
    ("windows", "moment", "wanted"),
    [
        ([{"hours": "08:00-18:00"}], "2026-01-05T07:00+00:00", True),  # 08:00 in Zurich
        ([{"hours": "08:00-18:00"}], "2026-01-05T06:59:59+00:00", False),
        ([{"hours": "08:00-18:00"}], "2026-01-05T16:59:59+00:00", True),
        ([{"hours": "08:00-18:00"}], "2026-01-05T17:00+00:00", False),
        ([{"hours": "08:00-18:00"}], "2026-07-06T06:00+00:00", True),  # in summer
        ([{"days": ["mon-fri"]}], "2026-01-09T22:59:59+00:00", True),  # Friday
        ([{"days": ["mon-fri"]}], "2026-01-09T23:00+00:00", False),  # Saturday in Zurich
        ([{"days": ["sat-mon"]}], "2026-01-05T12:00+00:00", True),
        ([{"days": ["sat-mon"]}], "2026-01-06T12:00+00:00", False),
        ([{"days": ["fri"], "hours": "22:00-06:00"}], "2026-01-10T04:59+00:00", True),  # the night to Saturday
        ([{"days": ["fri"], "hours": "22:00-06:00"}], "2026-01-10T05:00+00:00", False),
        ([{"days": ["fri"], "hours": "22:00-06:00"}], "2026-01-09T04:00+00:00", False),  # that to Friday
        ([{"days": ["sun"], "hours": "22:00-06:00"}], "2026-01-12T04:00+00:00", True),  # over the end of the week
        ([{"hours": "20:00-24:00"}], "2026-01-05T22:59+00:00", True),
        ([{"days": ["tue"]}, {"days": ["wed"]}], "2026-01-07T12:00+00:00", True),
        ([{"hours": "02:00-03:00"}], "2026-03-29T01:30+00:00", False),  # an hour that there is not
    ],
)
def test_windows(windows, moment, wanted):
    assert holds(windows, moment) is wanted


def test_an_answer_is_remembered_for_its_minute_alone():
    times = WeekTimes([TimeWindow(hours="00:01-00:02")], ZoneInfo("UTC"))
    assert [second * 1_000_000 in times for second in (59, 60, 119, 120, 60)] == [False, True, True, False, True]


@pytest.mark.parametrize("name", ["", "Nowhere/Land", "../../etc/passwd", "/etc/passwd", "\0", "Europe"])
def test_zones_that_there_are_not(name):
    with pytest.raises(ValueError, match="expected a time zone"):
        zone_of(name)
