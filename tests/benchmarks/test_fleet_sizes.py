"""The sizes of fleets in docs/fleet.md are what their costs give, by arithmetic that is right on round numbers."""

import dataclasses

import pytest

from tests.benchmarks.test_all import module
from tests.paths import ROOT

PAGE = ROOT / "docs" / "fleet.md"
ROUND = {
    "FLOWS": 1000, "PUBLISHED": 1.5, "BUS_BYTES": 1000, "SERVICE_US": 400, "LOOP_US": 500, "DATABASE_US": 100,
    "OPERATIONS": 2e9, "SCORING_US": 100, "IDLE_MB": 200, "OPEN_BYTES": 1000, "WINDOW_SECONDS": 600, "ROW_BYTES": 500,
    "SERIES": 200, "LABEL_SERIES": 100, "LOOP_SHARE": 0.5, "CORE_SHARE": 0.5, "HOST_CORES": 4, "KEPT_DAYS": 10,
}  # fmt: skip
EXPECTED = {
    "flows": 10_000, "publications": 15_000, "services": 20, "cores": 7, "hosts": 4, "operations": 30,
    "open_flows": 6_000_000, "memory": 10, "bus": 120, "rows": 864, "disk": 4.32, "database_cores": 1.5, "series": 6000,
}  # fmt: skip


@pytest.fixture
def fleet(monkeypatch):
    return module("fleet", monkeypatch)


def test_the_page_has_both_tables_as_computed(fleet):
    text = PAGE.read_text()
    assert fleet.written(text) == text, "python benchmarks/fleet.py --write"
    assert text.count("| 100 sensors |") == 1


def test_sizes_of_round_costs(fleet, monkeypatch):
    assert set(ROUND) == set(fleet.NAMES.values())
    for name, value in ROUND.items():
        monkeypatch.setattr(fleet, name, dataclasses.replace(getattr(fleet, name), value=value))
    size = fleet.Size(10)
    assert {name: getattr(size, name) for name in EXPECTED} == pytest.approx(EXPECTED)


def test_a_page_without_marks_is_refused(fleet):
    with pytest.raises(ValueError, match="expected <!-- costs"):
        fleet.written("no marks")
