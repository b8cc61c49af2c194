"""A process that classifies for another one: batches of flows, or whole inputs. It reads what is asked from standard
input and answers on standard output; messages are msgpack, each after its length in four bytes, big-endian.

It ends when its input does, so that it never outlives who started it, however that ended.
"""

from __future__ import annotations

import os
import signal
import struct
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Any

import msgspec

from tapline.models.flow import Flow
from tapline.models.verdict import Verdict
from tapline.service.engines.engine import EngineName
from tapline.service.engines.loading import load_engine
from tapline.service.inference.classifier import Classifier
from tapline.service.inference.trace_loading import load_beside
from tapline.service.log_lines import configure_logs_by_default
from tapline.service.process.garbage import spare_what_is_loaded
from tapline.service.python.input_run import Decided, InputRun
from tapline.service.python.lanes import Outcomes, thread_lanes
from tapline.service.results.records import InputSummary
from tapline.service.sources.inputs import ReaderName
from tapline.service.traces.capture_traces import TraceAccount
from tapline.service.traces.scorer import TraceScorer
from tapline.service.traces.trace_verdict import TraceVerdict

LENGTH = struct.Struct(">I")


class Recipe(msgspec.Struct, frozen=True):
    """What a process classifies with: checkpoint directories, and options as of `open_classifier`."""

    model: str
    traces: list[str]
    engine: EngineName
    threads: int
    min_packets: int
    with_scores: bool
    ports: bool
    cascade: bool

    def classifier(self) -> Classifier:
        """The classifier.

        Raises:
            CheckpointError, EngineError: a model is none, or cannot be run.
        """
        return Classifier(
            load_engine(self.engine, Path(self.model), self.threads),
            trace_engines=[load_beside(self.engine, Path(each), self.threads) for each in self.traces],
            min_packets=self.min_packets,
            with_scores=self.with_scores,
            ports=self.ports,
            cascade=self.cascade,
        )


class AskedFlows(msgspec.Struct, tag="flows"):
    """Classify a batch: one `SaidOfFlows` is the answer."""

    flows: list[Flow]


class AskedInput(msgspec.Struct, tag="input"):
    """Classify an input: `SaidOfInput` and traces as they are decided, then an `EndOfInput`."""

    name: bytes
    reader: ReaderName


Asked = AskedFlows | AskedInput


class Said(msgspec.Struct, array_like=True):
    """The outcome of a flow: its verdict, and what each trace model that reads it reads, by its number."""

    verdict: Verdict | None
    features: list[tuple[int, bytes | None]]


class SaidOfFlows(msgspec.Struct, tag="flows"):
    """The outcomes of a batch; `failed` instead where the engine raised."""

    outcomes: list[Said | None] = []
    failed: str | None = None


class SaidOfInput(msgspec.Struct, tag="decided"):
    """Some flows of an input."""

    decided: Decided


class TracesOfInput(msgspec.Struct, tag="traces"):
    """Some traces of an input."""

    traces: list[TraceVerdict]


END = "end"


class EndOfInput(msgspec.Struct, tag=END):
    """All of an input was taken; `failed` where the engine raised."""

    entry: InputSummary
    accounts: list[TraceAccount]
    failed: str | None = None


Answer = SaidOfFlows | SaidOfInput | TracesOfInput | EndOfInput
_ASKED: msgspec.msgpack.Decoder[Asked] = msgspec.msgpack.Decoder(Asked)


def send(file: IO[bytes], message: Any) -> None:
    """Write a message."""
    body = msgspec.msgpack.encode(message, enc_hook=list)  # lengths and heads may be packed
    file.write(LENGTH.pack(len(body)))
    file.write(body)
    file.flush()


def receive(file: IO[bytes]) -> bytes | None:
    """The next message, not decoded; None at the end."""
    head = file.read(LENGTH.size)
    if len(head) < LENGTH.size:
        return None
    (length,) = LENGTH.unpack(head)
    body = file.read(length)
    return body if len(body) == length else None


def said_of(outcomes: Outcomes, classifier: Classifier) -> list[Said | None]:
    """Outcomes as they travel."""
    numbers = {id(each.checkpoint): number for number, each in enumerate(classifier.trace_engines)}
    return [
        None
        if outcome is None
        else Said(outcome.verdict, [(numbers[id(each.checkpoint)], each.data) for each in outcome.features])
        for outcome in outcomes
    ]


def main() -> None:
    """Answer until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of Ctrl-C whoever started this hears, and ends it
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever else is printed
    asked: SimpleQueue[bytes] = SimpleQueue()
    threading.Thread(target=_listen, args=(sys.stdin.buffer, asked), daemon=True).start()
    configure_logs_by_default()
    classifier = msgspec.json.decode(sys.argv[1], type=Recipe).classifier()
    scorers = [TraceScorer(engine) for engine in classifier.trace_engines]
    spare_what_is_loaded()
    while True:
        message = _ASKED.decode(asked.get())
        if isinstance(message, AskedFlows):
            send(output, _of_flows(message, classifier))
        else:
            _answer_input(message, classifier, scorers, lambda answer: send(output, answer))


def _listen(file: IO[bytes], asked: SimpleQueue[bytes]) -> None:
    while (body := receive(file)) is not None:
        asked.put(body)
    os._exit(0)  # whatever is being computed: nobody asks any more


def _of_flows(message: AskedFlows, classifier: Classifier) -> SaidOfFlows:
    try:
        return SaidOfFlows(said_of(classifier.classify_each(message.flows), classifier))
    except Exception as error:
        return SaidOfFlows(failed=str(error) or type(error).__name__)


def _answer_input(
    message: AskedInput, classifier: Classifier, scorers: Sequence[TraceScorer], answer: Callable[[Answer], None]
) -> None:
    with thread_lanes(classifier) as lanes:
        run = InputRun(os.fsdecode(message.name), classifier, scorers, lanes)
        failed = None
        try:
            for found in run.results(message.reader):
                answer(SaidOfInput(found) if isinstance(found, Decided) else TracesOfInput(found))
        except Exception as error:
            failed = str(error) or type(error).__name__
        answer(EndOfInput(run.entry, run.accounts, failed))
