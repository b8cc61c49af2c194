"""Runs an engine where it cannot hold up anything else: in a thread that nobody has to wait for, within a deadline."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

from tapline.service.engines.engine import EngineError

_T = TypeVar("_T")


class EngineStalledError(EngineError):
    """An engine did not answer within its deadline, or does not answer since; whoever waits is told at once."""


class _Call:
    """A piece of work, and what came of it."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self.work = work
        self.over = threading.Event()
        self.result: Any = None
        self.error: BaseException | None = None

    def run(self) -> None:
        """Do the work, in the engine's thread."""
        try:
            self.result = self.work()
        except BaseException as error:  # it is raised where the call was made
            self.error = error
        self.over.set()


class EngineThread:
    """A thread for the calls of one engine, one at a time, each within `timeout_seconds`.

    A call that is late is given up, but not ended, which no engine allows: until it ends by itself every other fails at
    once. The process can exit meanwhile, see `hanging_engine`.
    """

    def __init__(self, name: str, timeout_seconds: float) -> None:
        self._name = name
        self.timeout_seconds = timeout_seconds
        self._one_at_a_time = threading.Lock()
        self._closed = threading.Event()
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        self._thread: _Worker | None = None
        self._current: _Call | None = None
        self._late: _Call | None = None

    def call(self, work: Callable[[], _T]) -> _T:
        """What `work` gives.

        Raises:
            EngineStalledError: it takes too long, or the one before does; or `close` was called.
            Exception: whatever `work` raises.
        """
        with self._one_at_a_time:
            self.check()
            if self._thread is None:
                self._thread = _Worker(self._calls, self._name)
                weakref.finalize(self, self._calls.put, None)
            call = self._current = _Call(work)
            self._calls.put(call)
            if not self.is_closed and not call.over.wait(self.timeout_seconds):
                self._late = call
            self._current = None
            self.check()
        if call.error is not None:
            raise call.error
        result: _T = call.result
        return result

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed.is_set()

    def check(self) -> None:
        """Raise where calls would fail.

        Raises:
            EngineStalledError: a call is late, or `close` was called.
        """
        if self.is_closed:
            raise EngineStalledError(f"{self._name} takes no more: the service is stopping")
        if self.is_stalled:
            raise EngineStalledError(f"{self._name} did not answer within {self.timeout_seconds:g} seconds")

    @property
    def is_stalled(self) -> bool:
        """Whether the last call was given up and still goes on."""
        return self._late is not None and not self._late.over.is_set()

    def close(self) -> None:
        """Take no more calls; who waits for one hears of it at once."""
        self._closed.set()
        self._calls.put(None)  # the thread ends after its call
        current = self._current
        if current is not None:
            current.over.set()


class _Worker(threading.Thread):
    """Takes calls until there is a None. A daemon: the interpreter does not wait for it."""

    def __init__(self, calls: SimpleQueue[_Call | None], name: str) -> None:
        super().__init__(name=name, daemon=True)
        self._calls = calls
        self.busy = False
        self.start()

    def run(self) -> None:
        """Work."""
        while (call := self._calls.get()) is not None:
            self.busy = True
            call.run()
            self.busy = False
            del call


def hanging_engine() -> bool:
    """Whether some engine is computing now. A process that exits meanwhile has to do so by `os._exit`: a library that
    tidies up under a thread at work brings it down."""
    return any(isinstance(thread, _Worker) and thread.busy for thread in threading.enumerate())
