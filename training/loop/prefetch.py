"""Batches made ahead of the step that needs them, by one background thread. What a batch is belongs to the stages."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

_Item = TypeVar("_Item")

AHEAD = 8
"""Items that may wait, besides the one in the making."""
_END: Any = object()
"""Stands behind the last item."""


class Prefetched(Generic[_Item]):
    """Iterates over `items` in their order; a thread takes them out of their iterator up to `ahead` early.

    An error in the making of an item is raised where that item would have come. Use it as a context manager: leaving it
    ends the thread, once the item in the making is made. `waited_seconds` is how long the consumer had to wait.
    """

    def __init__(self, items: Iterable[_Item], ahead: int = AHEAD) -> None:
        self.waited_seconds = 0.0
        self._items = iter(items)
        self._ahead = ahead
        self._asked: deque[Future[_Item]] = deque()
        self._thread = ThreadPoolExecutor(1, "prefetch")

    def __enter__(self) -> Self:
        for _ in range(self._ahead + 1):
            self._ask()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(cancel_futures=True)

    def __iter__(self) -> Iterator[_Item]:
        while True:
            started = time.monotonic()
            item = self._asked.popleft().result()
            self.waited_seconds += time.monotonic() - started
            if item is _END:
                return
            self._ask()
            yield item

    def _ask(self) -> None:
        self._asked.append(self._thread.submit(next, self._items, _END))
