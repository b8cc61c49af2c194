"""Changes that are made to their end, also where whoever asked for them goes away meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

_T = TypeVar("_T")


async def to_its_end(change: Coroutine[Any, Any, _T]) -> _T:
    """What a change gives. Cancelled meanwhile, this ends, as cancelled, once the change has."""
    task = asyncio.create_task(change)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise
