"""Text from outside, made fit for a terminal, a log line and a sheet: labels, names and reasons that others chose."""

from __future__ import annotations

MAX_SHOWN_CHARS = 256
"""Longest foreign text that is shown in full."""

UNPRINTABLE = "\N{REPLACEMENT CHARACTER}"

_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


def clean(text: str, limit: int = MAX_SHOWN_CHARS, keep: str = "") -> str:
    """The text, at most `limit` characters of it, with a mark in the place of each character that does not print.

    Control characters steer a terminal or begin a new line of a log, characters that turn the direction of writing
    hide what follows. Those in `keep` stay.
    """
    if len(text) > limit:
        text = f"{text[: limit - 1]}…"
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char in keep else UNPRINTABLE for char in text)


def sheet_cell(text: str) -> str:
    """The text as a cell that a spreadsheet shows and does not compute (OWASP, "CSV Injection"); a sign alone is no
    formula."""
    return f"'{clean(text)}" if text.startswith(_FORMULA_STARTS) and len(text) > 1 else clean(text)
