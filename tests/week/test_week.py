"""Nothing is lost in a week but what counters say."""

import pytest

from tests.week.run import week


@pytest.mark.whole
@pytest.mark.slow
def test_a_short_week():
    report = week(day_seconds=3, before=None, seed=1)
    assert not report.wrong, report.lines
