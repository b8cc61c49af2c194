"""`tapline.read` and `tapline.classify`: captures as flows, and as flows and traces with their verdicts.

Both are lazy and may be iterated again, which reads the inputs again.
"""

from __future__ import annotations

import contextlib
import os
import weakref
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from tapline.models.flow import Flow, HeadsKind
from tapline.models.foreign_text import clean
from tapline.service.engines.engine import EngineName
from tapline.service.inference.classifier import DEFAULT_CHECKPOINT, Classifier
from tapline.service.python.arguments import (
    check_choice,
    check_processes,
    check_threads,
    check_truth,
    expanded,
    paths_of,
)
from tapline.service.python.chosen import (
    FlowChoice,
    TraceChoice,
    check_model,
    chosen_traces,
    chosen_workers,
    model_directory,
    open_classifier,
)
from tapline.service.python.data_frames import flow_table, to_pandas, trace_table
from tapline.service.python.flow_model import FlowModel
from tapline.service.python.input_run import account, closed, shown_name
from tapline.service.python.offline import OfflineRun, Result
from tapline.service.python.warned import warn_caller
from tapline.service.python.workers import Workers
from tapline.service.results.records import InputSummary, Summary, input_problem
from tapline.service.results.spool import Spool
from tapline.service.sources.capture import CaptureError, ReadOptions
from tapline.service.sources.inputs import ReaderName, inputs_of, open_input, unreadable
from tapline.service.traces.trace_verdict import TraceVerdict

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

CapturePath = str | os.PathLike[str]
"""A capture (pcap or pcapng, plain, gzip or zstd), NDJSON of `tapline features`, a directory of captures, or `-`."""

_TRACES = msgspec.json.Decoder(TraceVerdict)

OnError = Literal["raise", "skip"]
"""What becomes of an input that cannot be read: an error, or a warning, and its reason in its entry of `inputs`."""


def read(
    path: CapturePath | Iterable[CapturePath],
    *,
    reader: ReaderName = "auto",
    heads: HeadsKind = "header",
    on_error: OnError = "raise",
) -> Flows:
    """The flows of a capture, of several, or of all captures in a directory and below; `-` is standard input.

    Nothing is read before it is iterated. All flows are given, also those in which nobody sent payload.

    Args:
        path: one or several of `CapturePath`.
        reader: `auto`, the built-in one, which needs no Zeek, or `zeek`, which runs it.
        heads: what to keep of a flow's first packets: `header`, which trace models read, `full`, or `none`.
        on_error: what becomes of an input that cannot be read.

    Raises:
        CaptureError: a path does not exist, or a directory holds no capture; on the way: an input cannot be read. None
            of them where it is skipped.
        TypeError, ValueError: an argument is none.
    """
    check_choice("reader", reader, ReaderName)
    check_choice("heads", heads, HeadsKind)
    check_choice("on_error", on_error, OnError)
    return Flows(_names(path, on_error), reader, heads, on_error)


def classify(
    path: CapturePath | Iterable[CapturePath],
    *,
    model: FlowChoice = DEFAULT_CHECKPOINT,
    traces: TraceChoice | Iterable[TraceChoice] | Literal[False] | None = None,
    ports: bool = True,
    cascade: bool = True,
    threads: int = 0,
    processes: int = 1,
    reader: ReaderName = "auto",
    engine: EngineName = "onnx",
    on_error: OnError = "raise",
) -> Results:
    """What the flows and traces of captures are, as `tapline classify` says it, to the bit.

    Models are loaded now, the captures are read when the results are iterated.

    Args:
        path: as of `read`.
        model: of flows, by its name, a checkpoint directory, or as `load` gave it.
        traces: trace models, as `model`, one or several; None: those that ship, where they fit; `()`, False: none.
        ports: whether verdicts on flows read ports, where the model knows any.
        cascade: whether the model's student answers the flows that it is sure of, where it has one.
        threads: of the engines, 0 for one per core; a model that is loaded has its own.
        processes: so many more of which each has engines of its own, with `threads` or its share of the cores; what is
            classified is the same, in the same order. Several captures are read in them, one in this process. Not with
            a model that is loaded. They are started when the results are iterated, and end with it.
        reader: as of `read`.
        engine: `onnx`, or `torch` (extra `torch`).
        on_error: as of `read`.

    Raises:
        CaptureError, TypeError, ValueError: as of `read`.
        CheckpointError, EngineError: a model is none, or cannot be run; on the way: an engine failed, or a process has
            died.
    """
    check_choice("reader", reader, ReaderName)
    check_choice("engine", engine, EngineName)
    check_choice("on_error", on_error, OnError)
    check_threads(threads)
    check_processes(processes)
    check_truth("ports", ports)
    check_truth("cascade", cascade)
    check_model(model)
    trace_models = chosen_traces(traces)
    names = _names(path, on_error)
    flow_model = model if isinstance(model, FlowModel) else model_directory(model)
    classifier = open_classifier(
        flow_model,
        trace_models,
        engine,
        required=traces is not None,
        warn=warn_caller,
        threads=threads if processes == 1 else 1,
        ports=ports,
        cascade=cascade,
    )
    workers = chosen_workers(flow_model, trace_models, engine, classifier, processes=processes, threads=threads)
    return Results(names, classifier, reader, on_error, workers)


