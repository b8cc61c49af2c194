"""Terminals: what is printed shows foreign text and is never steered by it, in whatever letters the terminal has. What
is drawn belongs to `terminal`."""

from __future__ import annotations

import io
import sys
from typing import TextIO

import typer
from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderHook, RenderResult
from rich.measure import Measurement
from rich.segment import Segment

from tapline.models.foreign_text import clean

_MAX_CHARS = 1 << 16
_IN_ASCII = str.maketrans({"…": "~", "\N{REPLACEMENT CHARACTER}": "?"})
"""One character each, so that columns stay."""


def make_console(file: TextIO | None = None, *, stderr: bool = False, width: int | None = None) -> Console:
    """A console without markup in texts, on which everything is cleaned, and written in what its encoding has."""
    console = Console(file=file, stderr=stderr, width=width, markup=False, emoji=False, highlight=False)
    console.push_render_hook(_CleanAll())
    return console


def say(message: str) -> None:
    """Tell the user on standard error, in one line."""
    typer.echo(encodable(clean(message, _MAX_CHARS), sys.stderr.encoding), err=True)


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


class Cleaned:
    """A renderable whose text is cleaned after it has its place; its own styles and controls stay."""

    def __init__(self, renderable: ConsoleRenderable) -> None:
        self._renderable = renderable

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for text, style, control in console.render(self._renderable, options):
            cleaned = text if control else encodable(clean(text, _MAX_CHARS, keep="\n"), options.encoding)
            yield Segment(cleaned, style, control)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement.get(console, options, self._renderable)


class _CleanAll(RenderHook):
    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        """Clean whatever is printed."""
        return [Cleaned(renderable) for renderable in renderables]
