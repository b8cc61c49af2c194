"""What a trace checkpoint says of labelled traces in captures: windows, features and scores as they are served."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from tapline.models.flow import Flow
from tapline.models.trace import TraceSettings, subject_of
from tapline.service.inference.classifier import Classifier
from tapline.service.traces.capture_traces import CaptureTraces
from tapline.service.traces.scorer import TraceScorer
from tapline.service.traces.trace_verdict import TraceVerdict
from tapline.training.checking.own_captures import OwnLabels, batches
from tapline.training.checking.said import Said
from tapline.training.data.label_table import JoinAccount, LabelTable, Match
from tapline.training.data.origins import Origin, OriginReader
from tapline.training.data.store import id_of


@dataclass
class _Words:
    """What one table says of the flows of a capture, by their subject: start and label, for those that have one."""

    by_subject: defaultdict[str, list[tuple[int, str]]] = field(default_factory=lambda: defaultdict(list))

    def of(self, trace: TraceVerdict, settings: TraceSettings) -> set[str]:
        """What is said of the flows of a trace."""
        whole = not settings.window_us
        return {
            label
            for start_us, label in self.by_subject[trace.subject]
            if whole or trace.start_us <= start_us < trace.end_us
        }


def trace_verdicts(
    classifier: Classifier, origins: Sequence[Origin], labels: OwnLabels, progress: Callable[[int], None]
) -> Said:
    """Score the traces of every capture by the one trace model of `classifier`; those with a label are measured.

    A table of hosts labels every trace of a host, one of flows the trace whose flows it calls alike; one of captures,
    and a folder, the trace with most flows of the capture, as in training. `progress` is told of each capture.
    """
    said = Said("trace", tools=labels.new_tools(), captures_read=len(origins))
    scorer = TraceScorer(classifier.trace_engines[0])
    for origin in origins:
        _Capture(classifier, scorer, origin, labels, said).measure()
        progress(1)
    return said


class _Capture:
    """The way of one capture."""

    def __init__(
        self, classifier: Classifier, scorer: TraceScorer, origin: Origin, labels: OwnLabels, said: Said
    ) -> None:
        self._classifier, self._origin, self._labels, self._said = classifier, origin, labels, said
        self._name = f"{origin.corpus}/{origin.capture}"
        self._settings = scorer.checkpoint.trace
        self._traces = CaptureTraces([scorer], self._name)
        self._words = _Words()
        self._tool_words = [_Words() for _ in labels.tools]

    def measure(self) -> None:
        reader = OriginReader(self._origin, self._classifier.heads)
        found: list[TraceVerdict] = []
        for batch in batches(reader):
            self._take(batch)
            found += self._ready()
        self._traces.finish()
        found += self._ready()
        failed = sum(model.failed for model in self._traces.models)
        self._said.leave_out("trace that the model failed on", failed)
        self._account(found)
        if reader.warning:
            self._said.warnings[self._name] = reader.warning

    def _take(self, flows: Sequence[Flow]) -> None:
        accepted = [flow for flow in flows if self._classifier.accepts(flow)]
        for flow, outcome in zip(accepted, self._classifier.classify_each(accepted), strict=True):
            if outcome is None:
                self._said.leave_out("flow that the model failed on")
                continue
            if self._classifier.is_traced(flow):
                self._note_words(flow)
            self._traces.add(flow, outcome)

    def _note_words(self, flow: Flow) -> None:
        """Remember what tables of flows say of a flow: packet heads, which tell its subject, are forgotten with it."""
        subject = subject_of(flow, self._settings.subject)
        if self._of_flows(self._labels.table):
            label = self._labels.of_flow(self._origin, flow, self._said.account)
            if label is not None:
                self._words.by_subject[subject].append((flow.start_us, label))
        for (_, table), words, said in zip(self._labels.tools, self._tool_words, self._said.tools, strict=True):
            if self._of_flows(table) and (word := said.account.take(table.match(self._name, flow))) is not None:
                words.by_subject[subject].append((flow.start_us, word))

    @staticmethod
    def _of_flows(table: LabelTable | None) -> bool:
        return table is not None and table.labels_flows

    def _ready(self) -> Iterator[TraceVerdict]:
        while found := self._traces.ready():
            yield from found

    def _account(self, traces: Sequence[TraceVerdict]) -> None:
        """Take in those that bear a label."""
        largest = max(traces, key=lambda trace: trace.flows, default=None)  # the first of several
        for trace in traces:
            label = self._label(trace, is_largest=trace is largest)
            if label is None:
                continue
            self._said.ids.append(id_of(self._name, f"{trace.subject} {trace.start_us}"))
            self._said.names.append((trace.subject, trace.start_us, trace.end_us))
            self._said.captures.append(self._name)
            self._said.labels.append(label)
            self._said.verdicts.append(trace.verdict)
            self._said.suspicious.append(trace.suspicious)
            for (_, table), words, said in zip(self._labels.tools, self._tool_words, self._said.tools, strict=True):
                said.words.append(self._word(trace, table, words, said.account))

    def _label(self, trace: TraceVerdict, *, is_largest: bool) -> str | None:
        table, said = self._labels.table, self._said
        if self._of_flows(table):
            found = self._words.of(trace, self._settings)
            if len(found) == 1:
                return found.pop()
            said.leave_out("trace whose flows bear several labels" if found else "trace without a label")
            return None
        if table is not None and table.labels_subjects:
            label = self._labels.named(self._match(table, trace), said.account)
        elif not is_largest:
            said.leave_out("trace beside the one with most flows, which the label of a capture is of")
            return None
        elif table is not None:
            label = self._labels.named(self._match(table, trace), said.account)
        else:
            label = self._labels.of_folder(self._origin)
        if label is None:
            said.leave_out("trace without a label")
        return label

    def _word(self, trace: TraceVerdict, table: LabelTable, words: _Words, account: JoinAccount) -> str | None:
        if not self._of_flows(table):
            return account.take(self._match(table, trace))
        found = words.of(trace, self._settings)
        return found.pop() if len(found) == 1 else None

    def _match(self, table: LabelTable, trace: TraceVerdict) -> Match:
        return table.match_subject(self._name, trace.subject, trace.start_us, trace.end_us)
