"""The events of the bus, and what sensors send: it becomes typed records here. `answers` puts together what goes back.

The contract, field by field, is in `zeek/README.md`. Transports know nothing of it: they carry names and plain values.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import msgspec

from tapline.models.flow import (
    HEAD_TOKEN_COST,
    HEADS_TOKEN_BUDGET,
    MAX_CONTENT_BYTES,
    MAX_COUNT,
    MAX_NAME_CHARS,
    Flow,
    FlowError,
    HeadsKind,
    Lengths,
    LinkType,
    Name,
    PacketHead,
    Port,
    Uid,
    check_flow,
)
from tapline.models.flow import (
    Count as FlowCount,
)
from tapline.service.sources.bus.flow_batches import MAX_BATCH_FLOWS, BatchError, read_batch
from tapline.service.sources.bus.glances import Choose, Glance, Wanted

SCHEMA_VERSION = 1
"""Of every event but `Tapline::flows`."""

BATCH_VERSION = 2
"""Of `Tapline::flows`; sensors before it send each flow alone, by `Tapline::flow`."""

LINES_VERSION = 2
"""Of `Tapline::verdict_lines`, which goes to sensors that say they take it; others get `Tapline::verdicts`."""

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
    """An event with plain values: int, float, bool, str, lists of them; outgoing also `Count`, `Address` and None."""

    topic: str
    name: str
    args: Sequence[Any]


@dataclass(frozen=True, slots=True)
class FlowRun:
    """Flows that a sensor numbered one after the other, the first of them `seq`; never empty. Those that were not
    wanted were not read, and stand in `unread`."""

    seq: int
    flows: Sequence[Flow]
    unread: Sequence[Glance] = ()

    @property
    def last_seq(self) -> int:
        """The number of the last one."""
        return self.seq + len(self.flows) + len(self.unread) - 1


@dataclass(frozen=True, slots=True)
class FlowsEvent:
    """`Tapline::flow` (format 1) or `Tapline::flows` (format 2): flows and their places in what the sensor sent.

    `refused` has an error for each flow between the runs that is out of bounds.
    """

    topic: str
    sensor: str
    format: int
    runs: Sequence[FlowRun]
    refused: Sequence[EventError] = ()


class Stats(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """`Tapline::stats`: a sensor's own counters since its start. `loss_percent` is -1.0 where Zeek cannot judge it."""

    sensor: Name
    time_us: FlowCount
    seq: FlowCount
    early: FlowCount
    finals: FlowCount
    unchanged: FlowCount
    without_payload: FlowCount
    filtered: FlowCount
    gaps: FlowCount
    cut: FlowCount
    packets: FlowCount
    dropped: FlowCount
    link: FlowCount
    bytes: FlowCount
    loss_percent: Annotated[float, msgspec.Meta(ge=-1, le=1e6)]


