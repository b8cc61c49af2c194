"""A flow network in a process of its own, which computes while this one receives and delivers.

A Python process does one thing at a time in its interpreter, so that a service with its network beside it uses little
more than one core, and under overload what comes keeps it from computing. A process also costs only its batch when it
crashes or hangs: it is ended, and the next batch starts another.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import subprocess
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from tapline.installation import module_command
from tapline.models.checkpoint import CheckpointError, read_checkpoint
from tapline.models.flow import Flow
from tapline.service.engines.engine import EngineError
from tapline.service.engines.thread import EngineStalledError
from tapline.service.inference import network_worker
from tapline.service.inference.flow_network import Judged, Network
from tapline.service.inference.network_messages import (
    NetworkRecipe,
    Ready,
    Refused,
    Said,
    pack_batch,
    receive,
    send,
    unpack_answer,
)
from tapline.service.log_lines import log

START_SECONDS = 120.0
"""Longest time that loading a network may take."""

DEATH_SECONDS = 10.0
"""Longest time that the status of a process is waited for which answers no more."""

MOST_FRUITLESS = 20
"""So many times in a row it is started again although it judged no batch: finding the one flow of the largest batch on
which it dies takes no more."""

_OWN_SETTINGS = "TAPLINE_"
"""Variables with keys and passwords, of which a network needs none."""


class NetworkProcess(Network):
    """The network of a checkpoint in a process. Batches are judged in the order in which they were asked."""

    def __init__(
        self, recipe: NetworkRecipe, timeout_seconds: float, restarted: Callable[[str], None] = lambda process: None
    ) -> None:
        """Starts the process, but does not wait for it: `check_started` does. `restarted` is told what
        had ended, where another had to be started.

        Raises:
            CheckpointError: there is no checkpoint that can be read.
        """
        self.checkpoint = read_checkpoint(Path(recipe.directory), needs=())
        self.timeout_seconds = timeout_seconds
        self._recipe = recipe
        self._name = f"process of {self.checkpoint.name}"
        self._restarted = restarted
        self._starting = threading.Lock()
        self._closed = threading.Event()
        self._fruitless = 0
        self._children = [_Child(recipe, timeout_seconds)]
        weakref.finalize(self, _end, self._children)

    def check_started(self) -> None:
        """Wait until the network is loaded.

        Raises:
            CheckpointError, EngineError: it cannot be.
        """
        self._children[-1].check_started()

    @property
    def pid(self) -> int:
        """The number of the process that there is, or was last."""
        return self._children[-1].process.pid

    @property
    def provider(self) -> str:
        """As of `Network`."""
        return self._children[-1].provider

    @property
    def is_closed(self) -> bool:
        """As of `Network`."""
        return self._closed.is_set()

    def check(self) -> None:
        """As of `Network`; a process that was late has been ended, so that no batch is late any more."""
        if self.is_closed:
            raise EngineStalledError(f"the {self._name} takes no more: the service is stopping")

    def close(self) -> None:
        """As of `Network`."""
        self._closed.set()
        self._children[-1].kill()

    def judge(
        self, flows: Sequence[Flow], ports: Sequence[bool], cascade: Sequence[bool], *, with_scores: bool = False
    ) -> Judged:
        """As of `Network`."""
        body = pack_batch(flows, ports, cascade, with_scores=with_scores)
        try:
            said = self._living().answer(body, self.timeout_seconds)
        except EngineError:
            self.check()
            raise
        if len(said.verdicts) != len(flows):
            raise EngineError(f"the process judged {len(said.verdicts)} flows of {len(flows)}")
        return Judged(said.verdicts, said.rows(), said.timing)

    def _living(self) -> _Child:
        """The process, another one where it has ended."""
        with self._starting:
            self.check()
            child = self._children[-1]
            if child.has_ended:
                log.error("a part died, starting it again", part=self._name, reason=child.ending)
                self._restarted(self._name)
                self._fruitless = 0 if child.has_answered else self._fruitless + 1
                if self._fruitless == MOST_FRUITLESS:
                    self._fruitless = 0
                    raise EngineStalledError(f"the {self._name} ended {MOST_FRUITLESS} times without an answer")
                child = _Child(self._recipe, self.timeout_seconds)
                self._children[:] = [child]
                try:
                    child.check_started()
                except (CheckpointError, EngineError) as error:
                    raise EngineStalledError(f"the {self._name} cannot be started again: {error}") from None
            return child


def _end(children: list[_Child]) -> None:
    for child in children:
        child.kill()


class _Call:
    """A batch that was asked, and its answer, None where there will be none."""

    def __init__(self) -> None:
        self.asked_at = time.monotonic()
        self.over = threading.Event()
        self.body: bytes | None = None

    def end(self, body: bytes | None) -> None:
        self.body = body
        self.over.set()


class _Child:
    """One process, and the thread that takes its answers: first whether it has started, then one for each batch."""

    def __init__(self, recipe: NetworkRecipe, timeout_seconds: float) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                module_command(network_worker.__name__, msgspec.json.encode(recipe).decode()),
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                env={name: value for name, value in os.environ.items() if not name.startswith(_OWN_SETTINGS)},
            )
        seconds = int(timeout_seconds), int(timeout_seconds % 1 * 1e6)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", *seconds))
        self.provider = ""
        self.ending = ""
        self.has_answered = False
        self._connection = ours
        self._sending = threading.Lock()
        self._started = _Call()
        self._calls = deque([self._started])
        self._answered_at = 0.0
        self._has_ended = threading.Event()
        threading.Thread(target=self._listen, name=f"answers of {self.process.pid}", daemon=True).start()

    @property
    def has_ended(self) -> bool:
        """Whether it takes no more batches."""
        return self._has_ended.is_set()

    def check_started(self) -> None:
        """As of `NetworkProcess`."""
        answer = unpack_answer(self._waited(self._started, START_SECONDS))
        if isinstance(answer, Refused):
            self.kill()
            raise CheckpointError(answer.reason) if answer.by_checkpoint else EngineError(answer.reason)
        assert isinstance(answer, Ready)
        self.provider = answer.provider

    def answer(self, body: bytes, timeout_seconds: float) -> Said:
        """What it says of a batch; the deadline counts from when it was done with the one before.

        Raises:
            EngineError: it failed, or the process ended.
            EngineStalledError: it was late, and is ended.
        """
        call = _Call()
        with self._sending:
            if self.has_ended:
                raise EngineError(self.ending)
            self._calls.append(call)
            try:
                send(self._connection, body)
            except OSError:
                self.kill()
        answer = unpack_answer(self._waited(call, timeout_seconds))
        if isinstance(answer, Said):
            return answer
        raise EngineError(answer.reason if isinstance(answer, Refused) else "the process answered something else")

    def _waited(self, call: _Call, timeout_seconds: float) -> bytes:
        left = timeout_seconds
        while not call.over.wait(left):
            left = max(call.asked_at, self._answered_at) + timeout_seconds - time.monotonic()
            if left <= 0:
                self.ending = f"did not answer within {timeout_seconds:g} seconds"
                self.kill()
                raise EngineStalledError(f"the process {self.process.pid} {self.ending}")
        if call.body is None:
            raise EngineError(self.ending)
        return call.body

    def _listen(self) -> None:
        while (body := receive(self._connection)) is not None:
            self._answered_at = time.monotonic()
            call = self._calls.popleft()
            self.has_answered |= call is not self._started
            call.end(body)
        self.ending = self.ending or self._how_it_ended()
        self.kill()
        with self._sending:  # from here on no batch is added
            self._has_ended.set()
        while self._calls:
            self._calls.popleft().end(None)
        self._connection.close()
        self.process.wait()

    def _how_it_ended(self) -> str:
        try:
            status = self.process.wait(DEATH_SECONDS)
        except subprocess.TimeoutExpired:
            return "the process does not end"
        return f"the process {'was ended by signal' if status < 0 else 'ended with status'} {abs(status)}"

    def kill(self) -> None:
        """End it now, whatever it computes; who waits hears of it."""
        self.process.kill()
        with contextlib.suppress(OSError):  # nobody is there any more
            self._connection.shutdown(socket.SHUT_RDWR)
