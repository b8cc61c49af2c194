"""The flow record that every source yields and every model reads, and its JSON form. Packets belong to the sources."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import Annotated, Any, Literal

import msgspec

from tapline.models.foreign_text import clean

FLOW_FORMAT_VERSION = 1
"""Version of the flow record and of its JSON form; checkpoints and the bus carry it."""

MAX_PAYLOAD_LENGTHS = 254
"""Signed payload lengths kept per flow: what MM4flow's 256 `ps` tokens can read."""

MAX_CONTENT_BYTES = 256
"""Content bytes kept per direction."""

HEADS_TOKEN_BUDGET = 510
"""Tracegram tokens that packet heads may fill: 512 less the class token and the end token."""

HEAD_TOKEN_COST = 10
"""Tracegram tokens that a packet head costs before its bytes: packet start, link type, eight bytes of time."""

MAX_PACKET_HEADS = HEADS_TOKEN_BUDGET // HEAD_TOKEN_COST

MAX_PAYLOAD_LENGTH = 2**31 - 1
"""Longest payload of one packet: segments above 65,535 bytes exist (BIG TCP; jumbograms, RFC 2675)."""

MAX_COUNT = 2**53 - 1
"""Largest count and latest time (June 2255, in microseconds): exact in a double, as JSON is read elsewhere."""

MAX_NAME_CHARS = 128
"""Longest uid, sensor, service and the like: names are remembered, and memory is bounded."""

MAX_SERVER_NAME_CHARS = 255
"""Longest name of a server: that of a host name (RFC 1035, 2.3.4)."""

HeadsKind = Literal["none", "header", "full"]
"""Which bytes packet heads hold: nothing, the headers alone, or headers and payload."""

Count = Annotated[int, msgspec.Meta(ge=0, le=MAX_COUNT)]
Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
Length = Annotated[int, msgspec.Meta(ge=-MAX_PAYLOAD_LENGTH, le=MAX_PAYLOAD_LENGTH)]
Lengths = Annotated[Sequence[Length], msgspec.Meta(max_length=MAX_PAYLOAD_LENGTHS)]
LinkType = Annotated[int, msgspec.Meta(ge=0, le=255)]
Name = Annotated[str, msgspec.Meta(max_length=MAX_NAME_CHARS)]
ServerName = Annotated[str, msgspec.Meta(max_length=MAX_SERVER_NAME_CHARS)]
Uid = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_NAME_CHARS)]
Content = Annotated[bytes, msgspec.Meta(max_length=MAX_CONTENT_BYTES)]
HeadBytes = Annotated[bytes, msgspec.Meta(max_length=HEADS_TOKEN_BUDGET - HEAD_TOKEN_COST)]

PROTOCOLS = frozenset({"tcp", "udp", "icmp", *map(str, range(256))})
"""What `proto` may be: a name, or the decimal number of any other IP protocol."""

_PROTOCOL_NUMBERS = {"tcp": 6, "udp": 17}


class FlowError(ValueError):
    """A flow is not one that this version reads; the message names the field, never its content."""


class PacketHead(msgspec.Struct, gc=False):
    """The first bytes of one packet, from the link layer on, as captured.

    `gap_us` is the time since the flow's previous packet in microseconds, 0 for the first.
    """

    gap_us: Count
    data: HeadBytes


