"""What stands around every request: the limit on its body, its API key, how long it may wait, and its metrics."""

from __future__ import annotations

import asyncio
import secrets
import time
from typing import Any, TypeVar

from fastapi import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.errors import ApiError, error_response
from service.metrics import Metrics
from service.settings import Settings

T = TypeVar("T")

CAPTURE_ROUTE = "/v1/classify/pcap"
OPEN_ROUTES = ("/healthz", "/readyz")
"""Routes that answer without an API key: what an orchestrator probes."""


class BodyLimit:
    """Refuses a body as soon as it is over the limit of its route, whatever Content-Length said."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._upload_mb = settings.max_upload_mb
        self._body_mb = settings.max_body_mb

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on with its `receive` counted."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit_mb = self._upload_mb if scope["path"] == CAPTURE_ROUTE else self._body_mb
        declared = dict(scope["headers"]).get(b"content-length", b"")
        if declared.isdigit() and int(declared) > limit_mb << 20:
            error = too_large(limit_mb)
            response = error_response(error.status_code, error.code, error.detail, {"Connection": "close"})
            await response(scope, receive, send)
            return
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit_mb << 20:
                raise too_large(limit_mb)
            return message

        await self._app(scope, counted, send)


class Measured:
    """Counts and times every request by route and status."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on; what was sent is counted when it is over."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        status = "none"

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            route = getattr(scope.get("route"), "path", "other")  # never the path as sent: it is unbounded
            self._metrics.requests.labels(route, status).inc()
            self._metrics.request_seconds.labels(route).observe(time.perf_counter() - started)


def too_large(limit_mb: int) -> ApiError:
    """The error of a body over its limit."""
    return ApiError(413, "too_large", f"the body is larger than the limit of {limit_mb} MiB")


def check_key(request: Request) -> None:
    """Refuse a request without the API key, where one is set.

    Raises:
        ApiError: 401, with the two headers that may carry the key.
    """
    settings: Settings = request.app.state.service.settings
    if settings.api_key is None or request.url.path in OPEN_ROUTES:
        return
    bearer = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
    given = request.headers.get("x-api-key", "") or bearer
    if not secrets.compare_digest(given.encode(), settings.api_key.get_secret_value().encode()):
        raise ApiError(401, "unauthorized", "send the API key as `Authorization: Bearer KEY` or `X-API-Key: KEY`")


async def while_wanted(request: Request, answer: asyncio.Future[T], timeout_seconds: float) -> T:
    """Wait for an answer as long as the client does; when it goes away, or after the limit, the work is cancelled.

    The request's body must have been read.

    Raises:
        ApiError: 503 with Retry-After when the limit is over; 499 to a client that is gone.
    """
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        waited: set[asyncio.Future[Any]] = {answer, gone}
        await asyncio.wait(waited, timeout=timeout_seconds, return_when=asyncio.FIRST_COMPLETED)
        if answer.done():
            return answer.result()
        answer.cancel()
        if gone.done():
            raise ApiError(499, "client_gone", "the client closed the connection")
        raise ApiError(503, "timeout", f"no verdicts within {timeout_seconds:g} seconds", retry=True)
    finally:
        gone.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
