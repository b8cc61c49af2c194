"""A short soak; `make soak SECONDS=600` is the long one."""

import pytest

from tests.soak.run import soak

pytestmark = pytest.mark.whole

SECONDS = 20


def test_soak():
    report = soak(SECONDS, seed=3)
    assert report.wrong == [], "\n".join(report.lines)