class Flow(msgspec.Struct, gc=False):
    """One Zeek connection: what the models read of it and its conn fields.

    The types of the fields are its bounds: whatever decodes a flow checks them, and `check_flow` the rest. Payload
    lengths and heads are lists, or the same packed (`models.packed_packets`), from sources that read many flows.

    At most `MAX_PAYLOAD_LENGTHS` lengths, `MAX_CONTENT_BYTES` bytes each way, and the heads of the first
    packets that fill `HEADS_TOKEN_BUDGET` tokens (each costs `HEAD_TOKEN_COST` and its length; the last is cut to what
    fits).

    * `start_us`: first packet, microseconds since the epoch; `duration_us`: first to last packet.
    * `orig_h`, `resp_h`: textual addresses; ICMP ports are type and counterpart type as Zeek gives them.
    * `proto`: `tcp`, `udp`, `icmp` (both versions), otherwise the decimal IP protocol number.
    * `up`, `down`: all packets with payload from the originator and from the responder, beyond the kept lengths too.
    * `payload_lengths`: `+n` from the originator, `-n` from the responder, in capture order; packets without payload
      are left out.
    * `orig_bytes`, `resp_bytes`: first content bytes each way; TCP in order up to the first gap, UDP datagrams joined.
    * `orig_pkts`, `resp_pkts`, `orig_ip_bytes`, `resp_ip_bytes`: all packets and their IP lengths, as in conn.log.
    * `link_type`: Tracegram's link-type byte of the heads, 0 without heads.
    * `complete`: False for a flow published early, while it still lives.
    * `server_name`: the name of the server, where the source itself knows it; `models.server_name` gives that of any
      flow. Shown beside verdicts, read by no model.
    """

    uid: Uid
    start_us: Count
    duration_us: Count
    orig_h: Name
    orig_p: Port
    resp_h: Name
    resp_p: Port
    proto: Name
    up: Count = 0
    down: Count = 0
    payload_lengths: Lengths = msgspec.field(default_factory=list)
    orig_bytes: Content = b""
    resp_bytes: Content = b""
    orig_pkts: Count = 0
    resp_pkts: Count = 0
    orig_ip_bytes: Count = 0
    resp_ip_bytes: Count = 0
    link_type: LinkType = 0
    heads_kind: HeadsKind = "none"
    heads: Annotated[Sequence[PacketHead], msgspec.Meta(max_length=MAX_PACKET_HEADS)] = msgspec.field(
        default_factory=list
    )
    service: Name = ""
    conn_state: Name = ""
    sensor: Name = ""
    complete: bool = True
    server_name: ServerName = ""


def ip_protocol_number(proto: str, address: str) -> int:
    """The IP protocol number of a flow's `proto`; ICMP is 58 between IPv6 addresses."""
    if proto == "icmp":
        return 58 if ":" in address else 1
    return _PROTOCOL_NUMBERS.get(proto) or int(proto)


def check_flow(flow: Flow) -> Flow:
    """The flow itself, where it is one: what its types cannot say is checked here, for every source alike.

    Raises:
        FlowError: an address is none (a scope id belongs to none), the two are of different IP versions, an IP
            protocol is none, a packet with payload has none, the heads fill more than `HEADS_TOKEN_BUDGET` tokens, or
            the flow ends after `MAX_COUNT`.
    """
    for name, address in (("orig_h", flow.orig_h), ("resp_h", flow.resp_h)):
        if not _is_address(address):
            raise FlowError(f"expected an IPv4 or IPv6 address - at `$.{name}`")
    if (":" in flow.orig_h) is not (":" in flow.resp_h):
        raise FlowError("expected two addresses of one IP version - at `$.resp_h`")
    if flow.proto not in PROTOCOLS:
        raise FlowError("expected `tcp`, `udp`, `icmp` or an IP protocol number up to 255 - at `$.proto`")
    if 0 in flow.payload_lengths:
        raise FlowError("expected lengths of packets with payload, got 0 - at `$.payload_lengths`")
    if flow.heads and sum([HEAD_TOKEN_COST + len(head.data) for head in flow.heads]) > HEADS_TOKEN_BUDGET:
        raise FlowError(f"expected heads that fill at most {HEADS_TOKEN_BUDGET} tokens - at `$.heads`")
    if flow.start_us + flow.duration_us > MAX_COUNT:
        raise FlowError(f"expected an end up to {MAX_COUNT} us - at `$.duration_us`")
    return flow


def flow_of(fields: Mapping[str, Any]) -> Flow:
    """The flow of fields by name, checked.

    Raises:
        FlowError: a field is missing, has a wrong type or is out of bounds.
    """
    try:
        return check_flow(msgspec.convert(fields, Flow))
    except msgspec.ValidationError as error:
        raise FlowError(str(error)) from None


def _is_address(text: str) -> bool:
    try:
        socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)
    except (OSError, ValueError):
        return False
    return True


_ContentHex = Annotated[str, msgspec.Meta(max_length=2 * MAX_CONTENT_BYTES, pattern="^([0-9a-fA-F]{2})*$")]
_HeadHex = Annotated[
    str, msgspec.Meta(max_length=2 * (HEADS_TOKEN_BUDGET - HEAD_TOKEN_COST), pattern="^([0-9a-fA-F]{2})*$")
]
_Tokens = Annotated[list[int], msgspec.Meta(max_length=512)]


