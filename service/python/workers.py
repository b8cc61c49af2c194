"""Several processes that classify at once (`worker`): batches of one input, or whole inputs, in order either way."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from queue import Full, Queue
from types import TracebackType
from typing import Self

import msgspec

from tapline.installation import module_command
from tapline.models.flow import Flow
from tapline.service.engines.engine import EngineError
from tapline.service.inference.classifier import Classifier, FlowOutcome
from tapline.service.inference.flow_features import FlowFeatures
from tapline.service.python import worker
from tapline.service.python.input_run import Decided, shown_name
from tapline.service.python.lanes import Outcomes
from tapline.service.python.worker import (
    END,
    Answer,
    Asked,
    AskedFlows,
    AskedInput,
    EndOfInput,
    Recipe,
    SaidOfFlows,
    SaidOfInput,
    TracesOfInput,
    receive,
    send,
)
from tapline.service.results.records import InputSummary
from tapline.service.sources.inputs import ReaderName
from tapline.service.traces.capture_traces import TraceAccount
from tapline.service.traces.trace_verdict import TraceVerdict

WAITING_ANSWERS = 64
"""Answers of a process that wait to be taken, each of `BATCH_FLOWS` flows at most; it goes on when one is."""

BATCHES_EACH = 2
"""Batches that a process has at a time: the next one is there when one is done."""

_ANSWER: msgspec.msgpack.Decoder[Answer] = msgspec.msgpack.Decoder(Answer)


DEATH_SECONDS = 10.0
"""Longest time that a process which answers no more is waited for."""


class WorkerError(EngineError):
    """A process that classifies has ended before its work was done."""


Answers = Queue[bytes | WorkerError]
"""Answers that are not decoded yet."""


class Workers:
    """So many processes, started when the block is entered and ended with it, whatever they do then."""

    def __init__(self, recipe: Recipe, processes: int) -> None:
        """`recipe`: what each classifies with."""
        self._recipe = recipe
        self._count = processes
        self.workers: list[Worker] = []

    def __enter__(self) -> Self:
        try:
            for _ in range(self._count):
                self.workers.append(Worker(self._recipe))
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End them all."""
        for each in self.workers:
            each.kill()
        for each in self.workers:
            each.join()
        self.workers = []

    def lanes(self, classifier: Classifier) -> list[WorkerLane]:
        """Lanes for the batches of flows of an input; `classifier` is the one of this process."""
        lanes = [WorkerLane(each, classifier) for each in self.workers]
        return lanes * BATCHES_EACH

    def inputs(self, names: Sequence[str], reader: ReaderName) -> Iterator[InputResults]:
        """The results of each input, in order; each process has one input at a time, the next one as soon as it is
        done, however far the others are."""
        waiting = deque(InputResults(name, reader) for name in names)
        given = deque(waiting)
        for each in self.workers:
            each.serve(waiting)
        while given:
            yield given.popleft()


class InputResults:
    """What a process says of one input."""

    def __init__(self, name: str, reader: ReaderName) -> None:
        self.name = name
        self.asked = AskedInput(os.fsencode(name), reader)
        self.entry = InputSummary(shown_name(name))
        self.accounts: list[TraceAccount] = []
        self.answers: Answers = Queue(WAITING_ANSWERS)

    def __iter__(self) -> Iterator[Decided | list[TraceVerdict]]:
        """All of it, once; then `entry` and `accounts` say what became of it.

        Raises:
            WorkerError: the process has died.
            EngineError: the engine failed.
        """
        while not isinstance(answer := _decoded(self.answers.get()), EndOfInput):
            if isinstance(answer, SaidOfInput):
                yield answer.decided
            elif isinstance(answer, TracesOfInput):
                yield answer.traces
        if answer.failed is not None:
            raise EngineError(answer.failed)
        self.entry, self.accounts = answer.entry, answer.accounts


