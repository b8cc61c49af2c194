"""Work on a request lasts as long as its client wants it: when the client goes away, the work is cancelled and all that
it has opened is closed, whatever stage it was in."""

from __future__ import annotations

import asyncio
import contextlib
import time

from fastapi import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tapline.service.log_lines import log

_RESOURCES = "tapline.resources"


def resources(request: Request) -> contextlib.AsyncExitStack:
    """What is closed when the request ends, however it ends: enter here whatever must not outlive it."""
    stack = request.scope[_RESOURCES]
    assert isinstance(stack, contextlib.AsyncExitStack)
    return stack


class Wanted:
    """Runs the application for each request in a task of its own, and cancels that when the client goes away.

    It reads one message ahead of the application, so that it hears of a client's leaving while nobody reads. The
    application itself never sees `http.disconnect`: it waits, and is cancelled.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        ahead: asyncio.Queue[Message] = asyncio.Queue(1)
        answered = False

        async def read_ahead() -> None:
            while (message := await receive())["type"] != "http.disconnect":
                await ahead.put(message)

        async def watched(message: Message) -> None:
            nonlocal answered
            await send(message)
            answered = message["type"] == "http.response.body" and not message.get("more_body", False)

        started = time.perf_counter()
        async with contextlib.AsyncExitStack() as stack:
            scope[_RESOURCES] = stack
            work = asyncio.ensure_future(self._app(scope, ahead.get, watched))
            gone = asyncio.ensure_future(read_ahead())
            try:
                await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
                if answered:  # what is left of the work is to tidy up
                    await asyncio.wait({work})
            finally:
                for task in (work, gone):
                    task.cancel()
                await asyncio.gather(work, gone, return_exceptions=True)
        if not work.cancelled():
            work.result()
        elif not answered:
            seconds = round(time.perf_counter() - started, 3)
            log.info(
                "request ended with its connection", route=getattr(scope.get("route"), "path", "other"), seconds=seconds
            )
