"""What every answer tells browsers: to guess nothing, to load nothing from elsewhere, to keep nothing.

An answer that says more for itself keeps what it says: the dashboard's pages have a policy of their own.
"""

from __future__ import annotations

from starlette.datastructures import MutableHeaders
from starlette.types import Message, Scope, Send

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "same-origin",
    "Permissions-Policy": "camera=(), display-capture=(), geolocation=(), microphone=(), payment=(), usb=()",
    "Cache-Control": "no-store",
}
TRANSPORT_SECURITY = "max-age=31536000"

DATA_POLICY = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
"""Of answers that are no pages."""

REPORT_POLICY = f"{DATA_POLICY}; style-src 'unsafe-inline'; img-src data:"
"""Of the report of a capture, which holds all that it shows."""

DOCS_POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "font-src 'self' data:; connect-src 'self'; worker-src blob:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
_DOCS = ("/docs", "/redoc")


def with_headers(scope: Scope, send: Send) -> Send:
    """Adds the headers to what is answered."""

    async def added(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
            headers.setdefault("Content-Security-Policy", _policy(scope["path"], headers.get("content-type", "")))
            if scope["scheme"] == "https":
                headers["Strict-Transport-Security"] = TRANSPORT_SECURITY
        await send(message)

    return added


def _policy(path: str, kind: str) -> str:
    if path in _DOCS or path.startswith(f"{_DOCS[0]}/"):
        return DOCS_POLICY
    return REPORT_POLICY if kind.startswith("text/html") else DATA_POLICY
