"""The pages that name files, and what is in them, name what is there."""

import re

import pytest

from tests import rooms
from tests.paths import ROOT

PATHS = re.compile(r"`((?:service|models|training|tests|benchmarks|zeek|docs|src)/[\w/.-]*)(?::([\w.]+))?`")


PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "docs/architecture.md",
    "docs/robustness.md",
    "training/README.md",
    "benchmarks/README.md",
]


@pytest.mark.parametrize("page", PAGES)
def test_paths_exist(page):
    named = PATHS.findall((ROOT / page).read_text())
    assert named
    assert [path for path, _ in named if not (ROOT / path).exists()] == []


def test_names_are_in_their_files():
    named = [(path, name) for path, name in PATHS.findall((ROOT / "docs/architecture.md").read_text()) if name]
    assert len(named) > 20
    missing = [
        f"{path}:{name}"
        for path, name in named
        for part in name.split(".")
        if not re.search(rf"(?m)^\s*(async )?(def|class) {part}\b", (ROOT / path).read_text())
    ]
    assert missing == []


def test_the_import_graph_is_the_one_that_is():
    assert rooms.graph() in (ROOT / "docs/architecture.md").read_text(), "write it anew: python -m tests.rooms"


def test_contributing_is_one_page():
    assert len((ROOT / "CONTRIBUTING.md").read_text().splitlines()) <= 60
