"""The records of traces: what an open trace keeps of a flow, a window to be scored, and the verdict on it."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from tapline.models.flow import Flow
from tapline.models.server_name import server_name
from tapline.models.trace import FlowOrder, SubjectKind
from tapline.models.verdict import Verdict
from tapline.service.inference.classifier import FlowOutcome
from tapline.service.inference.flow_features import FlowFeatures

TOP_FLOWS = 10
"""Flows that a trace verdict names: those with most importance."""

IMPORTANCE_NOTE = (
    "A share is how much a flow counted for the label. It shows what went together with the label, not what caused it."
)
"""Said wherever importance is shown."""

NEAREST_NOTE = (
    "A host of a kind that the model never learned gets the nearest label that it knows, at times with confidence."
)
"""Said to people who see labels of hosts, whatever these hosts are."""


class TraceFlow(msgspec.Struct, gc=False, array_like=True):
    """A flow of an open trace: its place, what the model reads of it, and what a verdict shows of it. Its packets are
    forgotten.

    `features` are those of `inference.flow_features`; `early` says that the flow was still alive. Without garbage
    collection: these make no cycles, and there are many.
    """

    uid: str
    start_us: int
    duration_us: int
    orig_h: str
    orig_p: int
    resp_h: str
    resp_p: int
    proto: str
    label: str
    ip_bytes: int
    early: bool
    features: bytes
    server_name: str = ""

    @property
    def order(self) -> FlowOrder:
        """Its place among the flows of the trace."""
        return FlowOrder(self.start_us, self.orig_h, self.orig_p, self.resp_h, self.resp_p, self.proto)


def traced(flow: Flow, outcome: FlowOutcome) -> list[tuple[FlowFeatures, TraceFlow | None]]:
    """What the traces of each model keep of a flow, None where the model's encoder failed on it.

    The records of one flow share all but themselves: its texts are in memory once, and so are features that are equal.
    """
    found: list[tuple[FlowFeatures, TraceFlow | None]] = []
    kept: TraceFlow | None = None
    for features in outcome.features:
        if features.data is None:
            found.append((features, None))
            continue
        if kept is None:
            kept = trace_flow(flow, outcome.verdict, features.data)
        else:
            kept = msgspec.structs.replace(kept, features=features.data)
        found.append((features, kept))
    return found


def trace_flow(flow: Flow, verdict: Verdict | None, features: bytes) -> TraceFlow:
    """What a trace keeps of a flow; `verdict` is the flow's own."""
    return TraceFlow(
        flow.uid, flow.start_us, flow.duration_us, flow.orig_h, flow.orig_p, flow.resp_h, flow.resp_p, flow.proto,
        verdict.label if verdict is not None else "",
        flow.orig_ip_bytes + flow.resp_ip_bytes, not flow.complete, features, server_name(flow),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class WindowKey:
    """Names a window: no two have the same, and none is given a final verdict twice."""

    source: str
    subject: str
    start_us: int


@dataclass(frozen=True, slots=True)
class ScoreJob:
    """A window to be scored: its flows in order. `final` where it is closed; until then its verdict is an early one."""

    key: WindowKey
    end_us: int
    flows: list[TraceFlow]
    cut: int
    final: bool


class TopFlow(msgspec.Struct, frozen=True, gc=False):
    """A flow that made much of the difference. `share` is its importance; those of a whole trace add up to 1.

    `label` is that of the flow's own verdict, empty where there is none. `server_name` is foreign text.
    """

    uid: str
    community_id: str
    start_us: int
    duration_us: int
    proto: str
    orig_h: str
    orig_p: int
    resp_h: str
    resp_p: int
    ip_bytes: int
    label: str
    share: float
    server_name: str = ""


class TraceVerdict(msgspec.Struct, frozen=True, gc=False):
    """What the model says of a trace.

    `source` is where its flows came from: the name of an input, or the URL of a sensor's bus. `subject_kind` says what
    `subject` is: of traces by MAC it is `originator` where no MAC could be told and the address stands for it.
    `start_us` and `end_us` are those of the window; where everything is one window, it ends with the last flow. `flows`
    were scored, `cut` older ones were not. `verdict.final` is False while the window is open. `top_flows` are in
    falling importance.

    `suspicion` is the probability that the trace is of any kind that the model knows, all of which are malicious, and
    `suspicious` says that it reaches the model's threshold, also where no single label is sure; None where the model's
    labels are not of that kind.
    """

    source: str
    subject_kind: SubjectKind
    subject: str
    start_us: int
    end_us: int
    flows: int
    cut: int
    verdict: Verdict
    top_flows: list[TopFlow]
    suspicion: float | None = None
    suspicious: bool | None = None


def shown_confidence(verdict: Verdict, suspicion: float | None, suspicious: bool | None) -> float:
    """The confidence in what tables say of a trace: in *not suspicious* where it is that, else in the nearest label."""
    return 1 - suspicion if suspicious is False and suspicion is not None else verdict.confidence
