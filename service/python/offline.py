"""The way of inputs through a classifier, one after the other: what the command line and the Python API share.

Flows and traces come out as they are decided; whoever takes them decides what becomes of them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tapline.models.flow import Flow
from tapline.models.verdict import Verdict
from tapline.service.inference.classifier import Classifier
from tapline.service.python.input_run import Decided, InputRun, Opened, Shown, no_bar, shown_name
from tapline.service.python.lanes import thread_lanes
from tapline.service.python.workers import InputResults, Workers
from tapline.service.results.records import ClassifiedFlow, InputSummary, Summary, SummaryBuilder, classified
from tapline.service.sources.inputs import ReaderName, open_input
from tapline.service.traces.scorer import TraceScorer
from tapline.service.traces.trace_verdict import TraceVerdict


@dataclass(frozen=True, slots=True)
class Result:
    """A flow with its verdict, None where the engine failed on it; `input` names the file that it came from.

    Its packet heads are gone where traces have read them.
    """

    flow: Flow
    verdict: Verdict | None
    input: str

    @property
    def record(self) -> ClassifiedFlow:
        """The record that `tapline classify --format json` writes of it."""
        return classified(self.flow, self.verdict, self.input)


class OfflineRun:
    """Classifies every input that can be read; iterated once, gives flows and traces as they are decided.

    Traces are those of one input each, at the latest after its last flow. `inputs` grows with what was read.
    """

    def __init__(
        self,
        names: Sequence[str],
        reader: ReaderName,
        classifier: Classifier,
        *,
        opened: Opened = open_input,
        shown: Shown = no_bar,
        ended: Callable[[InputSummary], None] = lambda entry: None,
        workers: Workers | None = None,
    ) -> None:
        """`ended` is told of each input once it was read, or could not be. `workers` compute: several files each in one
        of them, which neither `opened` nor `shown` hears of; otherwise batches of flows."""
        self.inputs: list[InputSummary] = []
        self._names = names
        self._reader = reader
        self._classifier = classifier
        self._scorers = [TraceScorer(engine) for engine in classifier.trace_engines]
        self._builder = SummaryBuilder(classifier.checkpoint, [scorer.checkpoint for scorer in self._scorers])
        self._opened = opened
        self._shown = shown
        self._ended = ended
        self._workers = workers

    def __iter__(self) -> Generator[Result | TraceVerdict, None, None]:
        with contextlib.ExitStack() as stack:
            workers = stack.enter_context(self._workers) if self._workers is not None else None
            if workers is not None and len(self._names) > 1 and all(Path(name).is_file() for name in self._names):
                for results in workers.inputs(self._names, self._reader):
                    yield from self._elsewhere(results)
                return
            lanes = workers.lanes(self._classifier) if workers else stack.enter_context(thread_lanes(self._classifier))
            for name in self._names:
                yield from self._run(InputRun(name, self._classifier, self._scorers, lanes))

    def summary(self) -> Summary:
        """The account of everything, once all has been taken."""
        return self._builder.finish(self.inputs)

    def _run(self, run: InputRun) -> Iterator[Result | TraceVerdict]:
        self.inputs.append(run.entry)
        with contextlib.closing(run.results(self._reader, self._opened, self._shown)) as results:
            for found in results:
                yield from self._taken(found, run.entry.name)
        self._builder.account_traces(run.accounts)
        self._ended(run.entry)

    def _elsewhere(self, results: InputResults) -> Iterator[Result | TraceVerdict]:
        entry = InputSummary(shown_name(results.name))
        self.inputs.append(entry)
        for found in results:
            yield from self._taken(found, entry.name)
        self.inputs[-1] = results.entry
        self._builder.account_traces(results.accounts)
        self._ended(results.entry)

    def _taken(self, found: Decided | list[TraceVerdict], name: str) -> Iterator[Result | TraceVerdict]:
        if isinstance(found, Decided):
            yield from self._results(found, name)
            return
        for trace in found:
            self._builder.add_trace(trace)
            yield trace

    def _results(self, decided: Decided, name: str) -> Iterator[Result]:
        left_out = frozenset(decided.left_out)
        for place, (flow, verdict) in enumerate(zip(decided.flows, decided.verdicts, strict=True)):
            if place in left_out:
                self._builder.leave_out(flow)
            else:
                self._builder.add(flow, verdict)
                yield Result(flow, verdict, name)
