"""The pages that name files name files that are there."""

import re

import pytest

from tests.paths import ROOT

PATHS = re.compile(r"`((?:service|models|training|tests|benchmarks|zeek|docs)/[\w/.-]*)`")


@pytest.mark.parametrize("page", ["docs/robustness.md"])
def test_paths_exist(page):
    named = PATHS.findall((ROOT / page).read_text())
    assert len(named) > 10
    assert [path for path in named if not (ROOT / path).exists()] == []
