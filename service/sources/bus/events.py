"""The events of the bus: what sensors send becomes typed records here, and what goes back is put together here.

The contract, field by field, is in `zeek/README.md`. Transports know nothing of it: they carry names and plain values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from models.flow import (
    HEAD_TOKEN_COST,
    HEADS_TOKEN_BUDGET,
    MAX_CONTENT_BYTES,
    MAX_PAYLOAD_LENGTHS,
    Flow,
    HeadsKind,
    PacketHead,
)

SCHEMA_VERSION = 1
FLOWS_TOPIC = "tapline/flows/"
STATS_TOPIC = "tapline/stats"
VERDICTS_TOPIC = "tapline/verdicts"
ACKS_TOPIC = "tapline/acks"
CONTROL_TOPIC = "tapline/control"


class EventError(ValueError):
    """An event does not have the form of the contract; the message says which field, never its content."""


class SchemaVersionError(EventError):
    """An event of a schema version that this service does not read."""


class Count(int):
    """A number that goes to Zeek as `count`."""


class Address(str):
    """Text that goes to Zeek as `addr`."""


@dataclass(frozen=True, slots=True)
class BusEvent:
    """An event with plain values: int, float, bool, str, and lists of them; outgoing also `Count` and `Address`."""

    topic: str
    name: str
    args: Sequence[Any]


@dataclass(frozen=True, slots=True)
class FlowEvent:
    """`Tapline::flow`: a flow and its place in what the sensor sent."""

    flow: Flow
    seq: int
    topic: str


class Stats(msgspec.Struct, frozen=True):
    """`Tapline::stats`: a sensor's own counters since its start. `loss_percent` is -1.0 where Zeek cannot judge it."""

    sensor: str
    time_us: int
    seq: int
    early: int
    finals: int
    unchanged: int
    without_payload: int
    filtered: int
    gaps: int
    cut: int
    packets: int
    dropped: int
    link: int
    bytes: int
    loss_percent: float


@dataclass(frozen=True, slots=True)
class Finished:
    """`Tapline::finished`: a sensor has published all that it ever will; `seq` was its last number."""

    sensor: str
    seq: int


@dataclass(frozen=True, slots=True)
class VerdictsAck:
    """`Tapline::verdicts_ack`: Zeek has logged a batch."""

    service: str
    batch: int
    logged: int


SensorEvent = FlowEvent | Stats | Finished | VerdictsAck

_LENGTHS: msgspec.json.Decoder[list[int]] = msgspec.json.Decoder(list[int])
_HEADS_KINDS: dict[str, HeadsKind] = {"none": "none", "header": "header", "full": "full"}

_FLOW_TYPES = (
    int, str, int, bool, str, int, int, str, int, str, int, str, str, str, int, int, int, int, int, int, str, str, str,
    int, str, str,
)  # fmt: skip
_STATS_TYPES = (int, str, *[int] * 13, float)


def parse_event(event: BusEvent) -> SensorEvent | None:
    """The typed record of an event; None for one that is none of ours.

    Raises:
        SchemaVersionError: the sensor speaks another version.
        EventError: too few or too many fields, a wrong type, or a value out of bounds.
    """
    parser = _PARSERS.get(event.name)
    return parser(event) if parser else None


def _checked(event: BusEvent, types: tuple[type, ...]) -> Sequence[Any]:
    """The arguments, when version, number and types are those of the contract."""
    args = event.args
    if not args or type(args[0]) is not int:
        raise EventError(f"{event.name}: no schema version")
    if args[0] != SCHEMA_VERSION:
        raise SchemaVersionError(
            f"{event.name} of schema version {args[0]}: this service reads version {SCHEMA_VERSION}, "
            "install the tapline package of the same release on the sensor"
        )
    if len(args) != len(types):
        raise EventError(f"{event.name}: {len(args)} fields instead of {len(types)}")
    for index, (value, expected) in enumerate(zip(args, types, strict=True)):
        if type(value) is not expected:
            raise EventError(f"{event.name}: field {index} is {type(value).__name__}, not {expected.__name__}")
        if expected is int and value < 0:  # type: ignore[operator]
            raise EventError(f"{event.name}: field {index} is negative")
    return args


def _parse_flow(event: BusEvent) -> FlowEvent:
    (
        _, sensor, seq, final, uid, start_us, duration_us, orig_h, orig_p, resp_h, resp_p, proto, service, conn_state,
        orig_pkts, resp_pkts, orig_ip_bytes, resp_ip_bytes, up, down, lengths, orig_bytes, resp_bytes, link_type,
        heads_kind, heads,
    ) = _checked(event, _FLOW_TYPES)  # fmt: skip
    flow = Flow(
        uid, start_us, duration_us, orig_h, orig_p, resp_h, resp_p, proto, up, down, _lengths(lengths),
        _hex("orig_bytes", orig_bytes, MAX_CONTENT_BYTES), _hex("resp_bytes", resp_bytes, MAX_CONTENT_BYTES),
        orig_pkts, resp_pkts, orig_ip_bytes, resp_ip_bytes, link_type, _heads_kind(heads_kind), _heads(heads),
        service, conn_state, sensor, final,
    )  # fmt: skip
    return FlowEvent(flow, seq, event.topic)


