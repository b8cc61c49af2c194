"""Links between pages lead to files and headings that there are. Sphinx checks those of the site when it is built;
these are of every page, and take no time. Other hosts are asked by `make links`."""

import itertools
import re
from urllib.parse import unquote, urlsplit

import pytest
from myst_parser.mdit_to_docutils.base import github_slugify

from tests.documentation.pages import page_names, text_of, tokens_of
from tests.paths import ROOT

EXPLICIT = re.compile(r"(?m)^\(([\w-]+)\)=$")


def links(text):
    """What the links and images of a page lead to."""
    for token in tokens_of(text):
        for child in token.children or []:
            target = child.attrs.get("href") or child.attrs.get("src")
            if target:
                yield unquote(str(target))


def anchors(text):
    """What the headings of a page are called by, as hosts of repositories and the site make it."""
    tokens, found = tokens_of(text), set(EXPLICIT.findall(text))
    for opening, title in itertools.pairwise(tokens):
        if opening.type == "heading_open":
            words = "".join(child.content for child in title.children if child.type in ("text", "code_inline"))
            slug = unique = github_slugify(words)
            number = 0
            while unique in found:
                number += 1
                unique = f"{slug}-{number}"
            found.add(unique)
    return found


def broken(page, text):
    for target in links(text):
        parts = urlsplit(target)
        if parts.scheme or parts.netloc:
            if parts.scheme not in ("http", "https"):
                yield f"{page}: {target}: a scheme that nobody follows"
            continue
        path = (ROOT / page).parent / parts.path if parts.path else ROOT / page
        if parts.path and not path.exists():
            yield f"{page}: {target}: no such file"
        elif parts.fragment and path.suffix == ".md":
            there = text if not parts.path else path.read_text(encoding="utf-8")
            if parts.fragment not in anchors(there):
                yield f"{page}: {target}: no such heading"


CARDS = [str(path.relative_to(ROOT)) for path in sorted(ROOT.glob("models/zoo/*/*/README.md"))]


@pytest.mark.parametrize("page", [*page_names(), *CARDS])
def test_links_lead_somewhere(page):
    assert list(broken(page, text_of(page))) == []


def test_links_that_lead_nowhere_are_named():
    text = "# A page\n\n[a](#a-page) [b](#b) [c](nowhere.md) [d](README.md#no) [e](README.md) [f](ftp://h/)"
    assert [line.split(": ", 1)[1] for line in broken("x.md", text)] == [
        "#b: no such heading",
        "nowhere.md: no such file",
        "README.md#no: no such heading",
        "ftp://h/: a scheme that nobody follows",
    ]
