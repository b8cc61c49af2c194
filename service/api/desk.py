"""Where bodies are read and answers written: one thread beside the event loop, and a bound on the bodies in memory."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from tapline.service.api.errors import ApiError

P = ParamSpec("P")
T = TypeVar("T")


class Desk:
    """One thread for everybody: several that compute would keep the interpreter from the event loop for longer.

    `held_bytes` of JSON bodies are being worked on, at most `max_held_bytes`.
    """

    def __init__(self, max_held_bytes: int) -> None:
        self.held_bytes = 0
        self._max_held_bytes = max_held_bytes
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="bodies")

    async def do(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a short piece of work on the thread; it is not begun when the waiter is cancelled before."""
        return await asyncio.wrap_future(self._thread.submit(work, *args, **kwargs))

    @contextlib.contextmanager
    def seat(self) -> Iterator[Seat]:
        """A place for one body; its bytes count until the context ends."""
        seat = Seat(self)
        try:
            yield seat
        finally:
            self.held_bytes -= seat.held_bytes

    def hold(self, size_bytes: int) -> None:
        """Count bytes.

        Raises:
            ApiError: 503 where there would be too many.
        """
        if self.held_bytes + size_bytes > self._max_held_bytes:
            raise ApiError(503, "busy", "large bodies are being worked on: come again", retry=True)
        self.held_bytes += size_bytes

    def close(self) -> None:
        """End the thread when it has done what it is at."""
        self._thread.shutdown(wait=False, cancel_futures=True)


class Seat:
    """The part of a desk that one body takes."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.held_bytes = 0

    def hold(self, size_bytes: int) -> None:
        """Count bytes of this body; see `Desk.hold`."""
        self.desk.hold(size_bytes)
        self.held_bytes += size_bytes
