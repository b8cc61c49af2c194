"""What keys may do: three scopes, and the one table that says which of them each route wants."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Literal

from starlette.routing import compile_path

Scope = Literal["read", "classify", "admin"]
"""*read*: verdicts, metrics, the dashboard's pages; *classify*: that, and captures, flows and jobs of one's own;
*admin*: everything."""

SCOPES: tuple[Scope, ...] = ("read", "classify", "admin")
"""Each may what the ones before it may."""

Wanted = Literal["open", "read", "classify", "admin"]
"""The scope that a route wants; *open* ones want no key."""

ROUTES: dict[str, Wanted] = {
    "GET /healthz": "open", "GET /readyz": "open",  # what an orchestrator probes
    "GET /docs": "open", "GET /docs/oauth2-redirect": "open", "GET /redoc": "open", "GET /openapi.json": "open",
    "GET /static-offline-docs/{file:path}": "open",  # the documentation is the same everywhere
    "GET /sign-in": "open", "POST /sign-in": "open", "POST /sign-out": "open",
    "GET /metrics": "read", "GET /v1/live": "read", "GET /v1/stream": "read", "GET /v1/alerts": "read",
    "GET /v1/drift": "read",
    "GET /v1/flows": "read", "GET /v1/flows/{number}": "read", "GET /v1/traces": "read", "GET /v1/models": "read",
    "GET /v1/jobs": "read", "GET /v1/jobs/{id}": "read", "GET /v1/jobs/{id}/result": "read",
    "GET /v1/jobs/{id}/report": "read", "GET /v1/jobs/{id}/flows": "read", "GET /v1/jobs/{id}/traces": "read",
    "GET /v1/jobs/{id}/flows/{number}": "read", "GET /v1/jobs/{id}/flows/{number}/packets": "read",
    "POST /v1/classify/pcap": "classify", "POST /v1/classify/flows": "classify", "POST /v1/jobs": "classify",
    "POST /v1/alerts/{id}/acknowledge": "classify",
    "DELETE /v1/jobs/{id}": "classify",  # a job of somebody else wants admin, which the route asks
    "POST /v1/models/{name}/load": "admin", "POST /v1/models/{name}/unload": "admin",
    "GET /": "read", "GET /flows": "read", "GET /flow": "read", "GET /hosts": "read", "GET /host": "read",
    "GET /trace": "read", "GET /captures": "read", "GET /capture": "read", "GET /models": "read", "GET /card": "read",
    "GET /health": "read", "GET /alerts": "read", "GET /alert": "read",
    "GET /_nicegui/{file:path}": "read",
    "GET /_nicegui_ws/{rest:path}": "read", "POST /_nicegui_ws/{rest:path}": "read",
    "WEBSOCKET /_nicegui_ws/{rest:path}": "read",  # what is pressed on a page is checked where it is done
}  # fmt: skip
"""Every route by method and path. One that is missing here wants a key of any scope to read, and admin for more."""

SAFE_METHODS = ("GET", "HEAD", "OPTIONS")

_PATTERNS: list[tuple[str, re.Pattern[str], Wanted]] = [
    (route.partition(" ")[0], compile_path(route.partition(" ")[2])[0], wanted) for route, wanted in ROUTES.items()
]
_ORDER: tuple[Wanted, ...] = ("open", *SCOPES)


def covers(held: Scope, wanted: Wanted) -> bool:
    """Whether a key of one scope may what wants another."""
    return _ORDER.index(held) >= _ORDER.index(wanted)


@lru_cache(1024)
def wanted_scope(method: str, path: str) -> Wanted:
    """What a request wants, by its method (`WEBSOCKET` of a WebSocket) and its path as the router sees it."""
    asked = "GET" if method == "HEAD" else method
    found = [wanted for of, pattern, wanted in _PATTERNS if of == asked and pattern.match(path)]
    if found:
        return max(found, key=_ORDER.index)
    return "read" if method in SAFE_METHODS else "admin"
