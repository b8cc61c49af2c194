"""`/sign-in` and `/sign-out`: a browser gives a key once and keeps a session in a cookie. No script is needed."""

from __future__ import annotations

import base64
import hashlib
from html import escape
from string import Template
from urllib.parse import parse_qs

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse

from tapline.service.access.access import (
    COOKIE,
    SECURE_COOKIE,
    Access,
    Caller,
    TooManyFailuresError,
    WrongKeyError,
)
from tapline.service.access.sessions import ABSOLUTE_SECONDS, End
from tapline.service.api.errors import ApiError
from tapline.service.api.gate import SIGN_IN, client_address, too_many

SIGN_OUT = "/sign-out"
MAX_FORM_BYTES = 4096
MAX_TARGET_CHARS = 1024
THEME_COOKIE = "tapline_theme"

_STYLE = """
:root { color-scheme: light; --ground: #f6f7f8; --panel: #fff; --ink: #1c2429; --quiet: #59656d; --line: #dde2e6;
  --accent: #14506e; --on-accent: #fff; --alarm: #b3261e; }
:root.dark { color-scheme: dark; --ground: #12171a; --panel: #1b2226; --ink: #e4e9ec; --quiet: #9fabb3;
  --line: #313b41; --accent: #7cc0e4; --on-accent: #12171a; --alarm: #ff8a80; }
@media (prefers-color-scheme: dark) { :root.auto { color-scheme: dark; --ground: #12171a; --panel: #1b2226;
  --ink: #e4e9ec; --quiet: #9fabb3; --line: #313b41; --accent: #7cc0e4; --on-accent: #12171a; --alarm: #ff8a80; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); font: 15px/1.45 Roboto, system-ui, sans-serif; }
header { background: var(--panel); border-bottom: 1px solid var(--line); padding: 14px 16px; font-weight: 700;
  font-size: 17px; }
main { max-width: 440px; margin: 10vh auto 0; padding: 20px; }
form { background: var(--panel); border: 1px solid var(--line); border-radius: 8px; padding: 20px; display: grid;
  gap: 14px; }
h1 { font-size: 22px; font-weight: 600; margin: 0; }
label { display: grid; gap: 6px; font-weight: 600; }
input { font: 14px ui-monospace, Menlo, Consolas, monospace; padding: 10px; border: 1px solid var(--line);
  border-radius: 6px; background: var(--ground); color: var(--ink); width: 100%; }
button { font: inherit; font-weight: 600; padding: 10px; border: 0; border-radius: 6px; background: var(--accent);
  color: var(--on-accent); cursor: pointer; }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
p { margin: 0; color: var(--quiet); font-size: 13px; }
p[role=alert] { color: var(--alarm); font-weight: 600; }
"""
_PAGE = Template("""<!doctype html>
<html lang="en" class="$theme"><head><meta charset="utf-8"><title>Sign in · tapline</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">
<style>$style</style></head>
<body><header>tapline</header><main><form method="post" action="/sign-in">
<h1>Sign in</h1>$problem
<label>Key<input name="key" type="password" autocomplete="current-password" required autofocus spellcheck="false"
 maxlength="512"></label>
<input type="hidden" name="next" value="$target">
<button>Sign in</button>
<p>With the key of an API client. Whoever runs this service makes one by <code>tapline keys add</code>.</p>
</form></main></body></html>
""")
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_POLICY = (
    f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; img-src data:; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'"
)
_WRONG = "That key opens nothing here."


def add_sign_in(app: FastAPI, access: Access) -> None:
    """Add the routes."""

    @app.get(SIGN_IN, include_in_schema=False)
    async def form(request: Request, next: str = "/") -> Response:
        """The page that asks for a key; who is known, or where no key is wanted, goes on."""
        if not access.is_on or _session(request, access) is not None:
            return RedirectResponse(_local(next), 303)
        return _page(request, next)

    @app.post(SIGN_IN, include_in_schema=False)
    async def sign_in(request: Request) -> Response:
        """Open a session; the form again where the key is none."""
        given = await _form(request)
        target, address = given.get("next", "/"), client_address(request.scope)
        if not access.is_on:
            return RedirectResponse(_local(target), 303)
        try:
            caller = access.by_key([given.get("key", "").strip().encode()], address)
        except WrongKeyError:
            return _page(request, target, _WRONG, 401)
        except TooManyFailuresError as error:
            refusal = too_many("too_many_wrong_keys", error.seconds)
            return _page(request, target, "Too many wrong keys came from here: come again in a minute.", 429,
                         dict(refusal.headers or {}))  # fmt: skip
        assert caller is not None
        assert caller.digest is not None
        if wait := access.rates.take(caller.name):
            raise too_many("rate_limit", wait)
        _end(request, access, "signed in anew")
        answer = RedirectResponse(_local(target), 303)
        secure = _is_secure(request)
        answer.set_cookie(
            SECURE_COOKIE if secure else COOKIE, access.sessions.begin(caller.digest, caller.name, address),
            httponly=True, secure=secure, samesite="strict", path="/", max_age=int(ABSOLUTE_SECONDS),
        )  # fmt: skip
        caller.record("sign in", "done")
        return answer

    @app.post(SIGN_OUT, include_in_schema=False)
    async def sign_out(request: Request) -> Response:
        """End the session."""
        if (caller := _session(request, access)) is not None:
            caller.record("sign out", "done")
        _end(request, access, "signed out")
        answer = RedirectResponse(SIGN_IN if access.is_on else "/", 303)
        for name, secure in ((COOKIE, False), (SECURE_COOKIE, True)):
            answer.delete_cookie(name, secure=secure, httponly=True, samesite="strict")
        return answer


def _session(request: Request, access: Access) -> Caller | None:
    return access.by_session(request.cookies, client_address(request.scope), secure=_is_secure(request))


def _end(request: Request, access: Access, why: End) -> None:
    """End the session that a browser has; signing in, too, always begins a new one."""
    for name, token in request.cookies.items():
        if name in (COOKIE, SECURE_COOKIE):
            access.sessions.end(token, why)


def _is_secure(request: Request) -> bool:
    return str(request.scope["scheme"]) == "https"


async def _form(request: Request) -> dict[str, str]:
    """The fields of a form.

    Raises:
        ApiError: 413 too large, 415 no form, 400 not readable.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise ApiError(415, "no_form", "expected application/x-www-form-urlencoded")
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_FORM_BYTES:
            raise ApiError(413, "too_large", f"expected a form of at most {MAX_FORM_BYTES} bytes")
    try:
        fields = parse_qs(body.decode("ascii"), strict_parsing=bool(body), max_num_fields=4, keep_blank_values=True)
    except ValueError:
        raise ApiError(400, "bad_form", "expected the fields `key` and `next`") from None
    return {name: values[0] for name, values in fields.items()}


def _local(target: str) -> str:
    """A path of this service: anything else, which could lead elsewhere, is the first page."""
    is_path = (
        target.startswith("/") and not target.startswith(("//", "/\\")) and target.isascii() and target.isprintable()
    )
    return target if is_path and len(target) <= MAX_TARGET_CHARS else "/"


def _page(
    request: Request, target: str, problem: str = "", status: int = 200, headers: dict[str, str] | None = None
) -> HTMLResponse:
    theme = request.cookies.get(THEME_COOKIE, "auto")
    told = f'<p role="alert">{escape(problem)}</p>' if problem else ""
    page = _PAGE.substitute(
        theme=theme if theme in ("light", "dark") else "auto", style=_STYLE, problem=told, target=escape(_local(target))
    )
    return HTMLResponse(page, status, {"Content-Security-Policy": _POLICY, **(headers or {})})
