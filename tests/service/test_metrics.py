"""The reference of metrics in the documentation is what the code exposes."""

from tapline.service.metrics import Metrics, reference_table
from tests.paths import ROOT

PAGE = ROOT / "docs" / "metrics.md"


def test_the_page_holds_the_table_that_the_code_makes():
    assert reference_table() in PAGE.read_text(), "write it anew: python -m tapline.service.metrics > docs/metrics.md"


def test_every_own_metric_is_in_the_table():
    table = reference_table()
    for family in Metrics().registry.collect():
        if family.name.startswith("tapline_"):
            assert f"`{family.name}" in table
