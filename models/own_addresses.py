"""The addresses of a flow's own endpoints wherever its packets repeat them: binary, as text, in DHCP's fields.

A capture of one device repeats that device's addresses, and a model that reads them learns the unit, not its kind. Only
the flow itself is looked at, so an address is not found in a flow that neither end nor link layer bears.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tapline.models.flow import Flow
from tapline.models.packet_headers import ETHERNET, HeadBytes, IpHeaders

_DHCP_PORTS = frozenset({67, 68})
_DHCP_MAGIC = b"\x63\x82\x53\x63"
_DHCP_FIELDS = ((12, 8), (28, 16))  # ciaddr and yiaddr, chaddr
_DHCP_OPTIONS = frozenset({50, 54, 61})  # requested address, server, client identifier
_DHCP_OPTIONS_AT = 240
_UDP_HEADER_BYTES = 8
_HOST_SPECIFIC_BYTES = 3
_MACS_BYTES = 12


def mask_own_addresses(heads: HeadBytes, flows: Sequence[Flow], *headers: IpHeaders) -> None:
    """Zero what names the endpoints of each flow, in place; to be called while the heads still hold their headers.

    MAC addresses (of the Ethernet headers, and those inside EUI-64 addresses) as six bytes, in EUI-64 form, as text
    with colons, dashes, dots or nothing between, and their last three bytes as six hexadecimal digits, as device names
    have them; IP addresses as bytes, as text, with dashes, and reversed as in `in-addr.arpa` and `ip6.arpa`. Multicast
    and broadcast addresses are left: they name nobody. DHCP: ciaddr, yiaddr, chaddr, options 50, 54 and 61.
    """
    for index, flow in enumerate(flows):
        first, last = heads.first[index], heads.first[index + 1]
        if first == last:
            continue
        start, end = int(heads.starts[first]), int(heads.ends[last - 1])
        _mask_named(heads.raw[start:end], flow)
    _mask_dhcp(heads, flows, headers)


class Content(NamedTuple):
    """The content bytes of a flow, from its originator and from its responder."""

    orig: bytes
    resp: bytes


def content_without_addresses(flow: Flow) -> Content:
    """The content of a flow with zeros where `mask_own_addresses` puts them. MAC addresses are known from its heads."""
    parts = [np.frombuffer(content, np.uint8).copy() for content in (flow.orig_bytes, flow.resp_bytes)]
    for part in parts:
        _mask_named(part, flow)
        if _is_dhcp(flow):
            _mask_message(part)
    return Content(*(part.tobytes() for part in parts))


def _mask_named(raw: NDArray[np.uint8], flow: Flow) -> None:
    """Zero the addresses of the endpoints of a flow in its bytes, in place."""
    macs = _macs(flow) if flow.link_type == ETHERNET else set()
    macs.update(mac for address in (flow.orig_h, flow.resp_h) if (mac := _mac_inside(address)))
    patterns = [_mac_pattern(mac) for mac in macs]
    patterns += [pattern for address in (flow.orig_h, flow.resp_h) if (pattern := _ip_pattern(address))]
    data = raw.tobytes()
    for pattern in patterns:
        for match in pattern.finditer(data):
            raw[match.start() : match.end()] = 0


def _macs(flow: Flow) -> set[bytes]:
    """Unicast addresses in the Ethernet headers of a flow's heads."""
    frames = [head.data[:_MACS_BYTES] for head in flow.heads if len(head.data) >= _MACS_BYTES]
    return {mac for frame in frames for mac in (frame[:6], frame[6:]) if not mac[0] & 1 and any(mac)}


def _is_dhcp(flow: Flow) -> bool:
    return flow.proto == "udp" and {flow.orig_p, flow.resp_p} <= _DHCP_PORTS


@lru_cache(65_536)
def _mac_inside(address: str) -> bytes | None:
    """The MAC address that an EUI-64 interface identifier was made from (RFC 4291, appendix A)."""
    if ":" not in address:
        return None
    identifier = ipaddress.IPv6Address(address).packed[8:]
    if identifier[3:5] != b"\xff\xfe":
        return None
    return bytes((identifier[0] ^ 2,)) + identifier[1:3] + identifier[5:]


def _any_case(text: str) -> bytes:
    return b"(?i:" + re.escape(text.encode()) + b")"


@lru_cache(65_536)
def _mac_pattern(mac: bytes) -> re.Pattern[bytes]:
    digits = mac.hex()
    spellings = [mac.hex(":"), mac.hex("-"), ".".join((digits[:4], digits[4:8], digits[8:])), digits]
    eui64 = bytes((mac[0] ^ 2,)) + mac[1:3] + b"\xff\xfe" + mac[3:]
    groups = [f"{int.from_bytes(eui64[i : i + 2]):x}" for i in range(0, 8, 2)]
    spellings += [":".join(groups), digits[-2 * _HOST_SPECIFIC_BYTES :]]
    return re.compile(b"|".join([re.escape(mac), re.escape(eui64), *map(_any_case, spellings)]), re.DOTALL)


@lru_cache(65_536)
def _ip_pattern(text: str) -> re.Pattern[bytes] | None:
    address = ipaddress.ip_address(text)
    if address.is_multicast or address.is_unspecified or address.packed == b"\xff" * 4:
        return None
    spellings = [re.escape(address.packed)]
    labels = address.reverse_pointer.split(".")[:-2]  # without in-addr.arpa or ip6.arpa
    spellings.append(re.escape(b"".join(bytes((len(label),)) + label.encode() for label in labels)))
    if isinstance(address, ipaddress.IPv4Address):
        for separator in (".", "-"):
            spellings.append(rb"(?<![0-9])" + re.escape(text.replace(".", separator).encode()) + rb"(?![0-9])")
        spellings.append(rb"(?<![0-9])" + re.escape(".".join(labels).encode()) + rb"(?=\.in-addr)")
    else:
        whole = rb"(?<![0-9a-fA-F:])%s(?![0-9a-fA-F:])"
        spellings += [whole % _any_case(address.compressed), whole % _any_case(address.exploded)]
        spellings.append(_any_case(".".join(labels)))
    return re.compile(b"|".join(spellings), re.DOTALL)


def _mask_dhcp(heads: HeadBytes, flows: Sequence[Flow], headers: Sequence[IpHeaders]) -> None:
    is_dhcp = np.fromiter(map(_is_dhcp, flows), np.bool_, len(flows))
    if not is_dhcp.any():
        return
    for found in headers:
        chosen = np.flatnonzero(is_dhcp[heads.flow[found.head]] & ~found.is_fragment)
        for head, at in zip(found.head[chosen].tolist(), found.transport[chosen].tolist(), strict=True):
            _mask_message(heads.raw[at + _UDP_HEADER_BYTES : int(heads.ends[head])])


def _mask_message(message: NDArray[np.uint8]) -> None:
    """Zero the fields of a DHCP message (RFC 2131, 2132), whole or cut, that name client or server, in place."""
    for offset, size in _DHCP_FIELDS:
        message[offset : offset + size] = 0
    if message[_DHCP_OPTIONS_AT - len(_DHCP_MAGIC) : _DHCP_OPTIONS_AT].tobytes() != _DHCP_MAGIC:
        return
    at = _DHCP_OPTIONS_AT
    while at + 1 < len(message) and message[at] != 255:
        size = int(message[at + 1])
        if message[at] in _DHCP_OPTIONS:
            message[at + 2 : at + 2 + size] = 0
        at += 1 if message[at] == 0 else 2 + size
