"""The bodies of the REST API. Flows have the fields of `models.flow.FlowLine`, which remains the authority on them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from tapline.models.flow import (
    HEAD_TOKEN_COST,
    HEADS_TOKEN_BUDGET,
    MAX_CONTENT_BYTES,
    MAX_COUNT,
    MAX_NAME_CHARS,
    MAX_PACKET_HEADS,
    MAX_PAYLOAD_LENGTH,
    MAX_PAYLOAD_LENGTHS,
    MAX_SERVER_NAME_CHARS,
)

MAX_FLOWS = 10_000
"""Most flows in one request."""

Count = Annotated[int, Field(ge=0, le=MAX_COUNT)]
Port = Annotated[int, Field(ge=0, le=65535)]
Name = Annotated[str, Field(max_length=MAX_NAME_CHARS)]
Address = Annotated[
    Name,
    Field(description="IPv4 or IPv6 address", json_schema_extra={"anyOf": [{"format": "ipv4"}, {"format": "ipv6"}]}),
]
Length = Annotated[int, Field(ge=-MAX_PAYLOAD_LENGTH, le=MAX_PAYLOAD_LENGTH, json_schema_extra={"not": {"const": 0}})]
HEX = "^([0-9a-fA-F]{2})*$"
MAX_HEAD_HEX = 2 * (HEADS_TOKEN_BUDGET - HEAD_TOKEN_COST)
ContentHex = Annotated[str, Field(max_length=2 * MAX_CONTENT_BYTES, pattern=HEX)]
Tokens = Annotated[list[int], Field(max_length=512)]


class Body(BaseModel):
    """A body refuses fields that it does not know, and types that are not the ones it names."""

    model_config = ConfigDict(extra="forbid", strict=True)


class PacketHead(Body):
    """The first bytes of a packet."""

    gap_us: Count
    data: Annotated[str, Field(max_length=MAX_HEAD_HEX, pattern=HEX, description="hex, link layer on")]


class FlowFields(Body):
    """A flow, as `tapline features` writes it."""

    uid: Annotated[str, Field(min_length=1, max_length=MAX_NAME_CHARS)]
    start_us: Annotated[Count, Field(description="first packet, microseconds since the epoch")]
    orig_h: Address
    orig_p: Port
    resp_h: Address
    resp_p: Port
    proto: Annotated[str, Field(pattern=r"^(tcp|udp|icmp|[1-9]?[0-9]|1[0-9]{2}|2[0-4][0-9]|25[0-5])$")]
    duration_us: Count = 0
    community_id: Annotated[Name, Field(description="ignored when sent: it follows from the flow")] = ""
    up: Annotated[Count, Field(description="packets with payload from the originator")] = 0
    down: Count = 0
    payload_lengths: Annotated[
        list[Length],
        Field(max_length=MAX_PAYLOAD_LENGTHS, description="+n from the originator, -n from the responder, in order"),
    ] = []
    orig_bytes: Annotated[ContentHex, Field(description="first content bytes of the originator, hex")] = ""
    resp_bytes: ContentHex = ""
    orig_pkts: Count = 0
    resp_pkts: Count = 0
    orig_ip_bytes: Count = 0
    resp_ip_bytes: Count = 0
    link_type: Annotated[int, Field(ge=0, le=255)] = 0
    heads_kind: Literal["none", "header", "full"] = "none"
    heads: Annotated[list[PacketHead], Field(max_length=MAX_PACKET_HEADS)] = []
    service: Name = ""
    conn_state: Name = ""
    sensor: Name = ""
    complete: bool = True
    server_name: Annotated[
        str,
        Field(
            max_length=MAX_SERVER_NAME_CHARS,
            description="that the client asked for (TLS, HTTP, DNS); evidence beside the verdict, read by no model",
        ),
    ] = ""


class FlowIn(FlowFields):
    """A flow to classify; tokens are accepted, since `tapline features --tokens` writes them, and not read."""

    ps_tokens: Tokens = []
    bytes_tokens: Tokens = []
    bytes_types: Tokens = []


class FlowsRequest(Body):
    """Flows to classify."""

    flows: Annotated[list[FlowIn], Field(max_length=MAX_FLOWS)]


class Alternative(Body):
    """Another label that was considered."""

    label: str
    confidence: float


class Verdict(Body):
    """What the model says."""

    label: Annotated[str, Field(description="`unknown` where the model says that it never learned such traffic")]
    nearest: Annotated[str, Field(description="the nearest label that the model knows, also where it says `unknown`")]
    confidence: Annotated[float, Field(ge=0, le=1, description="in `nearest`; calibrated")]
    unknown: bool
    alternatives: list[Alternative]
    model: str
    version: str
    final: bool = True
    port_label: Annotated[
        str | None,
        Field(
            description="what the flow's port alone would have said, null where it says nothing; not there for traces, "
            "and where the model knows no ports"
        ),
    ] = None
    unexpected_port: Annotated[
        bool,
        Field(description="label and port disagree, and both are sure: SSH on 443; there where `port_label` is"),
    ] = False
    by_student: Annotated[
        bool | None,
        Field(
            description="whether the model's student answered, and not the whole network; not there where the model "
            "has none, and of what was kept in a history"
        ),
    ] = None


class ClassifiedFlow(FlowFields):
    """A flow with its verdict, null where the engine failed on it; `input` is the name of the file it came from."""

    verdict: Verdict | None
    input: str = ""


class TopFlow(Body):
    """A flow of a trace that made much of the difference: correlation, not proof of cause."""

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
    label: Annotated[str, Field(description="of the flow's own verdict, empty where there is none")]
    share: Annotated[float, Field(ge=0, le=1, description="its importance; those of all flows of a trace add up to 1")]
    server_name: Annotated[str, Field(description="that the flow's client asked for, empty where there is none")]


class Trace(Body):
    """The flows of one subject in one window, with their verdict."""

    source: Annotated[str, Field(description="name of the input, or URL of the sensor's bus")]
    subject_kind: Annotated[
        Literal["originator", "responder", "pair", "mac"],
        Field(description="of traces by MAC `originator` where no MAC could be told: the address stands for it"),
    ]
    subject: str
    start_us: Annotated[int, Field(description="start of the window, microseconds since the epoch")]
    end_us: Annotated[int, Field(description="end of the window; of the last flow where everything is one window")]
    flows: Annotated[int, Field(description="flows that were scored")]
    cut: Annotated[int, Field(description="older flows that were not, because there were too many")]
    verdict: Annotated[Verdict, Field(description="`final` is false while the window is open")]
    top_flows: Annotated[list[TopFlow], Field(description="most important first, at most 10")]
    suspicion: Annotated[
        float | None,
        Field(
            ge=0,
            le=1,
            description="probability that the trace is of any kind that the model knows, all of which are malicious; "
            "null where they are not",
        ),
    ] = None
    suspicious: Annotated[
        bool | None,
        Field(description="suspicion reaches the model's threshold, also where no label is sure; null with it"),
    ] = None


Seen = Annotated[
    int, Field(description="when its first verdict came, by the service's clock, microseconds since the epoch")
]


class PastFlow(FlowFields):
    """A flow of the history with its verdict; later ones have higher numbers."""

    number: int
    seen_us: Seen
    source: Annotated[str, Field(description="URL of the sensor's bus, or name of the capture")]
    verdict: Verdict


class PastFlows(Body):
    """Verdicts on live flows."""

    flows: list[PastFlow]
    next: Annotated[str | None, Field(description="give it as `cursor` for the next page; null at the end")]


class PastTrace(Trace):
    """A trace of the history; later ones have higher numbers."""

    number: int
    seen_us: Seen


class Traces(Body):
    """Verdicts on live traces."""

    traces: list[PastTrace]
    next: Annotated[str | None, Field(description="give it as `cursor` for the next page; null at the end")]
    open_windows: int
    open_flows: int


class TraceSummary(Body):
    """The traces of one model, and what became of their flows."""

    model: str
    version: str
    subject_kind: Literal["originator", "responder", "pair", "mac"]
    window_seconds: Annotated[float, Field(description="0: everything is one window")]
    traces: int
    unknown: int
    suspicious: Annotated[int | None, Field(description="null where the model does not tell")]
    below_min_flows: Annotated[int, Field(description="traces of too few flows for a verdict")]
    failed: Annotated[int, Field(description="traces on which the engine failed")]
    flows: int
    cut: Annotated[int, Field(description="flows left out of traces that had too many")]
    late: Annotated[int, Field(description="flows that came after their window had to be closed")]
    unread: Annotated[int, Field(description="flows on which the model's encoder failed")]


class LabelSummary(Body):
    """What one label got."""

    label: str
    flows: int
    ip_bytes: int
    mean_confidence: float


class InputSummary(Body):
    """What came of one input; `warning` where it was read only in part."""

    name: str
    flows: int
    packets: int
    skipped: dict[str, int]
    warning: str | None
    error: str | None


class PortTries(Body):
    """What one originator tried in flows in which neither side sent payload, such as those of a port scan."""

    orig_h: str
    flows: int
    responders: Annotated[int, Field(description="hosts that it tried, told apart up to 1,000")]
    ports: Annotated[int, Field(description="distinct ports of TCP and of UDP; 0 where the flows have none")]
    more_responders: Annotated[bool, Field(description="it tried more hosts than `responders`")]


class TriedPorts(Body):
    """The account of flows without payload by originator."""

    hosts: Annotated[list[PortTries], Field(description="those with most such flows, at most 20")]
    flows_of_others: int


class Summary(Body):
    """The whole, every flow accounted for."""

    model: str
    version: str
    flows: int
    classified: int
    unknown: int
    without_payload: int
    below_min_packets: int
    failed: int
    labels: list[LabelSummary]
    inputs: list[InputSummary]
    traces: Annotated[list[TraceSummary], Field(description="one for each trace model that was asked")]
    port_tries: Annotated[TriedPorts, Field(description="who tried which ports and got no payload")]


class Classified(Body):
    """The answer to a capture or to flows."""

    flows: list[ClassifiedFlow]
    traces: list[Trace]
    summary: Summary


class Model(Body):
    """A model of the repository; what follows `default` is null where it does not serve."""

    name: str
    versions: Annotated[list[str], Field(description="in the repository, oldest first")]
    default: Annotated[bool, Field(description="serves the live path, and requests that name no model")]
    version: Annotated[str | None, Field(description="the version that serves")] = None
    kind: str | None = None
    labels: list[str] | None = None
    min_packets: int | None = None
    min_flows: Annotated[int | None, Field(description="fewest flows of a trace that gets a verdict")] = None
    metrics: dict[str, object] | None = None
    provider: Annotated[
        str | None, Field(description="what computes: an execution provider of ONNX Runtime, or torch's device")
    ] = None
    cascade: Annotated[
        bool | None,
        Field(description="whether a student answers the flows that it is sure of; null where the model has none"),
    ] = None
    closed_windows: Annotated[
        int | None,
        Field(
            description="of a trace model just loaded: live windows of its old version, closed with that one's verdicts"
        ),
    ] = None


class Models(Body):
    """The models of the repository."""

    models: list[Model]


class Health(Body):
    """`ok`, or why not."""

    status: str
