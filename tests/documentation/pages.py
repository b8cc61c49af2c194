"""The pages that people read, and the blocks in them, each with the mark that says what becomes of it.

A mark is an HTML comment right before a block, which no reader sees:

* `<!-- not run: REASON -->`: nobody runs it here; it is parsed all the same.
* `<!-- runs on until: TEXT -->`: it does not end by itself; what follows is read once it has said TEXT.
* `<!-- file: NAME -->`: what the page says to write into this file.
* `<!-- status: NUMBER -->`: it ends with this status, not with 0.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from markdown_it import MarkdownIt
from markdown_it.token import Token

from tests.paths import ROOT

SHELL = ("console", "shell", "sh", "bash")
DATA = ("json", "toml", "yaml")
SHOWN = ("text", "nginx", "ini", "zeek", "http", "sql", "diff")
"""Languages of what is looked at, and neither run nor read by a program here."""
LANGUAGES = (*SHELL, *DATA, *SHOWN, "python")

_PATTERNS = ("*.md", "docs/*.md", "docs/notebooks/*.md", "zeek/*.md", "training/*.md", "benchmarks/*.md")
_MARK = re.compile(r"<!--\s*(?:(not run|runs on until|file|status):\s*(.*?))?\s*-->", re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block: where it stands, its language, its text, and what its mark says."""

    page: str
    line: int
    language: str
    text: str
    mark: str = ""
    said: str = ""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def page_names() -> list[str]:
    """Every page, by its path in the repository."""
    return sorted(str(path.relative_to(ROOT)) for pattern in _PATTERNS for path in ROOT.glob(pattern))


def text_of(page: str) -> str:
    """What stands on a page."""
    return (ROOT / page).read_text(encoding="utf-8")


def tokens_of(text: str) -> list[Token]:
    """A page as Markdown; headings, tables, fences and links are those of CommonMark with tables."""
    return MarkdownIt("commonmark").enable("table").parse(text)


def blocks(page: str, language: str = "") -> list[Block]:
    """The blocks of a page in this language, or in any; directives of the site are none."""
    return [block for block in blocks_of(page, text_of(page)) if language in ("", block.language)]


def blocks_of(page: str, text: str) -> Iterator[Block]:
    """The same of a text; `page` is what it is called."""
    before = None
    for token in tokens_of(text):
        if token.type == "fence" and not token.info.startswith("{"):
            mark, said = _mark(before)
            language = (token.info.split() or [""])[0]
            yield Block(page, (token.map or [0])[0] + 1, language, token.content, mark, said)
        before = token


def inline_code(page: str) -> Iterator[tuple[int, str]]:
    """What stands between backquotes in the prose of a page, with the line of its paragraph."""
    for token in tokens_of(text_of(page)):
        for child in token.children or []:
            if child.type == "code_inline":
                yield (token.map or [0])[0] + 1, child.content


def _mark(before: Token | None) -> tuple[str, str]:
    if before is None or before.type != "html_block":
        return "", ""
    found = _MARK.search(before.content)
    return (found[1] or "", " ".join((found[2] or "").split())) if found else ("", "")
