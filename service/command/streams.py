"""Standard output and error: what is said there shows foreign text and is never steered by it, in whatever letters they
have. What draws on a terminal belongs to `console`."""

from __future__ import annotations

import io
import sys
from typing import NoReturn

import typer

from tapline.models.foreign_text import clean

MAX_CHARS = 1 << 16
_IN_ASCII = str.maketrans({"…": "~", "\N{REPLACEMENT CHARACTER}": "?"})
"""One character each, so that columns stay."""


def say(message: str) -> None:
    """Tell the user on standard error, in one line."""
    typer.echo(encodable(clean(message, MAX_CHARS), sys.stderr.encoding), err=True)


def fail(message: str, status: int) -> NoReturn:
    """Say why a command ends, and end it with this status."""
    say(message)
    raise typer.Exit(status)


def encodable(text: str, encoding: str | None) -> str:
    """The text in letters that an encoding has, with `?` for others."""
    try:
        text.encode(encoding or "utf-8")
    except UnicodeEncodeError:
        return text.translate(_IN_ASCII).encode(encoding or "utf-8", "replace").decode(encoding or "utf-8")
    return text


def make_streams_safe() -> None:
    """Let standard output and error take any text: what their encoding lacks becomes `?`."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
