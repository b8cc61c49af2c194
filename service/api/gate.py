"""Who may ask: checked from a request's head alone, before its body is read and before any route is looked for.

A web page is a client, too. One that is foreign is known by `Origin` or `Sec-Fetch-Site`; one that has made its own
name point here (DNS rebinding) by `Host`.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
import secrets

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from tapline.service.api.errors import ApiError, error_response
from tapline.service.api.limits import limit_mb, too_large
from tapline.service.settings import Settings, is_loopback

OPEN_ROUTES = ("/healthz", "/readyz")
"""Routes that answer without an API key: what an orchestrator probes."""

OPEN_PAGES = ("/docs", "/docs/oauth2-redirect", "/redoc", "/openapi.json")
"""The documentation, which is the same everywhere; a key can be entered there."""

_OPEN_FILES = "/static-offline-docs/"
_ASK_A_PERSON = 'Basic realm="tapline: any name, the API key as password", charset="UTF-8"'
"""Lets a browser ask for the key: of pages, foreign ones cannot use what it remembers."""

_OWN_SITE = ("same-origin", "none")
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\s:/?#@\[\]]+)(?::[0-9]{1,5})?")

_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"cross-origin-resource-policy", b"same-origin"),
]
"""Keep what is answered out of foreign pages, whose browser these headers are for."""


class Gate:
    """Refuses, in this order: foreign hosts (421), foreign pages (403), requests without the key (401), bodies that
    say they are too large (413)."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._settings = settings
        self._named = {_plain(name) for name in settings.served_names}
        key = settings.api_key.get_secret_value() if settings.api_key else None
        self._keys = _encodings(key) if key is not None else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] == "websocket":  # of a page: one that is refused never opens
            try:
                self._check(scope)
            except ApiError:
                await send({"type": "websocket.close", "code": 1008})
                return
            await self._app(scope, receive, send)
            return

        async def guarded(message: dict[str, object]) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", []), *_HEADERS]}  # type: ignore[misc]
            await send(message)

        try:
            self._check(scope)
        except ApiError as error:
            answer = error_response(error.status_code, error.code, error.detail, dict(error.headers or {}))
            await answer(scope, receive, guarded)  # type: ignore[arg-type]
            return
        await self._app(scope, receive, guarded)  # type: ignore[arg-type]

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        host = headers.get("host")
        if host is not None and not self._serves(host):
            raise ApiError(
                421, "foreign_host", "this service is not served under that name: name it with --served-names"
            )
        origin, site = headers.get("origin"), headers.get("sec-fetch-site", "none")
        if site not in _OWN_SITE or not self._is_own(origin, host):
            raise ApiError(403, "foreign_page", "requests of pages from elsewhere are refused")
        path = scope["path"]
        is_open = path in OPEN_ROUTES or path in OPEN_PAGES or path.startswith(_OPEN_FILES)
        if self._keys is not None and not is_open and not self._has_key(scope):
            way = _ASK_A_PERSON if "text/html" in headers.get("accept", "") else "Bearer"
            raise ApiError(
                401, "unauthorized", "send the API key as `Authorization: Bearer KEY` or `X-API-Key: KEY`",
                headers={"WWW-Authenticate": way},
            )  # fmt: skip
        declared, most_mb = headers.get("content-length", ""), limit_mb(path, self._settings)
        if declared.isdigit() and int(declared) > most_mb << 20:
            raise too_large(most_mb)

    def _serves(self, host: str) -> bool:
        """Whether requests may call the service so: by its address, which no foreign name can pass for, or by a name
        that is its own."""
        found = _HOST.fullmatch(host)
        if found is None:
            return False
        name = _plain(found[1])
        if name in self._named or name == _plain(self._settings.host) or is_loopback(name):
            return True
        return not is_loopback(self._settings.host) and _is_address(name)

    def _is_own(self, origin: str | None, host: str | None) -> bool:
        """Whether a page of that origin is the service's own."""
        if origin is None:
            return True
        scheme, _, place = origin.partition("://")
        found = _HOST.fullmatch(place)
        if scheme not in ("http", "https") or found is None:
            return False
        return place.lower() == (host or "").lower() or _plain(found[1]) in self._named

    def _has_key(self, scope: Scope) -> bool:
        assert self._keys is not None
        given: list[bytes] = []
        for name, value in scope["headers"]:
            if name == b"x-api-key":
                given.append(value.strip())
            elif name == b"authorization":
                scheme, _, credentials = value.strip().partition(b" ")
                if scheme.lower() == b"bearer":
                    given.append(credentials.strip())
                elif scheme.lower() == b"basic":
                    given.append(_password(credentials.strip()))
        return any(secrets.compare_digest(one, key) for one in given for key in self._keys)


def _password(credentials: bytes) -> bytes:
    """The password of Basic authentication (RFC 7617), whatever the name; empty where there is none."""
    try:
        return base64.b64decode(credentials, validate=True).partition(b":")[2]
    except binascii.Error:
        return b""


def _encodings(key: str) -> list[bytes]:
    """The bytes that clients send for a key: UTF-8, or ISO 8859-1 where their libraries take headers for that."""
    try:
        return list({key.encode(), key.encode("iso-8859-1")})
    except UnicodeEncodeError:
        return [key.encode()]


def _plain(name: str) -> str:
    """A host name or address without what may be written differently."""
    return name.strip("[]").rstrip(".").lower()


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
