"""Terminals: what is printed shows foreign text and is never steered by it, in whatever letters the terminal has. What
is drawn belongs to `terminal`."""

from __future__ import annotations

from typing import TextIO

from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderHook, RenderResult
from rich.measure import Measurement
from rich.segment import Segment

from tapline.models.foreign_text import clean
from tapline.service.command.streams import MAX_CHARS, encodable


def make_console(file: TextIO | None = None, *, stderr: bool = False, width: int | None = None) -> Console:
    """A console without markup in texts, on which everything is cleaned, and written in what its encoding has."""
    console = Console(file=file, stderr=stderr, width=width, markup=False, emoji=False, highlight=False)
    console.push_render_hook(_CleanAll())
    return console


class Cleaned:
    """A renderable whose text is cleaned after it has its place; its own styles and controls stay."""

    def __init__(self, renderable: ConsoleRenderable) -> None:
        self._renderable = renderable

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for text, style, control in console.render(self._renderable, options):
            cleaned = text if control else encodable(clean(text, MAX_CHARS, keep="\n"), options.encoding)
            yield Segment(cleaned, style, control)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement.get(console, options, self._renderable)


class _CleanAll(RenderHook):
    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        """Clean whatever is printed."""
        return [Cleaned(renderable) for renderable in renderables]
