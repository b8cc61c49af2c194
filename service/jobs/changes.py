"""Lets any number of listeners hear that something has changed, however slow they are: nothing piles up for them."""

from __future__ import annotations

import asyncio
import time

PROGRESS_SECONDS = 0.5
"""Mere progress is told at most so often."""


class Changes:
    """Counts changes; whoever waits is told the newest number."""

    def __init__(self) -> None:
        self._number = 1
        self._told = asyncio.Event()
        self._told_at = 0.0

    def tell(self, *, progress: bool = False) -> bool:
        """Say that something changed; whether it was said, which of mere `progress` it is not always."""
        now = time.monotonic()
        if progress and now - self._told_at < PROGRESS_SECONDS:
            return False
        self._told_at = now
        self._number += 1
        self._told.set()
        self._told = asyncio.Event()
        return True

    async def after(self, since: int) -> int:
        """The number of changes, once there are more than `since`."""
        while self._number <= since:
            await self._told.wait()
        return self._number
