"""What every page has around it: title, navigation, theme, style sheet; and the small parts that pages are made of."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from fastapi import Request
from markupsafe import Markup, escape
from nicegui import ui

from tapline.service.dashboard.allowed import signed_in

NAVIGATION = {
    "/": "Live", "/alerts": "Alerts", "/flows": "Flows", "/hosts": "Hosts", "/captures": "Captures",
    "/models": "Models", "/health": "Health",
}  # fmt: skip
THEMES = ("auto", "light", "dark")
THEME_COOKIE = "tapline_theme"

_STYLE = Path(__file__).with_name("dashboard.css").read_text()
_DARK = {"light": False, "dark": True}

Tone = Literal["", "quiet", "good", "caution", "alarm", "grave"]

ASK_SECONDS = 2

_LEAVE = f"""<script>
setInterval(async () => {{
  if (!window.socket || window.socket.connected) return;
  try {{
    const answer = await fetch('/v1/models', {{cache: 'no-store'}});
    if (answer.status === 401) location.reload();
  }} catch {{ /* the service is gone: the page waits for it */ }}
}}, {ASK_SECONDS * 1000});
</script>"""
"""Leads a page whose session has ended to where one signs in: it has lost its connection, and would stay as it was."""


@contextlib.contextmanager
def frame(request: Request, title: str, *, heading: bool = True) -> Iterator[None]:
    """A page: its head and navigation; what is built inside the block is its content."""
    ui.page_title(f"{title} · tapline")
    ui.add_css(_STYLE)
    theme = request.cookies.get(THEME_COOKIE, "auto")
    caller = signed_in(request)
    if caller.token is not None:
        ui.add_body_html(_LEAVE)
    ui.dark_mode(_DARK.get(theme))
    ui.colors(primary="#2f7ea8")
    with ui.header(elevated=False), ui.element("div").classes("bar"):
        ui.link("tapline", "/").classes("brand")
        with ui.element("nav").classes("pages").props('aria-label="Pages"'):
            for path, name in NAVIGATION.items():
                link = ui.link(name, path)
                if path == request.url.path:
                    link.props("aria-current=page")
        _theme_choice(request, theme)
        if caller.token is not None:
            _sign_out(caller.name)
    with ui.element("div").classes("content").props("id=content") as content:
        if heading:
            ui.element("h1").add_slot("default", escape(title))
        yield
    ui.skip_link("Skip to the content", target=content)


def _theme_choice(request: Request, theme: str) -> None:
    """The next theme of the three, kept in a cookie."""
    chosen = THEMES[(THEMES.index(theme) + 1) % len(THEMES)] if theme in THEMES else "light"
    icon = {"auto": "brightness_auto", "light": "light_mode", "dark": "dark_mode"}.get(theme, "brightness_auto")
    cookie = f"{THEME_COOKIE}={chosen};path=/;max-age=31536000;samesite=strict"
    ui.button(icon=icon).props(f'flat round dense aria-label="Theme: {theme}; switch to {chosen}"').on(
        "click", js_handler=f"() => {{ document.cookie = '{cookie}'; location.reload(); }}"
    )


def _sign_out(name: str) -> None:
    """Whose key it is, and the button that ends the session."""
    with ui.element("form").props('method=post action="/sign-out"').classes("who"):
        ui.label(name).classes("quiet")
        ui.element("button").props("type=submit").add_slot("default", "Sign out")


@contextlib.contextmanager
def panel(heading: str = "") -> Iterator[ui.element]:
    """A box with a heading."""
    with ui.element("section").classes("panel") as section:
        if heading:
            ui.element("h2").add_slot("default", escape(heading))
        yield section


class Figure:
    """A number with its name."""

    def __init__(self, name: str, hint: str = "") -> None:
        with ui.element("div").classes("figure") as box:
            if hint:
                ui.tooltip(hint)
            self._value = ui.label("-").classes("value")
            ui.label(name).classes("name")
        self._box = box

    def show(self, text: str, tone: Tone = "") -> None:
        """Show another value."""
        self._value.set_text(text)
        self._value.classes(replace=f"value {tone}".strip())


class PlainTable:
    """A table of few rows that is shown as a whole.

    `stacked`: where the window is narrow, cells from the third on stand below each other.
    """

    def __init__(
        self, columns: Sequence[str], numbers: Iterable[str] = (), empty: str = "nothing yet", *, stacked: bool = False
    ) -> None:
        self._kinds = "plain stacked" if stacked else "plain"
        self._columns = columns
        self._numbers = set(numbers)
        self._empty = empty
        with ui.element("div").classes("scroll"):
            self._html = ui.html("", sanitize=False)
        self.show([])

    def show(self, rows: Iterable[Sequence[Cell]]) -> None:
        """Show other rows."""
        body = Markup("").join(
            Markup("<tr>{}</tr>").format(
                Markup("").join(
                    Markup('<td{} data-column="{}">{}</td>').format(self._kind(column), column, html(cell))
                    for column, cell in zip(self._columns, row, strict=True)
                )
            )
            for row in rows
        )
        if not body:
            self._html.set_content(Markup('<p class="quiet">{}</p>').format(self._empty))
            return
        heads = Markup("").join(
            Markup('<th scope="col"{}>{}</th>').format(self._kind(column), column) for column in self._columns
        )
        head = Markup("<thead><tr>{}</tr></thead>").format(heads) if any(map(str.strip, self._columns)) else ""
        self._html.set_content(Markup('<table class="{}">{}<tbody>{}</tbody></table>').format(self._kinds, head, body))

    def _kind(self, column: str) -> Markup:
        return Markup(' class="number"') if column in self._numbers else Markup("")


Cell = str | int | float | Markup | None
"""What stands in a table: text, foreign or not, is escaped; `Markup` is HTML already."""


def html(cell: Cell) -> Markup:
    """The HTML of a cell."""
    return escape("" if cell is None else cell)


def link(text: str, target: str) -> Markup:
    """A link; `target` is a path of this service with its query already encoded."""
    return Markup('<a href="{}">{}</a>').format(target, text)


def toned(text: str, tone: Tone) -> Markup:
    """Text in a colour that says how it is meant; the words say it too."""
    return Markup('<span class="{}">{}</span>').format(tone, text) if tone else escape(text)


def tag(text: str, tone: Tone = "quiet") -> Markup:
    """A short word in a frame."""
    return Markup('<span class="tag {}">{}</span>').format(tone, text)


def joined(cells: Iterable[Cell], between: str = " ") -> Markup:
    """Several in one cell."""
    return Markup(between).join(html(cell) for cell in cells)