class PacketHeadLine(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    """A packet head in JSON: the gap in microseconds, the bytes in hex."""

    gap_us: Count
    data: _HeadHex


class FlowLine(msgspec.Struct, gc=False, forbid_unknown_fields=True, omit_defaults=False):
    """A flow in JSON: one line of `tapline features`, and what the API takes. Bytes are hex; the rest is as in `Flow`.

    The token fields are written on request and ignored when read back, as `community_id` is: both follow from the flow.
    """

    uid: Uid
    start_us: Count
    orig_h: Name
    orig_p: Port
    resp_h: Name
    resp_p: Port
    proto: Name
    duration_us: Count = 0
    community_id: Name = ""
    up: Count = 0
    down: Count = 0
    payload_lengths: Lengths = msgspec.field(default_factory=list)
    orig_bytes: _ContentHex = ""
    resp_bytes: _ContentHex = ""
    orig_pkts: Count = 0
    resp_pkts: Count = 0
    orig_ip_bytes: Count = 0
    resp_ip_bytes: Count = 0
    link_type: LinkType = 0
    heads_kind: HeadsKind = "none"
    heads: Annotated[list[PacketHeadLine], msgspec.Meta(max_length=MAX_PACKET_HEADS)] = msgspec.field(
        default_factory=list
    )
    service: Name = ""
    conn_state: Name = ""
    sensor: Name = ""
    complete: bool = True
    server_name: ServerName = ""
    ps_tokens: _Tokens | msgspec.UnsetType = msgspec.UNSET
    bytes_tokens: _Tokens | msgspec.UnsetType = msgspec.UNSET
    bytes_types: _Tokens | msgspec.UnsetType = msgspec.UNSET


_OTHER_IN_JSON = {"payload_lengths", "orig_bytes", "resp_bytes", "heads"}
_SAME_IN_JSON = [name for name in Flow.__struct_fields__ if name not in _OTHER_IN_JSON]


_SAME_OF = attrgetter(*_SAME_IN_JSON)


def line_fields(flow: Flow, community_id: str = "") -> dict[str, Any]:
    """The fields of a flow's JSON form by name, without tokens."""
    fields = dict(zip(_SAME_IN_JSON, _SAME_OF(flow), strict=True))
    fields["community_id"] = community_id
    fields["payload_lengths"] = list(flow.payload_lengths)
    fields["orig_bytes"], fields["resp_bytes"] = flow.orig_bytes.hex(), flow.resp_bytes.hex()
    fields["heads"] = [PacketHeadLine(head.gap_us, head.data.hex()) for head in flow.heads]
    return fields


def flow_to_line(flow: Flow, community_id: str = "") -> FlowLine:
    """The JSON form of a flow, without tokens."""
    return FlowLine(**line_fields(flow, community_id))


def line_to_flow(line: FlowLine) -> Flow:
    """The flow of a JSON form.

    Raises:
        FlowError: as of `check_flow`.
    """
    return check_flow(
        Flow(
            **{name: getattr(line, name) for name in _SAME_IN_JSON},
            payload_lengths=line.payload_lengths,
            orig_bytes=bytes.fromhex(line.orig_bytes),
            resp_bytes=bytes.fromhex(line.resp_bytes),
            heads=[PacketHead(head.gap_us, bytes.fromhex(head.data)) for head in line.heads],
        )
    )


_DECODER = msgspec.json.Decoder(FlowLine)


def parse_flow(text: bytes | str) -> Flow:
    """Read one flow in JSON, as `tapline features` writes it.

    Raises:
        FlowError: not JSON, an unknown field, a wrong type or a value out of bounds; the message names the field.
    """
    try:
        return line_to_flow(_DECODER.decode(text))
    except msgspec.DecodeError as error:  # ValidationError, its subclass, names the field
        raise FlowError(clean(str(error), MAX_NAME_CHARS)) from None  # it names a field that is not known
    except (RecursionError, UnicodeDecodeError):
        raise FlowError("expected a JSON object in UTF-8") from None