class WorkerLane:
    """A lane of a process."""

    def __init__(self, process: Worker, classifier: Classifier) -> None:
        self._process = process
        self._checkpoints = [each.checkpoint for each in classifier.trace_engines]
        self._answers: Answers = Queue()  # never more than batches were started
        process.listen(self._answers)

    def start(self, flows: list[Flow]) -> None:
        """As of `Lane`."""
        self._process.ask(AskedFlows(flows))

    def outcomes(self) -> Outcomes:
        """As of `Lane`.

        Raises:
            WorkerError: the process has died.
            EngineError: the engine failed.
        """
        answer = _decoded(self._answers.get())
        assert isinstance(answer, SaidOfFlows)
        if answer.failed is not None:
            raise EngineError(answer.failed)
        return [
            None
            if said is None
            else FlowOutcome(
                said.verdict, tuple(FlowFeatures(self._checkpoints[number], data) for number, data in said.features)
            )
            for said in answer.outcomes
        ]


class Worker:
    """One process, and the thread that takes its answers."""

    def __init__(self, recipe: Recipe) -> None:
        """Raises OSError: it cannot be started."""
        self._process = subprocess.Popen(
            module_command(worker.__name__, msgspec.json.encode(recipe).decode()),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._input, self._output = self._process.stdin, self._process.stdout
        self._thread: threading.Thread | None = None
        self._killed = threading.Event()

    @property
    def pid(self) -> int:
        """The number of the process."""
        return self._process.pid

    def ask(self, message: Asked) -> None:
        """Send a message.

        Raises:
            WorkerError: the process has died.
        """
        try:
            send(self._input, message)
        except OSError:
            raise self._died() from None

    def listen(self, answers: Answers) -> None:
        """Put every answer into a queue, and at last why there are none any more."""

        def work() -> None:
            while (body := receive(self._output)) is not None:
                self._put(answers, body)
            self._put(answers, self._died())

        self._start(work)

    def serve(self, waiting: deque[InputResults]) -> None:
        """Take inputs until none waits."""

        def work() -> None:
            while waiting and not self._killed.is_set():
                try:
                    taken = waiting.popleft()
                except IndexError:  # another process was faster
                    return
                self._serve(taken)

        self._start(work)

    def _serve(self, taken: InputResults) -> None:
        try:
            self.ask(taken.asked)
        except WorkerError as error:
            self._put(taken.answers, error)
            return
        while (body := receive(self._output)) is not None:
            self._put(taken.answers, body)
            if _KIND.decode(body).type == END:
                return
        self._put(taken.answers, self._died())

    def _start(self, work: Callable[[], None]) -> None:
        self._thread = threading.Thread(target=work, name=f"answers of {self.pid}", daemon=True)
        self._thread.start()

    def _put(self, answers: Answers, answer: bytes | WorkerError) -> None:
        """Wait for room, unless nobody takes any more."""
        while not self._killed.is_set():
            with contextlib.suppress(Full):
                answers.put(answer, timeout=0.2)
                return

    def _died(self) -> WorkerError:
        try:
            status = self._process.wait(DEATH_SECONDS)
        except subprocess.TimeoutExpired:  # it has closed its pipes and lives
            return WorkerError("a process that classifies does not answer any more")
        how = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
        return WorkerError(f"a process that classifies {how} before its work was done: nothing more is classified")

    def kill(self) -> None:
        """End it now."""
        self._killed.set()
        self._process.kill()

    def join(self) -> None:
        """Wait for its end."""
        self._process.wait()
        if self._thread is not None:
            self._thread.join()
        with contextlib.suppress(OSError):  # what it did not read any more
            self._input.close()
        self._output.close()


class _Kind(msgspec.Struct):
    type: str


_KIND = msgspec.msgpack.Decoder(_Kind)


def _decoded(answer: bytes | WorkerError) -> Answer:
    if isinstance(answer, WorkerError):
        raise answer
    return _ANSWER.decode(answer)
