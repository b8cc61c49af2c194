"""The documentation site is built without a warning, has every page, and asks no other host for anything."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.documentation.pages import page_names
from tests.paths import ROOT

SPHINX = ["--conf-dir", "docs", "--nitpicky", "--fail-on-warning", "--keep-going"]
LOADED = re.compile(r"""<(?:script|img|iframe|source)[^>]*\ssrc=["'](https?:)?//|<link[^>]*\shref=["'](https?:)?//""")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp("site") / "site"
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", *SPHINX, "-q", ".", str(out)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return out


def test_make_builds_as_this_test_does():
    assert " ".join(SPHINX) in (ROOT / "Makefile").read_text()


@pytest.mark.slow
@pytest.mark.whole
def test_every_page_is_there_and_found(site):
    pages = [page for page in page_names() if page not in ("README.md",)]
    assert [page for page in pages if not (site / page).with_suffix(".html").exists()] == []
    index = (site / "searchindex.js").read_text()
    assert all(f'"{page.removesuffix(".md")}"' in index for page in pages)
    assert "docs/index.html" in (site / "index.html").read_text()


@pytest.mark.slow
@pytest.mark.whole
def test_no_page_asks_another_host(site):
    pages = list(Path(site).rglob("*.html"))
    assert len(pages) > 30
    assert [page.name for page in pages if LOADED.search(page.read_text())] == []
    assert LOADED.search('<script async="async" src="https://cdn.example.org/x.js">')


@pytest.mark.slow
@pytest.mark.whole
def test_every_route_is_on_the_page_of_the_api(site):
    document = json.loads((site / "docs" / "openapi.json").read_text())
    page = (site / "docs" / "api.html").read_text()
    assert len(document["paths"]) > 15
    for path, operations in document["paths"].items():
        assert all(f"{method.upper()} {path}" in page for method in operations)
