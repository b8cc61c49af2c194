"""What drift is, in words: what moved, what it means, or why nothing is told."""

import pytest

from tapline.service.dashboard.frame import html
from tapline.service.dashboard.shown_drift import DRIFT_COLUMNS, MEANINGS, drift_meanings, drift_rows, drift_state
from tapline.service.drift.model_drift import DriftMeasure, ModelDrift


def drift(*measures, verdicts=1000):
    return ModelDrift("flows", "1", 1, 2, verdicts, list(measures))


UNKNOWN = DriftMeasure("unknown", "last week", 0.21, 0.1, "unknown 24.2% (was 3.1%)")
QUIET = DriftMeasure("labels", "last week", 0.05, 0.3, "mix of labels: <b> 1.0% (was 0.0%)")
MADE_FROM = DriftMeasure("labels", "baseline", 0.63, 1.0, "mix of labels: TLS 61.0% (was 22.0%)")


def test_a_row_says_what_moved_and_below_stands_what_it_means():
    found = drift(UNKNOWN, QUIET, MADE_FROM)
    moved, quiet, made_from = (dict(zip(DRIFT_COLUMNS, map(html, row), strict=True)) for row in drift_rows(found))
    assert ("caution" in moved["distance"], moved["limit"]) == (True, "0.10")
    assert ("caution" in quiet["distance"], made_from["limit"]) == (False, "-")
    assert "&lt;b&gt;" in quiet["what moved"]
    unknown, information = drift_meanings(found)
    assert unknown == f"Unknown: {MEANINGS['unknown']}"
    assert information.startswith("What has no limit is for information")
    assert drift_meanings(drift(QUIET)) == ["All of it is within what is usual."]


@pytest.mark.parametrize(
    ("found", "problem", "said"),
    [
        (None, "SciPy is not installed: install it", "Not compared: SciPy is not installed: install it."),
        (None, None, "Nothing to compare yet: no verdict since the start, of the 300 that are wanted."),
        (drift(verdicts=66), None, "Nothing to compare yet: 66 of 300 verdicts in the last 24 hours."),
        (drift(MADE_FROM), None, "once 3 days of it had as many"),
        (drift(QUIET), None, "The checkpoint has no baseline: `tapline models baseline` makes one."),
        (drift(QUIET, MADE_FROM, verdicts=48_213), None, "48,213 verdicts in the last 24 hours."),
    ],
)
def test_why_nothing_or_little_is_told(found, problem, said):
    assert said in drift_state(found, problem)
