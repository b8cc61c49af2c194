"""The result of classifying inputs: its JSON records, and the summary that grows while flows pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec

from tapline.models.checkpoint import Checkpoint, TracegramCheckpoint
from tapline.models.encode import Mm4flowFeatures, encode
from tapline.models.flow import Flow, FlowLine, line_fields
from tapline.models.foreign_text import clean
from tapline.models.server_name import server_name
from tapline.models.trace import SubjectKind
from tapline.models.verdict import Verdict
from tapline.service.community_id import community_id
from tapline.service.results.port_tries import PortTryCounter, TriedPorts
from tapline.service.traces.capture_traces import TraceAccount
from tapline.service.traces.trace_verdict import TraceVerdict

MAX_PROBLEM_CHARS = 1024


class ClassifiedFlow(FlowLine, kw_only=True):
    """A flow's JSON form with its verdict, None where the engine failed on it; `input` names the file it came from."""

    verdict: Verdict | None
    input: str = ""


class LabelSummary(msgspec.Struct):
    """What one label got: flows, IP bytes both ways, and the mean of their confidence."""

    label: str
    flows: int = 0
    ip_bytes: int = 0
    mean_confidence: float = 0.0


class InputSummary(msgspec.Struct):
    """What came of one input. `warning`: read only in part; `error`: not read at all."""

    name: str
    flows: int = 0
    packets: int = 0
    skipped: dict[str, int] = {}
    warning: str | None = None
    error: str | None = None


def input_problem(entry: InputSummary) -> str | None:
    """What to tell about an input that was not read, or not whole."""
    if entry.error:
        return clean(f"{entry.name}: {entry.error}", MAX_PROBLEM_CHARS)
    return clean(f"{entry.name}: {entry.warning}", MAX_PROBLEM_CHARS) if entry.warning else None


def left_out_text(entry: InputSummary) -> str | None:
    """What of an input's packets gave no flow, by reason, most first; None where nothing was left out."""
    if not entry.packets or not entry.skipped:
        return None
    reasons = sorted(entry.skipped.items(), key=lambda item: (-item[1], item[0]))
    packets = "1 packet" if entry.packets == 1 else f"{entry.packets} packets"
    return f"{clean(entry.name)}: without a flow, of {packets}: " + ", ".join(
        f"{count} {why}" for why, count in reasons
    )


def nothing_understood(inputs: Iterable[InputSummary]) -> bool:
    """Whether there were packets, and no flow in any of them."""
    inputs = list(inputs)
    return any(entry.packets for entry in inputs) and not any(entry.flows for entry in inputs)


class TraceSummary(msgspec.Struct):
    """The traces of one model: how many got a verdict, how many had too few flows for one or `failed`, and flows that
    have no part in one: `cut` where a trace has more than it keeps, `late` where their window had to be closed before
    they came, `unread` where the model's encoder failed on them. `suspicious`: None where the model does not tell."""

    model: str
    version: str
    subject_kind: SubjectKind
    window_seconds: float
    traces: int = 0
    unknown: int = 0
    suspicious: int | None = None
    below_min_flows: int = 0
    failed: int = 0
    flows: int = 0
    cut: int = 0
    late: int = 0
    unread: int = 0


class Summary(msgspec.Struct):
    """The whole: flows seen, those classified, and why the others were not, `port_tries` of those without payload;
    `traces` by model."""

    model: str
    version: str
    flows: int = 0
    classified: int = 0
    unknown: int = 0
    without_payload: int = 0
    below_min_packets: int = 0
    failed: int = 0
    labels: list[LabelSummary] = []
    inputs: list[InputSummary] = []
    traces: list[TraceSummary] = []
    port_tries: TriedPorts = TriedPorts()


class SummaryBuilder:
    """Counts flows, traces and verdicts as they pass."""

    def __init__(self, checkpoint: Checkpoint, traces: Iterable[TracegramCheckpoint] = ()) -> None:
        self.summary = Summary(checkpoint.name, checkpoint.version)
        self._traces = {each.name: _trace_summary(each) for each in traces}
        self.summary.traces = list(self._traces.values())
        self._labels: dict[str, LabelSummary] = {}
        self._port_tries = PortTryCounter()

    def leave_out(self, flow: Flow) -> None:
        """Count a flow that is not classified."""
        self.summary.flows += 1
        if flow.payload_lengths:
            self.summary.below_min_packets += 1
        else:
            self.summary.without_payload += 1
            self._port_tries.add(flow)

    def add(self, flow: Flow, verdict: Verdict | None) -> None:
        """Count a flow that the engine was asked about."""
        self.summary.flows += 1
        if verdict is None:
            self.summary.failed += 1
            return
        self.summary.classified += 1
        self.summary.unknown += verdict.unknown
        entry = self._labels.setdefault(verdict.label, LabelSummary(verdict.label))
        entry.flows += 1
        entry.ip_bytes += flow.orig_ip_bytes + flow.resp_ip_bytes
        entry.mean_confidence += (verdict.confidence - entry.mean_confidence) / entry.flows

    def add_trace(self, trace: TraceVerdict) -> None:
        """Count a trace."""
        entry = self._traces[trace.verdict.model]
        entry.traces += 1
        entry.unknown += trace.verdict.unknown
        if trace.suspicious is not None:
            entry.suspicious = (entry.suspicious or 0) + trace.suspicious

    def account_traces(self, accounts: Iterable[TraceAccount]) -> None:
        """Count what became of the flows of an input's traces, once the last is out."""
        for account in accounts:
            entry = self._traces[account.model]
            entry.failed += account.failed
            entry.below_min_flows += account.below_min_flows
            entry.flows += account.flows
            entry.cut += account.cut
            entry.late += account.late
            entry.unread += account.unread

    def finish(self, inputs: Sequence[InputSummary]) -> Summary:
        """The summary, labels with most flows first."""
        self.summary.inputs = list(inputs)
        self.summary.port_tries = self._port_tries.told()
        self.summary.labels = sorted(self._labels.values(), key=lambda entry: (-entry.flows, entry.label))
        for entry in self.summary.labels:
            entry.mean_confidence = round(entry.mean_confidence, 4)
        return self.summary


def _trace_summary(checkpoint: TracegramCheckpoint) -> TraceSummary:
    settings = checkpoint.trace
    suspicious = None if checkpoint.suspicion is None else 0
    return TraceSummary(
        checkpoint.name, checkpoint.version, settings.subject, settings.window_seconds, suspicious=suspicious
    )


def classified(flow: Flow, verdict: Verdict | None, name: str) -> ClassifiedFlow:
    """The JSON record of a classified flow."""
    return ClassifiedFlow(**_fields(flow), verdict=verdict, input=name)


def feature_lines(flows: Iterable[Flow], *, tokens: bool) -> Iterator[FlowLine]:
    """The JSON form of flows, with Community ID, name of the server and, on request, MM4flow's tokens."""
    for flow in flows:
        line = FlowLine(**_fields(flow))
        if tokens:
            batch = encode([flow], Mm4flowFeatures())
            line.ps_tokens = batch.ps_tokens.tolist()
            line.bytes_tokens = batch.bytes_tokens.tolist()
            line.bytes_types = batch.bytes_types.tolist()
        yield line


def _fields(flow: Flow) -> dict[str, Any]:
    fields = line_fields(flow, community_id(flow))
    fields["server_name"] = server_name(flow)
    return fields
