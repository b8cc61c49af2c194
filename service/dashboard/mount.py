"""Joins the pages to the application: which paths are theirs, and what a browser may do with them.

NiceGUI keeps its pages in one application of the process, so there is one dashboard a process.
"""

from __future__ import annotations

from fastapi import FastAPI
from nicegui import app as pages
from nicegui import ui
from starlette.datastructures import MutableHeaders
from starlette.routing import Match, Mount
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tapline.service.dashboard.activity import Activity
from tapline.service.dashboard.all_pages import PATHS, add_pages
from tapline.service.dashboard.board import Board
from tapline.service.process.supervisor import Part
from tapline.service.runtime import Service

_FILES = "/_nicegui"

RECONNECT_SECONDS = 10.0
"""How long a page whose connection broke may take to come back before it is forgotten."""

HISTORY_MESSAGES = 200
"""Updates kept for a page whose connection broke."""


CONTENT_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; font-src 'self' data:; object-src 'none'; base-uri 'self'; form-action 'self'; "
    "frame-ancestors 'none'"
)
"""Vue compiles templates in the browser, so scripts may be made there; all come from here."""


class _Pages(Mount):
    """Takes the paths of pages and no others: what is unknown below `/v1` stays an error of the API."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """As of any route."""
        path = scope["path"]
        if path in PATHS or path.startswith(_FILES):
            return super().matches(scope)
        return Match.NONE, {}


class _Policy:
    """Says to browsers that nothing comes from elsewhere, and nothing goes there."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["Content-Security-Policy"] = CONTENT_POLICY
                headers["Referrer-Policy"] = "same-origin"
            await send(message)

        await self._app(scope, receive, guarded)


def mount_dashboard(service: Service, app: FastAPI) -> None:
    """Add the pages to the application; call once in a process, before it starts."""
    activity = Activity(service)
    reading: list[Part] = []

    async def stop() -> None:
        await service.supervisor.stop(reading)

    pages.on_startup(lambda: reading.append(service.supervisor.start("dashboard", activity.run)))
    pages.on_shutdown(stop)
    add_pages(Board(service, activity))
    ui.run_with(
        app,
        title="tapline",
        favicon=FAVICON,
        dark=None,
        language="en-US",
        binding_refresh_interval=None,
        reconnect_timeout=RECONNECT_SECONDS,
        message_history_length=HISTORY_MESSAGES,
        show_welcome_message=False,
        tailwind=False,
        gzip_middleware_factory=None,
    )
    mounted = app.router.routes.pop()
    assert isinstance(mounted, Mount)
    app.router.routes.append(_Pages(mounted.path, app=_Policy(mounted.app)))


FAVICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32"><rect width="32" height="32" rx="6" fill="#14506e"/>'
    '<g fill="#fff"><rect x="5" y="8" width="3" height="8"/><rect x="11" y="12" width="3" height="4"/>'
    '<rect x="17" y="16" width="3" height="9"/><rect x="23" y="6" width="3" height="10"/></g></svg>'
)
"""Payload lengths, up and down."""
