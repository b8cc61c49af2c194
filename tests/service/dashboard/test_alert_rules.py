"""What the pages say of alert rules at work, and of those that were refused; and what a page's address may ask for."""

import pytest
from markupsafe import Markup

from tapline.service.dashboard.alerts_page import rules_state
from tapline.service.dashboard.board import asked
from tapline.service.dashboard.frame import html
from tapline.service.dashboard.health_page import _rules_rows
from tapline.service.history.filters import AlertFilter, FilterError
from tests.service.alerts.ruled import rule
from tests.service.alerts.test_alert_watch import Watched


def test_rules_that_were_refused_are_told_with_their_mistakes_and_those_that_work_on(tmp_path):
    watched = Watched(tmp_path, rule())
    assert "1 rule of rules.toml at work" in rules_state(watched.watch)
    [[count, file, state]] = _rules_rows(watched.watch)
    assert (count, file) == (1, str(watched.watch.path))
    assert "good" in html(state)
    watched.change(rule(**{'"<b>x"': "1"}))
    assert watched.watch.problem is not None
    for said in (rules_state(watched.watch), html(_rules_rows(watched.watch)[0][2])):
        assert "alarm" in said
        assert "&lt;b&gt;x" in said
        assert "<b>" not in said
    assert "1 rule of rules.toml at work" in rules_state(watched.watch)


def test_without_rules_nothing_is_said_of_them():
    assert rules_state(None) == Markup("")
    assert _rules_rows(None) == []


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ({"severity": "bogus"}, "`severity`: expected one of low, medium, high, critical"),
        ({"kind": "bogus"}, "`kind`: expected one of flow, trace, rate, drift"),
        ({"acknowledged": "perhaps"}, "acknowledged"),
    ],
)
def test_what_a_filter_may_be_is_told(query, said):
    with pytest.raises(FilterError, match=said) as raised:
        asked(query, AlertFilter)
    assert "enum" not in str(raised.value)