class Finished(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """`Tapline::finished`: a sensor has published all that it ever will; `seq` was its last number."""

    sensor: Name
    seq: FlowCount


class VerdictsAck(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """`Tapline::verdicts_ack`: Zeek has logged a batch."""

    service: Name
    batch: FlowCount
    logged: FlowCount


class TakesVerdicts(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """`Tapline::takes_verdicts`: the newest version of verdicts on flows that a sensor takes."""

    sensor: Name
    verdicts: FlowCount


SensorEvent = FlowsEvent | Stats | Finished | VerdictsAck | TakesVerdicts


class _FlowArgs(msgspec.Struct, array_like=True, forbid_unknown_fields=True, gc=False):
    """The arguments of `Tapline::flow` behind the schema version, within the bounds of a `Flow`."""

    sensor: Name
    seq: FlowCount
    final: bool
    uid: Uid
    start_us: FlowCount
    duration_us: FlowCount
    orig_h: Name
    orig_p: Port
    resp_h: Name
    resp_p: Port
    proto: Name
    service: Name
    conn_state: Name
    orig_pkts: FlowCount
    resp_pkts: FlowCount
    orig_ip_bytes: FlowCount
    resp_ip_bytes: FlowCount
    up: FlowCount
    down: FlowCount
    payload_lengths: str
    orig_bytes: str
    resp_bytes: str
    link_type: LinkType
    heads_kind: HeadsKind
    heads: str


class _FlowsArgs(msgspec.Struct, array_like=True, forbid_unknown_fields=True, gc=False):
    """The arguments of `Tapline::flows` behind the schema version."""

    sensor: Name
    seq: FlowCount
    flows: Annotated[int, msgspec.Meta(ge=1, le=MAX_BATCH_FLOWS)]
    packed: str


_Record = TypeVar("_Record", bound=msgspec.Struct)
_LENGTHS: msgspec.json.Decoder[Lengths] = msgspec.json.Decoder(Lengths)
_PLACE = re.compile(r"`\$\[(\d+)\]`")


def parse_event(event: BusEvent, choose: Choose = lambda: None) -> SensorEvent | None:
    """The typed record of an event; None for one that is none of ours. `choose` gives what says which flows of a
    batch to read.

    Raises:
        SchemaVersionError: the sensor speaks another version.
        EventError: too few or too many fields, a wrong type, a value out of bounds, or a flow that is none.
    """
    if event.name == "Tapline::flows":
        return _parse_flows(event, choose())
    parser = _PARSERS.get(event.name)
    return parser(event) if parser else None


def _read(event: BusEvent, kind: type[_Record], version: int = SCHEMA_VERSION) -> _Record:
    """The arguments as a record, when version, number, types and bounds are those of the contract."""
    args = event.args
    if not args or type(args[0]) is not int:
        raise EventError(f"{event.name}: no schema version")
    if args[0] != version:
        found = args[0] if 0 <= args[0] <= MAX_COUNT else "unknown to us"
        raise SchemaVersionError(
            f"{event.name} of schema version {found}: this service reads version {version}, "
            "install the tapline package of the same release on the sensor"
        )
    if len(args) - 1 != len(kind.__struct_fields__):
        raise EventError(f"{event.name}: {len(args)} fields instead of {len(kind.__struct_fields__) + 1}")
    if len(event.topic) > MAX_NAME_CHARS:
        raise EventError(f"{event.name}: a topic of more than {MAX_NAME_CHARS} characters")
    try:
        return msgspec.convert(args[1:], kind)
    except msgspec.ValidationError as error:
        raise EventError(f"{event.name}: {_named(str(error), kind)}") from None


def _named(message: str, kind: type[msgspec.Struct]) -> str:
    """msgspec's message with the name of the field in the place of its number, and without its content."""
    if message.startswith("Invalid enum value"):
        message = f"Invalid value -{message.rpartition('-')[2]}"
    return _PLACE.sub(lambda match: f"`{kind.__struct_fields__[int(match[1])]}`", message)


def _parse_flow(event: BusEvent) -> FlowsEvent:
    args = _read(event, _FlowArgs)
    flow = Flow(
        args.uid, args.start_us, args.duration_us, args.orig_h, args.orig_p, args.resp_h, args.resp_p, args.proto,
        args.up, args.down, _lengths(args.payload_lengths), _hex("orig_bytes", args.orig_bytes, MAX_CONTENT_BYTES),
        _hex("resp_bytes", args.resp_bytes, MAX_CONTENT_BYTES), args.orig_pkts, args.resp_pkts, args.orig_ip_bytes,
        args.resp_ip_bytes, args.link_type, args.heads_kind, _heads(args.heads), args.service, args.conn_state,
        args.sensor, args.final,
    )  # fmt: skip
    try:
        run = FlowRun(args.seq, [check_flow(flow)])
    except FlowError as error:
        raise EventError(f"{event.name}: {error}") from None
    return FlowsEvent(event.topic, args.sensor, SCHEMA_VERSION, [run])


def _parse_flows(event: BusEvent, wanted: Wanted | None) -> FlowsEvent:
    args = _read(event, _FlowsArgs, BATCH_VERSION)
    try:
        found = read_batch(args.packed, args.flows, args.sensor, wanted)
    except BatchError as error:
        raise EventError(f"{event.name}: {error}") from None
    refused = [EventError(f"{event.name}: {each}") for each in found if isinstance(each, FlowError)]
    return FlowsEvent(event.topic, args.sensor, BATCH_VERSION, _runs(args.seq, found), refused)


def _runs(seq: int, found: Sequence[Flow | FlowError | Glance]) -> list[FlowRun]:
    """The flows between those that were refused; the first of all has the number `seq`."""
    runs = []
    flows, unread = list[Flow](), list[Glance]()
    for number, each in enumerate([*found, None], seq):
        if isinstance(each, Flow):
            flows.append(each)
        elif isinstance(each, Glance):
            unread.append(each)
        elif flows or unread:
            runs.append(FlowRun(number - len(flows) - len(unread), flows, unread))
            flows, unread = [], []
    return runs


def _lengths(text: str) -> Lengths:
    try:
        return _LENGTHS.decode(f"[{text}]")
    except msgspec.ValidationError as error:
        raise EventError(f"payload_lengths: {error}") from None
    except (msgspec.DecodeError, RecursionError):
        raise EventError("payload_lengths: not numbers with commas between them") from None


def _hex(name: str, text: str, limit: int) -> bytes:
    if len(text) > 2 * limit:
        raise EventError(f"{name}: more than {limit} bytes")
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise EventError(f"{name}: not hex") from None


def _heads(text: str) -> list[PacketHead]:
    """`gap_us:hex;gap_us:hex...`, within the budget of tokens."""
    if not text:
        return []
    found = []
    budget = HEADS_TOKEN_BUDGET
    for part in text.split(";", HEADS_TOKEN_BUDGET):
        gap, separator, data = part.partition(":")
        if not separator or not (gap.isascii() and gap.isdecimal()) or len(gap) > 15:
            raise EventError("heads: not gap_us:hex with semicolons between them")
        found.append(PacketHead(int(gap), _hex("heads", data, HEADS_TOKEN_BUDGET)))
        budget -= HEAD_TOKEN_COST + len(found[-1].data)
        if budget < 0:
            raise EventError(f"heads: more than fill {HEADS_TOKEN_BUDGET} tokens")
    return found


_PARSERS: dict[str, Callable[[BusEvent], SensorEvent]] = {
    "Tapline::flow": _parse_flow,
    "Tapline::stats": lambda event: _read(event, Stats),
    "Tapline::finished": lambda event: _read(event, Finished),
    "Tapline::verdicts_ack": lambda event: _read(event, VerdictsAck),
    "Tapline::takes_verdicts": lambda event: _read(event, TakesVerdicts),
}
