"""The messages that pages explain are those that the program says."""

import ast
import re

import pytest

from tests.documentation.pages import text_of
from tests.paths import ROOT

QUOTED = re.compile(r"(?m)^\| (``?)(.+?)\1")
LEAST_CHARS = 6


def said_texts():
    """Every text of the code, f-strings in their fixed parts with dots between."""
    texts = []
    for room in ("models", "service", "training"):
        for path in (ROOT / room).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    texts.append("...".join(part.value for part in node.values if isinstance(part, ast.Constant)))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    texts.append(node.value)
    return "\n".join(texts)


def unsaid(page, texts):
    """Messages of the first column of a page's tables of which some part is said nowhere."""
    messages = [found[1] for table in re.split(r"(?m)^\| message ", page)[1:] for found in QUOTED.findall(table)]
    return messages, [
        message
        for message in messages
        for part in re.split(r"\.\.\.", message)
        if len(part.strip(" ;:,")) >= LEAST_CHARS and part.strip(" ;:,") not in texts
    ]


@pytest.mark.parametrize(("page", "least"), [("docs/troubleshooting.md", 40), ("docs/upgrade.md", 1)])
def test_messages_are_those_of_the_code(page, least):
    messages, missing = unsaid(text_of(page), said_texts())
    assert len(messages) >= least
    assert missing == []


def test_a_message_that_nobody_says_is_named():
    page = "| message | why |\n|---|---|\n| `no colour ... of the moon` | x |\n| `no flow of this number` | y |\n"
    assert unsaid(page, said_texts())[1] == ["no colour ... of the moon"] * 2
