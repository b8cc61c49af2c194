"""Batches made ahead of the step that needs them, by one background thread. What a batch is belongs to the stages."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from queue import Empty, Full, Queue
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

_Item = TypeVar("_Item")

AHEAD = 8
"""Items that may wait, besides the one in the making."""
LOOK_SECONDS = 0.1
"""How often a thread that waits for room looks whether it is still wanted."""
END_SECONDS = 60.0


@dataclass(frozen=True)
class _Failure:
    error: BaseException


class _End:
    """Stands behind the last item."""


class Prefetched(Generic[_Item]):
    """Iterates over `items` in their order; a thread takes them out of their iterator up to `AHEAD` early.

    An error in the making of an item is raised where that item would have come. Use it as a context manager: leaving it
    ends the thread, whatever is left. `waited_seconds` is how long the consumer had to wait.
    """

    def __init__(self, items: Iterable[_Item], ahead: int = AHEAD) -> None:
        self.waited_seconds = 0.0
        self._items = items
        self._queue: Queue[Any] = Queue(ahead)
        self._unwanted = threading.Event()
        self._thread = threading.Thread(target=self._fill, name="prefetch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._unwanted.set()
        self._thread.join(END_SECONDS)

    def __iter__(self) -> Iterator[_Item]:
        while True:
            started = time.monotonic()
            item = self._take()
            self.waited_seconds += time.monotonic() - started
            if isinstance(item, _End):
                return
            if isinstance(item, _Failure):
                raise item.error
            yield item

    def _take(self) -> Any:
        while True:
            try:
                return self._queue.get(timeout=END_SECONDS)
            except Empty:
                if not self._thread.is_alive() and self._queue.empty():
                    raise RuntimeError("the thread that makes batches is gone") from None

    def _fill(self) -> None:
        try:
            for item in self._items:
                if not self._put(item):
                    return
        except BaseException as error:
            self._put(_Failure(error))
        else:
            self._put(_End())

    def _put(self, item: Any) -> bool:
        """Whether there was room for it before nobody wanted it any more."""
        while not self._unwanted.is_set():
            try:
                self._queue.put(item, timeout=LOOK_SECONDS)
            except Full:
                continue
            return True
        return False
