"""Who may ask: checked from a request's head alone, before its body is read and before any route is looked for.

A web page is a client, too. One that is foreign is known by `Origin` or `Sec-Fetch-Site`; one that has made its own
name point here (DNS rebinding) by `Host`. Who has which key, and what it may do, `tapline.service.access` knows.
"""

from __future__ import annotations

import ipaddress
import math
import re
from urllib.parse import quote

from fastapi import Request
from starlette.datastructures import Headers
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tapline.service.access.access import CALLER, Access, Caller, TooManyFailuresError, WrongKeyError, given_keys
from tapline.service.access.scopes import SAFE_METHODS, Wanted, wanted_scope
from tapline.service.api.errors import ApiError, error_response
from tapline.service.api.limits import limit_mb, too_large
from tapline.service.api.page_headers import with_headers
from tapline.service.metrics import Metrics
from tapline.service.settings import Settings, is_loopback

SIGN_IN = "/sign-in"
MAX_ADDRESS_CHARS = 64
"""Of what a proxy says that a client's address is."""

_OWN_SITE = ("same-origin", "none")
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\s:/?#@\[\]]+)(?::[0-9]{1,5})?")
_POLICY_VIOLATION = 1008  # RFC 6455, 7.4.1


class Gate:
    """Refuses, in this order: foreign hosts (421), foreign pages (403), requests without a key (401), too many of a
    client or of a key (429), keys without the scope (403), bodies that say they are too large (413)."""

    def __init__(self, app: ASGIApp, settings: Settings, access: Access, metrics: Metrics) -> None:
        self._app = app
        self._settings = settings
        self._access = access
        self._refused = metrics.requests_refused
        self._named = {_plain(name) for name in settings.served_names}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        try:
            caller = self._check(scope)
        except ApiError as error:
            self._refused.labels(error.code).inc()
            if scope["type"] == "websocket":  # of a page: one that is refused never opens
                await send({"type": "websocket.close", "code": _POLICY_VIOLATION})
                return
            answer = error_response(error.status_code, error.code, str(error.detail), dict(error.headers or {}))
            await answer(scope, receive, with_headers(scope, send))
            return
        scope[CALLER] = caller
        if scope["type"] == "websocket":
            connection = _Connection(caller, receive, send)
            await self._app(scope, connection.receive, connection.send)
            return
        with _Account(scope, caller, send) as account:
            await self._app(scope, receive, with_headers(scope, _until_revoked(caller, account.send)))

    def _check(self, scope: Scope) -> Caller:
        """Who asks.

        Raises:
            ApiError: it may not.
        """
        headers = Headers(scope=scope)
        host = headers.get("host")
        if host is not None and not self._serves(host):
            raise ApiError(
                421, "foreign_host", "this service is not served under that name: name it with --served-names"
            )
        origin, site = headers.get("origin"), headers.get("sec-fetch-site", "none")
        if site not in _OWN_SITE or not self._is_own(origin, host, scope["scheme"]):
            raise _foreign_page()
        method = scope.get("method", "WEBSOCKET")
        wanted = wanted_scope(method, scope["path"])
        caller = self._caller(scope, headers, method, wanted)
        declared, most_mb = headers.get("content-length", ""), limit_mb(scope["path"], self._settings)
        if declared.isdigit() and int(declared) > most_mb << 20:
            raise too_large(most_mb)
        return caller

    def _caller(self, scope: Scope, headers: Headers, method: str, wanted: Wanted) -> Caller:
        address = client_address(scope)
        if wanted == "open" or not self._access.is_on:
            return self._access.nobody(address)
        try:
            caller = self._access.by_key(given_keys(scope["headers"]), address)
        except TooManyFailuresError as error:
            raise too_many("too_many_wrong_keys", error.seconds) from None
        except WrongKeyError:
            raise _no_key(scope, headers) from None
        if caller is None:
            is_secure = scope["scheme"] in ("https", "wss")
            caller = self._access.by_session(HTTPConnection(scope).cookies, address, secure=is_secure)
            says_whence = "origin" in headers or "sec-fetch-site" in headers
            if caller is not None and method not in SAFE_METHODS and not says_whence:
                raise _foreign_page()  # browsers say it of whatever changes something
        if caller is None:
            raise _no_key(scope, headers)
        if wait := self._access.rates.take(caller.name):
            raise too_many("rate_limit", wait)
        if not caller.may(wanted):
            if method not in SAFE_METHODS:
                caller.record(action_of(scope), "403 scope")
            raise ApiError(403, "scope", f"this wants a key of the scope {wanted}")
        return caller

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

    def _is_own(self, origin: str | None, host: str | None, scheme: str) -> bool:
        """Whether a page of that origin is the service's own: where the request goes to, or, behind a proxy that
        changes `Host`, one of its names on the port of its scheme."""
        if origin is None:
            return True
        its_scheme, _, place = origin.partition("://")
        own_schemes = ("https",) if scheme in ("https", "wss") else ("http", "https")  # a proxy may have taken TLS off
        if its_scheme not in own_schemes or _HOST.fullmatch(place) is None:
            return False
        return place.lower() == (host or "").lower() or _plain(place) in self._named


