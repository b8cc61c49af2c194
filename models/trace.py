"""What a trace is: whose it is, which window a flow falls into, and which flows it keeps. Training, REST and live use
this one definition; what the models read of the flows is `models.packet_tokens`' business.

* An instance of a trace is a flow with payload that has packet heads (what a sensor publishes).
* Flows are in the order of `flow_order`: start, then both endpoints and the protocol.
* A window is `window_seconds` long; windows follow one another without a gap, counted from the start of the subject's
  first flow, and a flow belongs to the window in which it starts. 0: everything is one window.
* A trace keeps its newest `max_flows` flows; what is cut is counted. One of fewer than `min_flows` gets no verdict.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Literal, NamedTuple

import msgspec

from tapline.models.flow import Flow
from tapline.models.packet_headers import packed_address

SubjectKind = Literal["originator", "responder", "pair", "mac"]
"""Whose flows make a trace: a host that opens connections, one that is asked, two hosts, or a network card."""

_MAC = re.compile("[0-9a-f]{2}(:[0-9a-f]{2}){5}")

MAX_TRACE_FLOWS = 4096
"""Most flows that `TraceSettings.max_flows` may ask for."""

ETHERNET_LINK = 3
"""Tracegram's link-type byte of Ethernet."""

_ADDRESSES_BYTES = 12
_MAC_BYTES = 6
_VLAN_TYPES = frozenset({b"\x81\x00", b"\x88\xa8", b"\x91\x00"})
_MAX_VLAN_TAGS = 3
# Where the addresses stand in an IP header, by EtherType: offset of the source and length of one (RFC 791, RFC 8200).
_IP_SOURCES = {b"\x08\x00": (12, 4), b"\x86\xdd": (8, 16)}
_GROUP_BIT = 1


class TraceSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How flows become traces. A checkpoint carries the settings that it was trained with.

    `window_seconds` 0 puts everything into one window, which only what has an end can do: a live service needs more.
    """

    subject: SubjectKind = "originator"
    window_seconds: Annotated[float, msgspec.Meta(ge=0, le=30 * 86_400)] = 600.0
    min_flows: Annotated[int, msgspec.Meta(ge=1, le=MAX_TRACE_FLOWS)] = 1
    max_flows: Annotated[int, msgspec.Meta(ge=1, le=MAX_TRACE_FLOWS)] = 256

    def __post_init__(self) -> None:
        if self.min_flows > self.max_flows:
            raise ValueError(f"min_flows {self.min_flows} is more than max_flows {self.max_flows}")
        if 0 < self.window_us < 1000:
            raise ValueError(f"window_seconds: expected 0 or at least a millisecond, got {self.window_seconds:g}")

    @property
    def window_us(self) -> int:
        """The window in microseconds, 0 for one window."""
        return round(self.window_seconds * 1_000_000)


@dataclass
class Trace:
    """The flows of one subject in one window, in order.

    `start_us` is the window's start; `end_us` its end, or that of the last flow where everything is one window. `cut`
    counts the oldest flows that were left out because there were more than `max_flows`.
    """

    subject: str
    start_us: int
    end_us: int
    flows: list[Flow]
    cut: int


class FlowOrder(NamedTuple):
    """The place of a flow in its trace; compares field by field."""

    start_us: int
    orig_h: str
    orig_p: int
    resp_h: str
    resp_p: int
    proto: str


def flow_order(flow: Flow) -> FlowOrder:
    """The place of a flow among others: by start, and by endpoints where starts are equal."""
    return FlowOrder(flow.start_us, flow.orig_h, flow.orig_p, flow.resp_h, flow.resp_p, flow.proto)


def is_instance(flow: Flow) -> bool:
    """Whether a flow counts in traces: it has payload, and the heads of its packets."""
    return bool(flow.payload_lengths) and bool(flow.heads)


def subject_of(flow: Flow, kind: SubjectKind) -> str:
    """Whose trace a flow belongs to: an address, two addresses in order (`10.0.0.1 - 10.0.0.2`), or a MAC.

    `mac` is the link-layer address of the originator, read from the Ethernet heads: the source of the first packet that
    it sent, else the destination of the first that it got. A public originator that talks to a host with a private
    address is behind a router, whose MAC says nothing of it: the subject is then the responder's MAC. Where both are
    public, as usual with IPv6, the originator counts. Where no MAC can be told, the originator's address stands for it.
    """
    if kind == "originator":
        return flow.orig_h
    if kind == "responder":
        return flow.resp_h
    if kind == "pair":
        return " - ".join(sorted((flow.orig_h, flow.resp_h)))
    outside = _is_global(flow.orig_h) and not _is_global(flow.resp_h)
    owner, peer = (flow.resp_h, flow.orig_h) if outside else (flow.orig_h, flow.resp_h)
    return _mac(flow, owner, peer) or flow.orig_h


def subject_kind_of(subject: str, kind: SubjectKind) -> SubjectKind:
    """What a subject is that `subject_of` gave: `originator` where an address stands for a MAC, else `kind`."""
    return "originator" if kind == "mac" and not _MAC.fullmatch(subject) else kind


def make_traces(flows: Iterable[Flow], settings: TraceSettings) -> list[Trace]:
    """The traces of flows that are all there, in any order; by subject's first flow, then by window.

    Flows that are no instances are left out, and so are traces of fewer than `min_flows` flows.
    """
    by_subject: dict[str, list[Flow]] = {}
    for flow in sorted(filter(is_instance, flows), key=flow_order):
        by_subject.setdefault(subject_of(flow, settings.subject), []).append(flow)
    traces = [trace for subject, own in by_subject.items() for trace in _windows(subject, own, settings)]
    return [trace for trace in traces if len(trace.flows) >= settings.min_flows]


def _windows(subject: str, flows: list[Flow], settings: TraceSettings) -> list[Trace]:
    """The traces of one subject; `flows` are in order."""
    window_us = settings.window_us
    first_us = flows[0].start_us
    by_window: dict[int, list[Flow]] = {}
    for flow in flows:
        by_window.setdefault((flow.start_us - first_us) // window_us if window_us else 0, []).append(flow)
    found = []
    for index, inside in by_window.items():
        start_us = first_us + index * window_us
        end_us = start_us + window_us if window_us else max(flow.start_us + flow.duration_us for flow in inside)
        kept = inside[-settings.max_flows :]
        found.append(Trace(subject, start_us, end_us, kept, len(inside) - len(kept)))
    return found


@lru_cache(16_384)
def _is_global(address: str) -> bool:
    return ipaddress.ip_address(address).is_global


def _mac(flow: Flow, owner: str, peer: str) -> str | None:
    """The MAC of `owner`, one of the flow's endpoints, or None where the heads do not tell."""
    if flow.link_type != ETHERNET_LINK:
        return None
    return _first_mac(flow, owner, _sender) or _first_mac(flow, peer, _receiver)


def _first_mac(flow: Flow, source: str, read: Callable[[bytes], bytes]) -> str | None:
    """A MAC of the first head whose IP source is `source`, unless it names a group or nobody."""
    wanted = packed_address(source)
    for head in flow.heads:
        if _ip_source(head.data) == wanted:
            mac = read(head.data)
            return None if mac[0] & _GROUP_BIT or not any(mac) else mac.hex(":")
    return None


def _sender(frame: bytes) -> bytes:
    return frame[_MAC_BYTES:_ADDRESSES_BYTES]


def _receiver(frame: bytes) -> bytes:
    return frame[:_MAC_BYTES]


def _ip_source(frame: bytes) -> bytes | None:
    """The source address of the IP packet in an Ethernet frame; IEEE 802.1Q tags are passed over."""
    at = _ADDRESSES_BYTES
    for _ in range(_MAX_VLAN_TAGS):
        if frame[at : at + 2] not in _VLAN_TYPES:
            break
        at += 4
    place = _IP_SOURCES.get(frame[at : at + 2])
    if place is None:
        return None
    start = at + 2 + place[0]
    address = frame[start : start + place[1]]
    return address if len(address) == place[1] else None