def _lengths(text: str) -> list[int]:
    try:
        lengths = _LENGTHS.decode(f"[{text}]")
    except msgspec.DecodeError:
        raise EventError("payload_lengths: not numbers with commas between them") from None
    if len(lengths) > MAX_PAYLOAD_LENGTHS:
        raise EventError(f"payload_lengths: {len(lengths)}, more than {MAX_PAYLOAD_LENGTHS}")
    if lengths and (min(lengths) < -65535 or max(lengths) > 65535 or 0 in lengths):
        raise EventError("payload_lengths: a length that no packet has")
    return lengths


def _hex(name: str, text: str, limit: int) -> bytes:
    if len(text) > 2 * limit:
        raise EventError(f"{name}: more than {limit} bytes")
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise EventError(f"{name}: not hex") from None


def _heads_kind(text: str) -> HeadsKind:
    if text not in _HEADS_KINDS:
        raise EventError("heads_kind: not none, header or full")
    return _HEADS_KINDS[text]


def _heads(text: str) -> list[PacketHead]:
    """`gap_us:hex;gap_us:hex...`, within the budget of tokens."""
    if not text:
        return []
    found = []
    budget = HEADS_TOKEN_BUDGET
    for part in text.split(";"):
        gap, separator, data = part.partition(":")
        if not separator or not gap.isdecimal() or len(gap) > 18:
            raise EventError("heads: not gap_us:hex with semicolons between them")
        found.append(PacketHead(int(gap), _hex("heads", data, HEADS_TOKEN_BUDGET)))
        budget -= HEAD_TOKEN_COST + len(found[-1].data)
        if budget < 0:
            raise EventError(f"heads: more than fill {HEADS_TOKEN_BUDGET} tokens")
    return found


def _parse_stats(event: BusEvent) -> Stats:
    return Stats(*_checked(event, _STATS_TYPES)[1:])


def _parse_finished(event: BusEvent) -> Finished:
    _, sensor, seq = _checked(event, (int, str, int))
    return Finished(sensor, seq)


def _parse_ack(event: BusEvent) -> VerdictsAck:
    _, service, batch, logged = _checked(event, (int, str, int, int))
    return VerdictsAck(service, batch, logged)


_PARSERS: dict[str, Callable[[BusEvent], SensorEvent]] = {
    "Tapline::flow": _parse_flow,
    "Tapline::stats": _parse_stats,
    "Tapline::finished": _parse_finished,
    "Tapline::verdicts_ack": _parse_ack,
}


class VerdictRow(msgspec.Struct, frozen=True, gc=False):
    """One verdict on its way to Zeek, in the order of `Tapline::Verdict`."""

    uid: str
    community_id: str
    orig_h: str
    orig_p: int
    resp_h: str
    resp_p: int
    proto: str
    label: str
    confidence: float
    unknown: bool
    final: bool
    model: str
    model_version: str

    def values(self) -> list[Any]:
        """The record by position, as the bus sends it."""
        return [
            self.uid, self.community_id, Address(self.orig_h), Count(self.orig_p), Address(self.resp_h),
            Count(self.resp_p), self.proto, self.label, self.confidence, self.unknown, self.final, self.model,
            self.model_version,
        ]  # fmt: skip


def verdicts_event(service: str, batch: int, rows: Sequence[VerdictRow]) -> BusEvent:
    """`Tapline::verdicts`: a batch of verdicts for Zeek."""
    args = [Count(SCHEMA_VERSION), Count(batch), service, [row.values() for row in rows]]
    return BusEvent(VERDICTS_TOPIC, "Tapline::verdicts", args)


class TraceVerdictRow(msgspec.Struct, frozen=True, gc=False):
    """One verdict on a trace on its way to Zeek, in the order of `Tapline::TraceVerdict`."""

    subject: str
    subject_kind: str
    start_us: int
    end_us: int
    flows: int
    cut: int
    label: str
    confidence: float
    unknown: bool
    final: bool
    top_uids: list[str]
    top_shares: list[float]
    model: str
    model_version: str

    def values(self) -> list[Any]:
        """The record by position, as the bus sends it."""
        return [
            self.subject, self.subject_kind, Count(self.start_us), Count(self.end_us), Count(self.flows),
            Count(self.cut), self.label, self.confidence, self.unknown, self.final, self.top_uids, self.top_shares,
            self.model, self.model_version,
        ]  # fmt: skip


def trace_verdicts_event(service: str, batch: int, rows: Sequence[TraceVerdictRow]) -> BusEvent:
    """`Tapline::trace_verdicts`: a batch of verdicts on traces for Zeek."""
    args = [Count(SCHEMA_VERSION), Count(batch), service, [row.values() for row in rows]]
    return BusEvent(VERDICTS_TOPIC, "Tapline::trace_verdicts", args)


def finished_ack_event(sensor: str) -> BusEvent:
    """`Tapline::finished_ack`: everything before the end marker has been read."""
    return BusEvent(CONTROL_TOPIC, "Tapline::finished_ack", [Count(SCHEMA_VERSION), sensor])
