"""What rules know of a verdict, live or out of the history, or of drift: made here alone, of every record."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Protocol

import msgspec

from tapline.models.flow import Flow
from tapline.models.server_name import server_name
from tapline.models.trace import SubjectKind
from tapline.models.verdict import Verdict
from tapline.service.alerts.rule_models import RuleKind
from tapline.service.community_id import Endpoints
from tapline.service.drift.model_drift import DriftMeasure, ModelDrift
from tapline.service.traces.trace_verdict import TopFlow


class FlowFields(Endpoints, Protocol):
    """What of a flow rules look at: of a live one, and of one of the history."""

    @property
    def uid(self) -> str:
        """As of `Flow`."""
        ...

    @property
    def start_us(self) -> int:
        """As of `Flow`."""
        ...

    @property
    def duration_us(self) -> int:
        """As of `Flow`."""
        ...

    @property
    def sensor(self) -> str:
        """As of `Flow`."""
        ...

    @property
    def server_name(self) -> str:
        """As of `Flow`; of the history also what the content said."""
        ...


class TraceFields(Protocol):
    """What of a trace rules look at: of a live one, and of one of the history. Fields as of `TraceVerdict`."""

    @property
    def source(self) -> str:
        """Where its flows came from."""
        ...

    @property
    def subject(self) -> str:
        """Whose trace it is."""
        ...

    @property
    def subject_kind(self) -> SubjectKind:
        """What the subject is."""
        ...

    @property
    def start_us(self) -> int:
        """Of the window."""
        ...

    @property
    def end_us(self) -> int:
        """Of the window."""
        ...

    @property
    def flows(self) -> int:
        """How many were scored."""
        ...

    @property
    def suspicion(self) -> float | None:
        """Of any malicious kind."""
        ...

    @property
    def suspicious(self) -> bool | None:
        """Whether that reaches the threshold."""
        ...

    @property
    def verdict(self) -> Verdict:
        """Of the trace."""
        ...

    @property
    def top_flows(self) -> list[TopFlow]:
        """Most important first."""
        ...


@dataclass(slots=True)
class Facts:
    """One verdict, or one measure of drift; what does not apply to its kind has its default.

    `time_us` is when it counts, by the clock that rules go by. `identity` names the flow or the window, which has an
    early and a final verdict. `addresses` are those of a flow's both ends, or a trace's subject where it is any.
    """

    kind: RuleKind
    time_us: int
    identity: tuple[object, ...]
    source: str
    model: str
    version: str
    label: str = ""
    nearest: str = ""
    confidence: float = 0.0
    unknown: bool = False
    final: bool = True
    addresses: tuple[str, ...] = ()
    flow: FlowFields | None = None
    port_label: str = ""
    unexpected_port: bool = False
    trace: TraceFields | None = None
    drift: ModelDrift | None = None
    measure: DriftMeasure | None = None
    _server_name: str | None = field(default=None, repr=False)

    @property
    def server_name(self) -> str:
        """The name of a flow's server; read once, and only where a rule asks for it."""
        if self._server_name is None:
            flow = self.flow
            self._server_name = server_name(flow) if isinstance(flow, Flow) else flow.server_name if flow else ""
        return self._server_name

    @property
    def server_names(self) -> list[str]:
        """The name of a flow's server, or those of the flows that a trace names; without those that have none."""
        names = [flow.server_name for flow in self.trace.top_flows] if self.trace is not None else [self.server_name]
        return [name for name in names if name]


def flow_facts(source: str, flow: FlowFields, verdict: Verdict, time_us: int) -> Facts:
    """Those of a verdict on a flow: live, of a capture, or of the history."""
    port_label = verdict.port_label
    return Facts(
        "flow", time_us, (source, flow.sensor, flow.uid), source, verdict.model, verdict.version, verdict.label,
        verdict.nearest, verdict.confidence, verdict.unknown, verdict.final, (flow.orig_h, flow.resp_h), flow,
        "" if port_label is msgspec.UNSET or port_label is None else port_label, verdict.unexpected_port is True,
    )  # fmt: skip


def trace_facts(trace: TraceFields, time_us: int) -> Facts:
    """Those of a verdict on a trace: live, of a capture, or of the history."""
    verdict = trace.verdict
    return Facts(
        "trace", time_us, (trace.source, verdict.model, trace.subject, trace.start_us), trace.source, verdict.model,
        verdict.version, verdict.label, verdict.nearest, verdict.confidence, verdict.unknown, verdict.final,
        tuple(trace.subject.split(" - ")), trace=trace,
    )  # fmt: skip


def drift_facts(drift: ModelDrift, time_us: int) -> list[Facts]:
    """Those of each measure of a model's drift."""
    return [
        Facts(
            "drift", time_us, (drift.model, drift.version, measure.measure, measure.against, drift.end_us), "",
            drift.model, drift.version, drift=drift, measure=measure,
        )
        for measure in drift.measures
    ]  # fmt: skip


Reader = Callable[[Facts], object]
"""Reads one identifier."""


def readers(kind: RuleKind, names: Iterable[str]) -> list[Reader]:
    """What reads identifiers of `IDENTIFIERS`, and further fields of a record by these names, of facts of a kind."""
    return [attrgetter(_PLACES[kind].get(name, name)) for name in names]


_PLACES: dict[RuleKind, dict[str, str]] = {
    "flow": {
        "originator": "flow.orig_h", "responder": "flow.resp_h", "port": "flow.resp_p", "originator_port":
        "flow.orig_p", "sensor": "flow.sensor", "proto": "flow.proto", "uid": "flow.uid",
    },
    "trace": {"subject": "trace.subject"},
    "drift": {"measure": "measure.measure", "against": "measure.against"},
}  # fmt: skip
"""Where facts have what is not among their own fields."""
