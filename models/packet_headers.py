"""Where the headers lie in many packet heads at once, and the fields in them that name hosts. Tokens: `packets`."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from tapline.models.flow import MAX_PACKET_HEADS, Flow
from tapline.models.packed_packets import join_heads

Bytes = NDArray[np.uint8]
Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]

ETHERNET, LINUX_COOKED, LINUX_COOKED_2, RAW_IPV4, RAW_IPV6, BSD_LOOPBACK = 3, 9, 20, 21, 6, 1
"""Link-type bytes of `Flow.link_type`."""

TAIL = 512
"""Zero bytes after the last head in `HeadBytes.raw`, so that a header that is cut can be read without a check."""

_LINK_HEADER_BYTES = {LINUX_COOKED: 16, LINUX_COOKED_2: 20, RAW_IPV4: 0, RAW_IPV6: 0, BSD_LOOPBACK: 4}
_LINK_ADDRESSES = {ETHERNET: (0, 12), LINUX_COOKED: (6, 8), LINUX_COOKED_2: (12, 8)}
_VLAN, _PPPOE = (0x8100, 0x88A8, 0x9100), 0x8864
_MAX_TAGS = 4
_HOP_BY_HOP, _ROUTING, _FRAGMENT, _AUTHENTICATION, _DESTINATION = 0, 43, 44, 51, 60
_EXTENSIONS = (_HOP_BY_HOP, _ROUTING, _FRAGMENT, _AUTHENTICATION, _DESTINATION)
_MAX_EXTENSIONS = 8
_TCP, _UDP, _ICMP, _ICMPV6 = 6, 17, 1, 58
_CHECKSUM_AT = {_TCP: 16, _UDP: 6, _ICMP: 2, _ICMPV6: 2}
_ETHERNET_BYTES, _GRE_BYTES = 14, 4
_VXLAN_BYTES = 16  # with its UDP header


@dataclass(frozen=True)
class HeadBytes:
    """The heads of n flows end to end, to be written to.

    `raw` uint8 [sum + TAIL]; head h is `raw[starts[h]:ends[h]]`, of flow `flow[h]`, with link-type byte `links[h]`.
    `gaps_us[h]` after the flow's packet before. Flow f has the heads `first[f]:first[f + 1]`. All of these int64. Its
    addresses are `orig[f]` and `resp[f]`, uint8 [n, 16], of IPv4 in the first four.
    """

    raw: Bytes
    starts: Ints
    ends: Ints
    flow: Ints
    links: Ints
    first: Ints
    gaps_us: Ints
    orig: Bytes
    resp: Bytes


@dataclass(frozen=True)
class IpHeaders:
    """IP headers by position in `HeadBytes.raw`, one row each; int64 unless said otherwise.

    `head`: the head it is in; `ip`: where it begins; `version`: 4 or 6; `transport`: where what it carries begins;
    `protocol`: the number of that; `is_fragment`, `is_later_fragment` bool; `end`: end of the transport header.
    """

    head: Ints
    ip: Ints
    version: Ints
    transport: Ints
    protocol: Ints
    is_fragment: Mask
    is_later_fragment: Mask
    end: Ints

    def before(self, others: IpHeaders) -> IpHeaders:
        """These, then others."""
        names = [each.name for each in fields(self)]
        return IpHeaders(*(np.concatenate((getattr(self, name), getattr(others, name))) for name in names))


def gather(flows: Sequence[Flow], most: int = MAX_PACKET_HEADS) -> HeadBytes:
    """The heads of the flows, or the first `most` of each, copied."""
    joined = join_heads(flows, most)
    ends = np.cumsum(joined.sizes)
    raw = np.frombuffer(bytearray(joined.data + bytes(TAIL)), np.uint8)
    links = np.fromiter((flow.link_type for flow in flows), np.int64, len(flows))
    first = np.concatenate((np.zeros(1, np.int64), np.cumsum(joined.counts)))
    flow, link = (np.repeat(each, joined.counts) for each in (np.arange(len(flows)), links))
    orig = _addresses([flow.orig_h for flow in flows])
    resp = _addresses([flow.resp_h for flow in flows])
    return HeadBytes(raw, ends - joined.sizes, ends, flow, link, first, joined.gaps_us, orig, resp)


def find_headers(heads: HeadBytes, flows: Sequence[Flow]) -> tuple[IpHeaders, IpHeaders]:
    """The outermost IP headers, and those deeper in that bear the flow's own addresses where the outermost do not.

    The second kind is of tunnels and of link layers that are not followed here; it is searched for by the addresses.
    """
    outer = _read_headers(heads, *_outermost(heads))
    is_searched = np.ones(len(heads.starts), np.bool_)
    is_searched[outer.head[directions(heads, outer) != 0]] = False
    found = [(head, at) for head in np.flatnonzero(is_searched).tolist() if (at := _search(heads, head, flows)) >= 0]
    pairs = np.array(found, np.int64).reshape(-1, 2)
    return outer, _read_headers(heads, pairs[:, 0], pairs[:, 1])


def clear_hosts(heads: HeadBytes, headers: IpHeaders, zero_checksums: bool) -> None:
    """Set link, IPv4 and IPv6 addresses, TCP and UDP ports and, if asked to, IP and transport checksums to zero."""
    for link, (offset, size) in _LINK_ADDRESSES.items():
        chosen = np.flatnonzero(heads.links == link)
        _clear(heads, chosen, heads.starts[chosen] + offset, size)
    for version, offset, size in ((4, 12, 8), (6, 8, 32)):
        chosen = headers.version == version
        _clear(heads, headers.head[chosen], headers.ip[chosen] + offset, size)
    ported = ~headers.is_later_fragment & _is_one_of(headers.protocol, (_TCP, _UDP))
    _clear(heads, headers.head[ported], headers.transport[ported], 4)
    if not zero_checksums:
        return
    chosen = headers.version == 4
    _clear(heads, headers.head[chosen], headers.ip[chosen] + 10, 2)
    for protocol, offset in _CHECKSUM_AT.items():
        chosen = ~headers.is_later_fragment & (headers.protocol == protocol)
        _clear(heads, headers.head[chosen], headers.transport[chosen] + offset, 2)


def clear_inner_link(heads: HeadBytes, outer: IpHeaders, inner: IpHeaders) -> None:
    """Zero the addresses of an Ethernet header right in front of an inner IP header: in tunnels and link layers that
    carry whole frames.
    """
    least = heads.starts + _ETHERNET_BYTES
    least[outer.head] = outer.transport + np.where(outer.protocol == _UDP, _VXLAN_BYTES, _GRE_BYTES)
    link = inner.ip - _ETHERNET_BYTES
    framed = (link >= least[inner.head]) & _is_one_of(_be16(heads.raw, inner.ip - 2), (0x0800, 0x86DD))
    _clear(heads, inner.head[framed], link[framed], 12)


def header_ends(heads: HeadBytes, outer: IpHeaders, inner: IpHeaders) -> Ints:
    """Where the flow's own transport header ends in each head, int64 [heads]: the head's start where no IP is found."""
    ends = heads.starts.copy()
    for headers in (outer, inner):
        ends[headers.head] = headers.end
    return np.minimum(ends, heads.ends)


def _clear(heads: HeadBytes, head: Ints, at: Ints, size: int) -> None:
    where = at[:, None] + np.arange(size)
    heads.raw[where[where < heads.ends[head][:, None]]] = 0


def _be16(raw: Bytes, at: Ints) -> Ints:
    return raw[at].astype(np.int64) << 8 | raw[at + 1]


def _outermost(heads: HeadBytes) -> tuple[Ints, Ints]:
    """Heads with an IP header behind the link layer, and where it begins."""
    at = np.full(len(heads.starts), -1, np.int64)
    for link, size in _LINK_HEADER_BYTES.items():
        chosen = heads.links == link
        at[chosen] = heads.starts[chosen] + size
    chosen = np.flatnonzero(heads.links == ETHERNET)
    at[chosen] = _behind_ethernet(heads, chosen)
    version = heads.raw[np.maximum(at, 0)] >> 4
    found = np.flatnonzero((at >= 0) & (at < heads.ends) & ((version == 4) | (version == 6)))
    return found, at[found]


def _behind_ethernet(heads: HeadBytes, chosen: Ints) -> Ints:
    at = heads.starts[chosen] + 14
    kind = _be16(heads.raw, at - 2)
    for _ in range(_MAX_TAGS):
        tagged = _is_one_of(kind, _VLAN)
        if not tagged.any():
            break
        kind = np.where(tagged, _be16(heads.raw, at + 2), kind)
        at = at + 4 * tagged
    session = kind == _PPPOE
    at = at + 8 * session
    kind = np.where(session, _be16(heads.raw, at - 2), kind)
    return np.where(_is_one_of(kind, (0x0800, 0x86DD)) | (session & _is_one_of(kind, (0x21, 0x57))), at, -1)


def _read_headers(heads: HeadBytes, head: Ints, ip: Ints) -> IpHeaders:
    raw = heads.raw
    version = (raw[ip] >> 4).astype(np.int64)
    is_v4 = version == 4
    field = np.where(is_v4, _be16(raw, ip + 6), 0)
    transport = ip + np.where(is_v4, (raw[ip] & 15).astype(np.int64) * 4, 40)
    protocol = raw[ip + np.where(is_v4, 9, 6)].astype(np.int64)
    is_fragment, is_later = field & 0x3FFF != 0, field & 0x1FFF != 0
    for _ in range(_MAX_EXTENSIONS):
        step = ~is_v4 & ~is_fragment & _is_one_of(protocol, _EXTENSIONS) & (transport + 2 <= heads.ends[head])
        if not step.any():
            break
        place = np.where(step, transport, 0)
        units = raw[place + 1].astype(np.int64)
        size = 8 + units * np.where(protocol == _AUTHENTICATION, 4, 8)
        fragments = step & (protocol == _FRAGMENT)
        field = np.where(fragments, _be16(raw, place + 2), 0)
        is_fragment, is_later = is_fragment | (fragments), is_later | (field & 0xFFF8 != 0)
        protocol = np.where(step, raw[place], protocol)
        transport = transport + np.where(fragments, 8, size) * step
    transport = np.minimum(transport, heads.ends[head])
    length = np.select(
        [protocol == _TCP, _is_one_of(protocol, (_UDP, _ICMP, _ICMPV6))],
        [np.where(transport + 12 < heads.ends[head], (raw[transport + 12] >> 4).astype(np.int64) * 4, 20), 8],
        0,
    )
    return IpHeaders(
        head, ip, version, transport, protocol, is_fragment, is_later, transport + np.where(is_fragment, 0, length)
    )


def _is_one_of(values: Ints, few: Sequence[int]) -> NDArray[np.bool_]:
    """Which values are among a few, of the shape of `values`: `np.isin` sorts first, which takes longer for so few."""
    found: NDArray[np.bool_] = values == few[0]
    for each in few[1:]:
        found |= values == each
    return found


@lru_cache(16_384)
def packed_address(address: str) -> bytes:
    """The bytes of an address, 4 or 16."""
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)


def _addresses(texts: Sequence[str]) -> Bytes:
    """Addresses as bytes, uint8 [n, 16]."""
    packed = b"".join([packed_address(text).ljust(16, b"\0") for text in texts])
    return np.frombuffer(packed, np.uint8).reshape(-1, 16)


def directions(heads: HeadBytes, headers: IpHeaders) -> NDArray[np.int8]:
    """Who sent the packet of each header, int8 [headers]: 1 the flow's originator, -1 its responder, 0 neither: the
    addresses are not the flow's."""
    flow = heads.flow[headers.head]
    found = np.zeros(len(flow), np.int8)
    for version, offset, size in ((4, 12, 4), (6, 8, 16)):
        chosen = np.flatnonzero(headers.version == version)
        at = headers.ip[chosen, None] + offset + np.arange(size)
        source, target = heads.raw[at], heads.raw[at + size]
        a, b = heads.orig[flow[chosen], :size], heads.resp[flow[chosen], :size]
        forward = (source == a).all(1) & (target == b).all(1)
        backward = (source == b).all(1) & (target == a).all(1)
        found[chosen] = np.where(forward, 1, np.where(backward, -1, 0))
    return found


def _search(heads: HeadBytes, head: int, flows: Sequence[Flow]) -> int:
    """Where the first IP header with the flow's addresses begins in a head, -1 where there is none.

    The first: a frame may aggregate several packets of a flow, and a later one lies in the payload of the first.
    """
    start, flow = int(heads.starts[head]), flows[heads.flow[head]]
    data = heads.raw[start : heads.ends[head]].tobytes()
    orig, resp = packed_address(flow.orig_h), packed_address(flow.resp_h)
    before = 12 if len(orig) == 4 else 8
    found = [at - before for pair in (orig + resp, resp + orig) if (at := data.find(pair)) >= before]
    at = min(found, default=-1)
    return start + at if at >= 0 and data[at] >> 4 == (4 if before == 12 else 6) else -1