class Flows:
    """The flows of inputs, in the order in which they end; `inputs` says what came of each input, once it was read.

    Iterating again reads again. An iteration that is given up closes its file.
    """

    def __init__(self, names: Sequence[str], reader: ReaderName, heads: HeadsKind, on_error: OnError) -> None:
        self.inputs: list[InputSummary] = []
        self._names = names
        self._reader = reader
        self._options = ReadOptions(heads=heads)
        self._on_error: OnError = on_error

    def __repr__(self) -> str:
        return f"<Flows of {_inputs_text(self._names)}>"

    def __iter__(self) -> Iterator[Flow]:
        with contextlib.closing(self._results()) as results:
            for result in results:
                yield result.flow

    def _results(self) -> Generator[Result, None, None]:
        self.inputs = inputs = []
        for name in self._names:
            entry = InputSummary(shown_name(name))
            inputs.append(entry)
            try:
                source = open_input(name, self._reader, self._options)
                with closed(iter(source)) as flows:
                    for flow in flows:
                        entry.flows += 1
                        yield Result(flow, None, entry.name)
                account(entry, source)
            except CaptureError as error:
                entry.error = str(error)
            _tell(entry, self._on_error)

    @property
    def packets(self) -> int:
        """Packets of the inputs that were read."""
        return sum(entry.packets for entry in self.inputs)

    @property
    def skipped(self) -> dict[str, int]:
        """Packets that gave no flow, by reason, of the inputs that were read."""
        counts: Counter[str] = Counter()
        for entry in self.inputs:
            counts.update(entry.skipped)
        return dict(counts)

    @property
    def warning(self) -> str | None:
        """What was read only in part, and why, or None."""
        return "; ".join(f"{entry.name}: {entry.warning}" for entry in self.inputs if entry.warning) or None

    def to_arrow(self, *, lengths: bool = False, content: bool = False) -> pa.Table:
        """One row for each flow, columns as of `data_frames.flow_table`. Reads the inputs.

        Raises:
            ImportError: pyarrow is not installed.
            CaptureError: an input cannot be read.
        """
        return flow_table(self._results(), verdicts=False, lengths=lengths, content=content)

    def to_pandas(self, *, lengths: bool = False, content: bool = False) -> pd.DataFrame:
        """The same as a DataFrame.

        Raises:
            ImportError: pandas or pyarrow is not installed.
            CaptureError: an input cannot be read.
        """
        return to_pandas(lambda: self.to_arrow(lengths=lengths, content=content))


class Traces:
    """Verdicts on traces, in the order in which they were given: some megabytes of them in memory, others on disk."""

    def __init__(self) -> None:
        self._count = 0
        self._spool = Spool()
        weakref.finalize(self, self._spool.close)

    def add(self, trace: TraceVerdict) -> None:
        """Keep a verdict.

        Raises:
            OSError: there is no room on disk.
        """
        self._spool.add(msgspec.json.encode(trace) + b"\n")
        self._count += 1

    def __repr__(self) -> str:
        return f"<Traces: {self._count} verdicts>"

    def __iter__(self) -> Iterator[TraceVerdict]:
        cut = b""
        for piece in self._spool.pieces():
            *lines, cut = (cut + piece).split(b"\n")
            for line in lines:
                yield _TRACES.decode(line)

    def __len__(self) -> int:
        return self._count

    def to_arrow(self, *, alternatives: bool = False) -> pa.Table:
        """One row for each trace, columns as of `data_frames.trace_table`.

        Raises:
            ImportError: pyarrow is not installed.
        """
        return trace_table(self, alternatives=alternatives)

    def to_pandas(self, *, alternatives: bool = False) -> pd.DataFrame:
        """The same as a DataFrame.

        Raises:
            ImportError: pandas or pyarrow is not installed.
        """
        return to_pandas(lambda: self.to_arrow(alternatives=alternatives))


