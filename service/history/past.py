"""The records of the history: what a reader of it gets."""

from __future__ import annotations

from typing import Generic, Literal, TypeVar

import msgspec

from tapline.models.trace import SubjectKind
from tapline.models.verdict import Verdict
from tapline.service.alerts.alert import Alert
from tapline.service.traces.trace_verdict import TopFlow

MAX_PAGE = 1000
"""Most records of a page."""

Item = TypeVar("Item")


class FlowRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A flow and the verdict on it, fields as of `models.flow.FlowLine`.

    `seen_us` is when its first verdict came, by this machine's clock, microseconds since the epoch. `source` is the URL
    of a bus or the name of a capture. `server_name` is foreign text. `orig_bytes` and `resp_bytes` are hex, empty
    unless the history keeps content.
    """

    seen_us: int
    source: str
    sensor: str
    uid: str
    community_id: str
    start_us: int
    duration_us: int
    proto: str
    orig_h: str
    orig_p: int
    resp_h: str
    resp_p: int
    up: int
    down: int
    orig_pkts: int
    resp_pkts: int
    orig_ip_bytes: int
    resp_ip_bytes: int
    service: str
    conn_state: str
    server_name: str
    payload_lengths: list[int]
    orig_bytes: str
    resp_bytes: str
    verdict: Verdict


class PastFlow(FlowRecord, frozen=True, kw_only=True):
    """A flow of the history. `number` names it for ever; later ones have higher numbers."""

    number: int


class TraceRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A verdict on a trace, fields as of `service.traces.trace_verdict.TraceVerdict`; `seen_us` as of `FlowRecord`."""

    seen_us: int
    source: str
    subject_kind: SubjectKind
    subject: str
    start_us: int
    end_us: int
    flows: int
    cut: int
    verdict: Verdict
    top_flows: list[TopFlow]
    suspicion: float | None
    suspicious: bool | None


class PastTrace(TraceRecord, frozen=True, kw_only=True):
    """A trace verdict of the history; `number` as of `PastFlow`."""

    number: int


class PastAlert(Alert, frozen=True, kw_only=True, gc=False, omit_defaults=True):
    """An alert of the history; `number` and `seen_us` as of `PastFlow`. `acknowledged_us` is when somebody first said
    that they have seen to it, `acknowledged_by` the name of the key with which they did, as in the account of access;
    None where a service that did not keep it noted it."""

    number: int
    seen_us: int
    acknowledged_us: int | None = None
    acknowledged_by: str | None = None


class Page(msgspec.Struct, Generic[Item], frozen=True):
    """Some records in the order that was asked for. `next` is the cursor of the page after, None at the end."""

    items: list[Item]
    next: str | None


class HostLabel(msgspec.Struct, frozen=True):
    """Flows of a host that got a label."""

    label: str
    flows: int


class PastHost(msgspec.Struct, frozen=True, kw_only=True):
    """A host that began flows: how many got verdicts, what they were, most frequent first, and how much they moved.

    `ip_bytes`: both ways. `peers` and `ports`: how many responders and responders' ports. `last_seen_us` as `seen_us`.
    """

    host: str
    flows: int
    ip_bytes: int
    unknown: int
    unexpected_ports: int
    peers: int
    ports: int
    first_seen_us: int
    last_seen_us: int
    labels: list[HostLabel]


class Hosts(msgspec.Struct, frozen=True):
    """Hosts with most flows first. `flows_read` newest flows were counted; `complete` says that there were no more."""

    hosts: list[PastHost]
    flows_read: int
    complete: bool


class SeriesPoint(msgspec.Struct, frozen=True):
    """What one label, model or sensor got in the step that begins at `time_us`."""

    time_us: int
    name: str
    count: int
    ip_bytes: int


class Unclassified(msgspec.Struct, frozen=True, kw_only=True):
    """Flows that a host began and that could get no verdict: a scan, above all, where many ports or peers are tried.

    `peers` and `ports` are how many were told apart; where `more` is True there were more than are remembered.
    `some_ports` and `some_peers` are the first of them in order.
    """

    host: str
    without_payload: int
    below_min_packets: int
    ports: int
    peers: int
    more: bool
    some_ports: list[int]
    some_peers: list[str]
    first_seen_us: int
    last_seen_us: int


class HistoryCounts(msgspec.Struct):
    """What became of what was given to the history: `kept` in the database; `shed` because the queue was full;
    `failed` because the database refused it; `pending`, on its way. In records: verdicts, flows without one, alerts and
    what was seen to."""

    kept: int = 0
    shed: int = 0
    failed: int = 0
    pending: int = 0


SeriesName = Literal["label", "model", "sensor"]
SeriesKind = Literal["flow", "trace"]
FlowSort = Literal["time", "confidence", "bytes"]
