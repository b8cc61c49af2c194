"""Text from outside, made fit for a terminal, a log line and a sheet: labels, names and reasons that others chose."""

from __future__ import annotations

MAX_SHOWN_CHARS = 256
"""Longest foreign text that is shown in full."""

_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


def clean(text: str, limit: int = MAX_SHOWN_CHARS, keep: str = "") -> str:
    """The text in one piece of at most `limit` characters, where what does not print stands as its escape.

    Control characters steer a terminal, characters that turn the direction of writing hide what follows; both are
    written out (`\\x1b`), but for those in `keep`.
    """
    if len(text) > limit:
        text = f"{text[: limit - 1]}…"
    if text.isprintable():
        return text
    return "".join(
        char
        if char.isprintable() or char in keep
        else char.encode("ascii", "backslashreplace").decode()
        if not char.isascii()
        else f"\\x{ord(char):02x}"
        for char in text
    )


def sheet_cell(text: str) -> str:
    """The text as a cell that a spreadsheet shows and does not compute (OWASP, "CSV Injection")."""
    text = clean(text)
    return f"'{text}" if text.startswith(_FORMULA_STARTS) else text
