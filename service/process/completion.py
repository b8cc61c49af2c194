"""Changes that are made to their end, also where whoever asked for them goes away meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Coroutine
from typing import Any, Protocol, TypeVar


class Closable(Protocol):
    """What is closed once nobody needs it."""

    def close(self) -> None:
        """Give up what it holds."""
        ...


_T = TypeVar("_T")
_C = TypeVar("_C", bound=Closable)


async def to_its_end(change: Coroutine[Any, Any, _T]) -> _T:
    """What a change gives. Cancelled meanwhile, this ends, as cancelled, once the change has."""
    task = asyncio.create_task(change)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise


@contextlib.asynccontextmanager
async def opened(opening: Coroutine[Any, Any, _C]) -> AsyncGenerator[_C, None]:
    """What is opened, for a block, and closed after it; also where it opens only once whoever asked has gone away."""
    task = asyncio.create_task(opening)
    try:
        yield await asyncio.shield(task)
    finally:
        await asyncio.wait({task})
        if not task.cancelled() and task.exception() is None:
            task.result().close()
