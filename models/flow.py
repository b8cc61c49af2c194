"""The flow record that every source yields and every model reads, and its JSON form. Packets belong to the sources."""

from __future__ import annotations

import ipaddress
from typing import Annotated, Literal

import msgspec

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

HeadsKind = Literal["none", "header", "full"]
"""Which bytes packet heads hold: nothing, the headers alone, or headers and payload."""

_PROTOCOL_NUMBERS = {"tcp": 6, "udp": 17}


class FlowError(ValueError):
    """A flow in JSON does not have the form that this version reads; the message names the field."""


class PacketHead(msgspec.Struct, gc=False):
    """The first bytes of one packet, from the link layer on, as captured.

    `gap_us` is the time since the flow's previous packet in microseconds, 0 for the first.
    """

    gap_us: int
    data: bytes


class Flow(msgspec.Struct, gc=False):
    """One Zeek connection: what the models read of it and its conn fields.

    Bounded: at most `MAX_PAYLOAD_LENGTHS` lengths, `MAX_CONTENT_BYTES` bytes each way, and the heads of the first
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
    """

    uid: str
    start_us: int
    duration_us: int
    orig_h: str
    orig_p: int
    resp_h: str
    resp_p: int
    proto: str
    up: int = 0
    down: int = 0
    payload_lengths: list[int] = msgspec.field(default_factory=list)
    orig_bytes: bytes = b""
    resp_bytes: bytes = b""
    orig_pkts: int = 0
    resp_pkts: int = 0
    orig_ip_bytes: int = 0
    resp_ip_bytes: int = 0
    link_type: int = 0
    heads_kind: HeadsKind = "none"
    heads: list[PacketHead] = msgspec.field(default_factory=list)
    service: str = ""
    conn_state: str = ""
    sensor: str = ""
    complete: bool = True


def ip_protocol_number(proto: str, address: str) -> int:
    """The IP protocol number of a flow's `proto`; ICMP is 58 between IPv6 addresses."""
    if proto == "icmp":
        return 58 if ":" in address else 1
    return _PROTOCOL_NUMBERS.get(proto) or int(proto)


_Count = Annotated[int, msgspec.Meta(ge=0, lt=2**62)]
_Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
_Length = Annotated[int, msgspec.Meta(ge=-65535, le=65535)]
_Name = Annotated[str, msgspec.Meta(max_length=128)]
_ContentHex = Annotated[str, msgspec.Meta(max_length=2 * MAX_CONTENT_BYTES, pattern="^([0-9a-fA-F]{2})*$")]
_HeadHex = Annotated[str, msgspec.Meta(max_length=2 * HEADS_TOKEN_BUDGET, pattern="^([0-9a-fA-F]{2})*$")]


class PacketHeadLine(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    """A packet head in JSON: the gap in microseconds, the bytes in hex."""

    gap_us: _Count
    data: _HeadHex


class FlowLine(msgspec.Struct, gc=False, forbid_unknown_fields=True, omit_defaults=False):
    """A flow in JSON: one line of `tapline features`, and what the API takes. Bytes are hex; the rest is as in `Flow`.

    The token fields are written on request and ignored when read back, as `community_id` is: both follow from the flow.
    """

    uid: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
    start_us: _Count
    orig_h: _Name
    orig_p: _Port
    resp_h: _Name
    resp_p: _Port
    proto: Annotated[str, msgspec.Meta(pattern="^(tcp|udp|icmp|[0-9]{1,3})$")]
    duration_us: _Count = 0
    community_id: _Name = ""
    up: _Count = 0
    down: _Count = 0
    payload_lengths: Annotated[list[_Length], msgspec.Meta(max_length=MAX_PAYLOAD_LENGTHS)] = msgspec.field(
        default_factory=list
    )
    orig_bytes: _ContentHex = ""
    resp_bytes: _ContentHex = ""
    orig_pkts: _Count = 0
    resp_pkts: _Count = 0
    orig_ip_bytes: _Count = 0
    resp_ip_bytes: _Count = 0
    link_type: Annotated[int, msgspec.Meta(ge=0, le=255)] = 0
    heads_kind: HeadsKind = "none"
    heads: Annotated[list[PacketHeadLine], msgspec.Meta(max_length=MAX_PACKET_HEADS)] = msgspec.field(
        default_factory=list
    )
    service: _Name = ""
    conn_state: _Name = ""
    sensor: _Name = ""
    complete: bool = True
    ps_tokens: list[int] | msgspec.UnsetType = msgspec.UNSET
    bytes_tokens: list[int] | msgspec.UnsetType = msgspec.UNSET
    bytes_types: list[int] | msgspec.UnsetType = msgspec.UNSET


_SAME_IN_JSON = [name for name in Flow.__struct_fields__ if name not in {"orig_bytes", "resp_bytes", "heads"}]


def flow_to_line(flow: Flow, community_id: str = "") -> FlowLine:
    """The JSON form of a flow, without tokens."""
    return FlowLine(
        **{name: getattr(flow, name) for name in _SAME_IN_JSON},
        community_id=community_id,
        orig_bytes=flow.orig_bytes.hex(),
        resp_bytes=flow.resp_bytes.hex(),
        heads=[PacketHeadLine(head.gap_us, head.data.hex()) for head in flow.heads],
    )


def line_to_flow(line: FlowLine) -> Flow:
    """The flow of a JSON form.

    Raises:
        FlowError: an address is not an address, a length is 0, or the IP protocol is out of range.
    """
    for name in ("orig_h", "resp_h"):
        try:
            ipaddress.ip_address(getattr(line, name))
        except ValueError:
            raise FlowError(f"expected an IPv4 or IPv6 address - at `$.{name}`") from None
    if 0 in line.payload_lengths:
        raise FlowError("expected lengths of packets with payload, got 0 - at `$.payload_lengths`")
    if line.proto.isdigit() and int(line.proto) > 255:
        raise FlowError("expected `tcp`, `udp`, `icmp` or an IP protocol number up to 255 - at `$.proto`")
    return Flow(
        **{name: getattr(line, name) for name in _SAME_IN_JSON},
        orig_bytes=bytes.fromhex(line.orig_bytes),
        resp_bytes=bytes.fromhex(line.resp_bytes),
        heads=[PacketHead(head.gap_us, bytes.fromhex(head.data)) for head in line.heads],
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
        raise FlowError(str(error)) from None
