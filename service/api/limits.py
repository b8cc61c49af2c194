"""What stands around every request: the limit on its body, how long it may wait, and its metrics."""

from __future__ import annotations

import asyncio
import time
from typing import TypeVar

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tapline.service.api.errors import ApiError
from tapline.service.metrics import Metrics
from tapline.service.settings import Settings

T = TypeVar("T")

CAPTURE_ROUTE = "/v1/classify/pcap"
FLOWS_ROUTE = "/v1/classify/flows"
JOBS_ROUTE = "/v1/jobs"


def limit_mb(path: str, settings: Settings) -> int:
    """The largest body that a route takes, in MiB."""
    of_captures = {CAPTURE_ROUTE: settings.max_upload_mb, JOBS_ROUTE: settings.max_job_mb}
    return of_captures.get(path, settings.max_body_mb)


class BodyLimit:
    """Refuses a body as soon as it is over the limit of its route, whatever Content-Length said."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on with its `receive` counted."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        most_mb = limit_mb(scope["path"], self._settings)
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > most_mb << 20:
                raise too_large(most_mb)
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


def too_large(most_mb: int) -> ApiError:
    """The error of a body over its limit."""
    return ApiError(413, "too_large", f"the body is larger than the limit of {most_mb} MiB")


async def within(timeout_seconds: float, answer: asyncio.Future[T]) -> T:
    """Wait for an answer; after the limit, or when the waiter is cancelled, its work is, too.

    Raises:
        ApiError: 503 with Retry-After when the limit is over.
    """
    try:
        async with asyncio.timeout(timeout_seconds):
            return await answer
    except TimeoutError:
        raise ApiError(503, "timeout", f"no verdicts within {timeout_seconds:g} seconds", retry=True) from None