class Results:
    """Flows with their verdicts, as the inputs give them, in bounded memory.

    `traces` and `summary` are those of the last iteration that came to its end; where there was none they classify the
    inputs. Iterating again classifies again. An iteration that is given up closes its file.
    """

    def __init__(
        self,
        names: Sequence[str],
        classifier: Classifier,
        reader: ReaderName,
        on_error: OnError,
        workers: Workers | None = None,
    ) -> None:
        self._names = names
        self._classifier = classifier
        self._reader = reader
        self._on_error: OnError = on_error
        self._workers = workers
        self._done: tuple[Traces, Summary] | None = None

    def __repr__(self) -> str:
        checkpoint = self._classifier.checkpoint
        return f"<Results of {_inputs_text(self._names)} by {checkpoint.name} {checkpoint.version}>"

    def __iter__(self) -> Iterator[Result]:
        run = OfflineRun(
            self._names,
            self._reader,
            self._classifier,
            ended=lambda entry: _tell(entry, self._on_error),
            workers=self._workers,
        )
        traces = Traces()
        with contextlib.closing(iter(run)) as items:
            for found in items:
                if isinstance(found, Result):
                    yield found
                else:
                    traces.add(found)
        self._done = traces, run.summary()

    @property
    def traces(self) -> Traces:
        """The verdicts on traces, by each trace model."""
        return self._finished()[0]

    @property
    def summary(self) -> Summary:
        """The account of every flow: those classified by label, those left out and why, what was read of each input,
        ports tried in vain, traces by model."""
        return self._finished()[1]

    def _finished(self) -> tuple[Traces, Summary]:
        if self._done is None:
            for _ in self:
                pass
        assert self._done is not None
        return self._done

    def to_arrow(self, *, alternatives: bool = False, lengths: bool = False, content: bool = False) -> pa.Table:
        """One row for each flow, columns as of `data_frames.flow_table`. Classifies the inputs.

        Raises:
            ImportError: pyarrow is not installed.
            CaptureError: an input cannot be read.
        """
        return flow_table(self, alternatives=alternatives, lengths=lengths, content=content)

    def to_pandas(self, *, alternatives: bool = False, lengths: bool = False, content: bool = False) -> pd.DataFrame:
        """The same as a DataFrame.

        Raises:
            ImportError: pandas or pyarrow is not installed.
            CaptureError: an input cannot be read.
        """
        return to_pandas(lambda: self.to_arrow(alternatives=alternatives, lengths=lengths, content=content))


def _names(path: CapturePath | Iterable[CapturePath], on_error: OnError) -> list[str]:
    """The inputs that paths name, those in directories one by one.

    Raises:
        CaptureError: a path does not exist, or a directory holds no capture, and that is an error.
    """
    if isinstance(path, Flows | Results):
        raise TypeError(
            f"expected the path of a capture, or several, got {type(path).__name__}: give flows to `predict` of a model"
        )
    names = list(inputs_of(map(expanded, paths_of(path)), keep_bad=on_error == "skip"))
    for name in names if on_error == "raise" else ():
        try:
            if name != "-":
                Path(name).stat()
        except OSError as error:
            entry = InputSummary(shown_name(name), error=unreadable(name, error))
            raise CaptureError(str(input_problem(entry))) from None
    return names


def _inputs_text(names: Sequence[str]) -> str:
    return clean(shown_name(names[0])) if len(names) == 1 else f"{len(names)} inputs"


def _tell(entry: InputSummary, on_error: OnError) -> None:
    """Say what is wrong with an input that was read, or could not be.

    Raises:
        CaptureError: it could not be, and that is an error.
    """
    problem = input_problem(entry)
    if entry.error and on_error == "raise":
        raise CaptureError(str(problem))
    if problem:
        warn_caller(problem)