def caller_of(request: Request) -> Caller:
    """Who asks, as the gate found."""
    caller = request.scope[CALLER]
    assert isinstance(caller, Caller)
    return caller


def client_address(scope: Scope) -> str:
    """The address of a request's client."""
    client = scope.get("client")
    return str(client[0])[:MAX_ADDRESS_CHARS] if client else "-"


def too_many(code: str, seconds: float) -> ApiError:
    """The error of a client that has to wait."""
    message = "too many wrong keys came from here" if code == "too_many_wrong_keys" else "too many requests of this key"
    return ApiError(429, code, f"{message}: come again", headers={"Retry-After": str(math.ceil(seconds))})


def action_of(scope: Scope) -> str:
    """What a request does, for the account: method, path and query."""
    query = scope.get("query_string", b"").decode("latin-1")
    return f"{scope.get('method', 'WEBSOCKET')} {scope['path']}{'?' if query else ''}{query}"


def _foreign_page() -> ApiError:
    return ApiError(403, "foreign_page", "requests of pages from elsewhere are refused")


def _no_key(scope: Scope, headers: Headers) -> ApiError:
    """What is told who has no good key: a browser is led to where it can sign in."""
    if scope.get("method") in ("GET", "HEAD") and "text/html" in headers.get("accept", ""):
        query = scope.get("query_string", b"").decode("latin-1")
        path = scope.get("raw_path", b"").decode("latin-1") or "/"
        target = quote(path + ("?" + query if query else ""), safe="/")
        return ApiError(303, "unauthorized", "sign in first", headers={"Location": f"{SIGN_IN}?next={target}"})
    return ApiError(
        401, "unauthorized", "send the API key as `Authorization: Bearer KEY` or `X-API-Key: KEY`",
        headers={"WWW-Authenticate": "Bearer"},
    )  # fmt: skip


class _Account:
    """Leaves a line of a request that changes something besides handing in traffic, however it ends."""

    def __init__(self, scope: Scope, caller: Caller, send: Send) -> None:
        method = scope["method"]
        changes = method == "DELETE" or wanted_scope(method, scope["path"]) == "admin"
        self._record = (lambda outcome: caller.record(action_of(scope), outcome)) if changes else None
        self._send = send

    async def send(self, message: Message) -> None:
        """Send a message on."""
        if message["type"] == "http.response.start":
            self._tell(str(message["status"]))
        await self._send(message)

    def __enter__(self) -> _Account:
        return self

    def __exit__(self, *error: object) -> None:
        self._tell("500" if isinstance(error[1], Exception) else "not answered")

    def _tell(self, outcome: str) -> None:
        record, self._record = self._record, None
        if record is not None:
            record(outcome)


def _until_revoked(caller: Caller, send: Send) -> Send:
    """Ends an answer that has no stated length, as the stream of verdicts, when the caller may ask no more."""
    if caller.digest is None:
        return send
    is_open = has_length = False

    async def watched(message: Message) -> None:
        nonlocal is_open, has_length
        if message["type"] == "http.response.start":
            is_open = True
            has_length = any(name.lower() == b"content-length" for name, _ in message.get("headers", []))
        elif message.get("more_body") and not has_length and not caller.may("read"):
            if is_open:
                await send({"type": "http.response.body", "body": b"", "more_body": False})
            is_open = False
        if is_open:
            await send(message)

    return watched


class _Connection:
    """A page's connection, which is closed when the caller may ask no more: nothing passes it afterwards."""

    def __init__(self, caller: Caller, receive: Receive, send: Send) -> None:
        self._caller = caller
        self._receive = receive
        self._send = send
        self._is_open = True

    async def receive(self) -> Message:
        """The next message of the page, or its end."""
        while (message := await self._receive())["type"] == "websocket.receive" and not await self._passes():
            pass
        return message

    async def send(self, message: Message) -> None:
        """Send a message to the page."""
        if await self._passes():
            await self._send(message)

    async def _passes(self) -> bool:
        if self._is_open and not self._caller.may("read"):
            self._is_open = False
            await self._send({"type": "websocket.close", "code": _POLICY_VIOLATION})
        return self._is_open


def _plain(name: str) -> str:
    """A host name or address without what may be written differently."""
    return name.strip("[]").rstrip(".").lower()


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
