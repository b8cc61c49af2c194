"""What trace models may read of a flow beside its embedding: categories of its endpoints, its volume, the first
headers of each side, and its first payload lengths, each a small number. Addresses are read only as what kind they are,
never as whose.

Which hosts differ by these fields is known from passive fingerprinting of TCP/IP stacks (Zalewski, p0f v3, README
section 4: time to live, DF, window, options and their order).
"""

from __future__ import annotations

import ipaddress
import zlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from tapline.models.flow import Flow, ip_protocol_number
from tapline.models.packed_packets import join_lengths
from tapline.models.packet_headers import HeadBytes, IpHeaders, directions, find_headers, gather

Field = str
"""The name of a category of a flow, one of `SIZES`; `_orig` is of its originator or what that sent, `_resp` of its
responder."""

ABSENT = 0
"""The value of every field where the flow does not tell."""

CONTEXT_HEADS = 8
"""Packet heads of a flow in which the first header of each side is looked for."""

_TRANSPORTS = {6: 1, 17: 2, 1: 3, 58: 4}
PORTS = (
    7, 9, 13, 19, 20, 21, 22, 23, 25, 37, 43, 49, 53, 67, 68, 69, 79, 80, 81, 88, 102, 110, 111, 113, 119, 123, 135,
    137, 138, 139, 143, 161, 162, 179, 194, 389, 427, 443, 445, 464, 465, 500, 502, 513, 514, 515, 520, 546, 547, 548,
    554, 587, 593, 623, 631, 636, 853, 873, 993, 995, 1080, 1194, 1433, 1434, 1521, 1701, 1723, 1812, 1813, 1883, 1900,
    2049, 2123, 2152, 2404, 3074, 3128, 3268, 3306, 3389, 3478, 3702, 4500, 4789, 5000, 5004, 5060, 5061, 5222, 5223,
    5228, 5353, 5355, 5357, 5432, 5555, 5683, 5900, 5938, 5985, 5986, 6379, 6667, 6881, 6892, 6893, 7547, 8000, 8008,
    8009, 8080, 8081, 8443, 8883, 8888, 9000, 9100, 9200, 9999, 11211, 20000, 27017, 44818, 47808, 49152, 49153, 51820,
    56700,
)  # fmt: skip
"""Ports that are a category each; all others are one of `PORT_RANGES`."""

PORT_RANGES = (1024, 5001, 32768, 49152)
"""Where the ranges of other ports begin, after 0: ports of the system, and those from which systems take clients'."""

ADDRESS_KINDS = ("private", "global", "multicast", "broadcast", "link-local", "loopback", "unspecified")
LENGTHS = 32
"""Payload lengths of a flow, from the first, that have a field `length_`: what it is, with its sign, by its hash."""

PLACED_LENGTHS = 6
"""Of so many of them each place has values of its own; those behind are alike wherever they stand."""

SIZED = 16
"""Payload lengths that have a field `size_` too: how long it is, to a quarter of a doubling, each way."""

GAPS = 6
"""Gaps between the first packet heads that have a field `gap_`: how long, to half a doubling."""

_SIZE_BUCKETS = 46
_HASHED = 255
"""What takes any value (window, segment size, order of options) is known by its hash: few values are frequent."""

_BUCKETS = 63
_TCP, _TCP_MIN, _SYN = 6, 20, 2
_MAX_OPTIONS = 40
_NO_SCALE = 1

SIZES: dict[Field, int] = {
    "transport": 6,
    "port_orig": len(PORTS) + len(PORT_RANGES) + 2,
    "port_resp": len(PORTS) + len(PORT_RANGES) + 2,
    "address_orig": len(ADDRESS_KINDS) + 1,
    "address_resp": len(ADDRESS_KINDS) + 1,
    **dict.fromkeys(("packets_orig", "packets_resp", "bytes_orig", "bytes_resp"), _BUCKETS + 1),
    **dict.fromkeys(("ttl_orig", "ttl_resp"), 256),
    **dict.fromkeys(("tos_orig", "tos_resp"), 65),
    **dict.fromkeys(("ip_flags_orig", "ip_flags_resp"), 5),
    **dict.fromkeys(("tcp_flags_orig", "tcp_flags_resp"), 65),
    **dict.fromkeys(("window_orig", "window_resp", "options_orig", "options_resp", "mss_orig", "mss_resp"), 256),
    **dict.fromkeys(("scale_orig", "scale_resp"), 17),
    **{f"length_{place}": _HASHED + 1 for place in range(1, LENGTHS + 1)},
    **{f"size_{place}": 2 * _SIZE_BUCKETS + 3 for place in range(1, SIZED + 1)},
    **{f"gap_{place}": _BUCKETS + 1 for place in range(1, GAPS + 1)},
    "duration": _BUCKETS + 1,
}
"""How many values each field has, `ABSENT` with them."""

PACKETS = frozenset(field for field in SIZES if field.startswith(("length_", "size_", "gap_")) or field == "duration")
"""The fields that tell a flow's packets; beside an encoder that reads these anyway they say nothing new."""

STACK = frozenset(
    f"{field}_{side}"
    for field in ("ttl", "tos", "ip_flags", "window", "options", "mss", "scale")
    for side in ("orig", "resp")
)
"""The fields that tell the system of a host, whatever it does: they may tell a laboratory from another one, too."""

CONTEXTS: dict[str, tuple[Field, ...]] = {
    "none": (),
    "behaviour": tuple(field for field in SIZES if field not in STACK),
    "all": tuple(SIZES),
}
"""Sets of fields by name."""


def table_of(field: Field) -> str:
    """Fields of one table have the same values: the lengths behind the first few, wherever they stand."""
    return "length" if field.startswith("length_") and int(field.removeprefix("length_")) > PLACED_LENGTHS else field


def table_starts(fields: Sequence[Field]) -> tuple[NDArray[np.int64], int]:
    """Where the values of each field begin in one table of all, int64 [fields], and the rows of that table."""
    starts: dict[str, int] = {}
    rows = 0
    for field in fields:
        if table_of(field) not in starts:
            starts[table_of(field)] = rows
            rows += SIZES[field]
    return np.array([starts[table_of(field)] for field in fields], np.int64), rows


_PORT_CLASS = np.searchsorted(PORT_RANGES, np.arange(65536), side="right") + len(PORTS) + 1
_PORT_CLASS[list(PORTS)] = np.arange(len(PORTS)) + 1


def trace_context(flows: Sequence[Flow], fields: Sequence[Field]) -> NDArray[np.uint8]:
    """The context of n flows, uint8 [n, fields], each value below `SIZES` of its field.

    Headers are those of the first packet of each side among the first `CONTEXT_HEADS` heads; in tunnels the flow's own.
    """
    return ContextColumns(flows).table(fields)


class ContextColumns:
    """The context of n flows, field by field: each is made once, whoever asks for it."""

    def __init__(self, flows: Sequence[Flow]) -> None:
        self._flows = flows
        self._found: dict[Field, NDArray[np.int64]] = {}
        self._heads: HeadBytes | None = None

    def table(self, fields: Sequence[Field]) -> NDArray[np.uint8]:
        """As of `trace_context`."""
        table = np.zeros((len(self._flows), len(fields)), np.uint8)
        if not len(self._flows) or not fields:
            return table
        missing = set(fields) - self._found.keys()
        if not _OF_ENDS.isdisjoint(missing):
            self._found |= _end_fields(self._flows)
        if not _OF_HEADS.isdisjoint(missing):
            heads = self._heads = self._heads or gather(self._flows, CONTEXT_HEADS)
            for own, make in ((_OF_HEADERS, _header_fields), (PACKETS, _packet_fields)):
                if not own.isdisjoint(missing):
                    self._found |= make(self._flows, heads)
        for column, field in enumerate(fields):
            table[:, column] = self._found[field]
        return table


def _packet_fields(flows: Sequence[Flow], heads: HeadBytes) -> dict[Field, NDArray[np.int64]]:
    """Every field of `PACKETS`, int64 [n]."""
    first = join_lengths(flows, LENGTHS)
    lengths = np.zeros((len(flows), LENGTHS), np.int64)
    lengths[np.arange(LENGTHS) < first.counts[:, None]] = first.lengths
    gaps_us = np.full((len(flows), GAPS + 1), -1, np.int64)
    place = np.arange(len(heads.flow)) - heads.first[heads.flow]
    gaps_us[heads.flow[place <= GAPS], place[place <= GAPS]] = heads.gaps_us[place <= GAPS]
    gaps_us = gaps_us[:, 1:]
    hashed = np.where(lengths == 0, ABSENT, 1 + lengths % _HASHED)
    sized = lengths[:, :SIZED]
    logs = np.minimum(_SIZE_BUCKETS, np.rint(4 * np.log2(np.maximum(np.abs(sized), 1)))).astype(np.int64)
    sizes = np.where(sized > 0, 1 + logs, np.where(sized < 0, 2 + _SIZE_BUCKETS + logs, ABSENT))
    waits = np.where(gaps_us < 0, ABSENT, _buckets(gaps_us))
    return {
        **{f"length_{place + 1}": hashed[:, place] for place in range(LENGTHS)},
        **{f"size_{place + 1}": sizes[:, place] for place in range(SIZED)},
        **{f"gap_{place + 1}": waits[:, place] for place in range(GAPS)},
        "duration": _buckets(np.array([flow.duration_us for flow in flows], np.int64)),
    }


def _buckets(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """1 for none, then two buckets for each doubling, the last one for all beyond 2**30: 18 minutes of microseconds."""
    logs = np.rint(2 * np.log2(np.maximum(counts, 1))).astype(np.int64)
    return np.where(counts <= 0, 1, np.minimum(_BUCKETS, 2 + logs))


def _end_fields(flows: Sequence[Flow]) -> dict[Field, NDArray[np.int64]]:
    """Every field of `_OF_ENDS`, int64 [n]."""
    has_ports = np.array([flow.proto in ("tcp", "udp") for flow in flows], np.bool_)
    ports = ([flow.orig_p for flow in flows], [flow.resp_p for flow in flows])
    orig_p, resp_p = (np.where(has_ports, _PORT_CLASS[each], ABSENT) for each in ports)
    return {
        "transport": np.array([_transport(flow.proto, ":" in flow.orig_h) for flow in flows], np.int64),
        "port_orig": orig_p,
        "port_resp": resp_p,
        "address_orig": np.array([_address_kind(flow.orig_h) for flow in flows], np.int64),
        "address_resp": np.array([_address_kind(flow.resp_h) for flow in flows], np.int64),
        "packets_orig": _buckets(np.array([flow.orig_pkts for flow in flows], np.int64)),
        "packets_resp": _buckets(np.array([flow.resp_pkts for flow in flows], np.int64)),
        "bytes_orig": _buckets(np.array([flow.orig_ip_bytes for flow in flows], np.int64)),
        "bytes_resp": _buckets(np.array([flow.resp_ip_bytes for flow in flows], np.int64)),
    }


@lru_cache
def _transport(proto: str, is_v6: bool) -> int:
    return _TRANSPORTS.get(ip_protocol_number(proto, ":" if is_v6 else ""), 5)


@lru_cache(maxsize=16_384)
def _address_kind(address: str) -> int:
    found = ipaddress.ip_address(address)
    if found.is_unspecified:
        kind = "unspecified"
    elif found.is_multicast:
        kind = "multicast"
    elif found.version == 4 and (int(found) & 0xFF) == 0xFF:
        kind = "broadcast"
    elif found.is_loopback:
        kind = "loopback"
    elif found.is_link_local:
        kind = "link-local"
    else:
        kind = "private" if found.is_private else "global"
    return ADDRESS_KINDS.index(kind) + 1


_OF_ENDS = frozenset(
    {"transport", "port_orig", "port_resp", "address_orig", "address_resp"}
    | {"packets_orig", "packets_resp", "bytes_orig", "bytes_resp"}
)
_OF_HEADS = frozenset(SIZES) - _OF_ENDS
_OF_HEADERS = _OF_HEADS - PACKETS


def _header_fields(flows: Sequence[Flow], heads: HeadBytes) -> dict[Field, NDArray[np.int64]]:
    """Every field of `_OF_HEADERS`, int64 [n]."""
    outer, inner = find_headers(heads, flows)
    headers = inner.before(outer)  # what is deeper in counts first
    sent_by, of = directions(heads, headers), heads.flow[headers.head]
    sides = []
    for side, way in (("orig", 1), ("resp", -1)):
        rows = np.flatnonzero(sent_by == way)
        own, first = np.unique(of[rows], return_index=True)
        sides.append((side, own, rows[first]))
    values = _first_headers(heads, headers, np.concatenate([rows for _, _, rows in sides]))
    found: dict[Field, NDArray[np.int64]] = {field: np.zeros(len(flows), np.int64) for field in _OF_HEADERS}
    end = 0
    for side, own, rows in sides:
        start, end = end, end + len(rows)
        for name, each in values.items():
            found[f"{name}_{side}"][own] = each[start:end]
    return found


def _first_headers(heads: HeadBytes, headers: IpHeaders, rows: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
    """The fields of the headers `rows`, int64 [rows] each, by their names without side (RFC 791, 8200, 9293)."""
    raw, end = heads.raw.astype(np.int64), heads.ends[headers.head[rows]]
    ip, transport, is_v4 = headers.ip[rows], headers.transport[rows], headers.version[rows] == 4
    word = raw[ip] << 8 | raw[ip + 1]
    tos = np.where(is_v4, raw[ip + 1], word >> 4 & 0xFF)
    has_id = (raw[ip + 4] | raw[ip + 5]) != 0
    is_tcp = (headers.protocol[rows] == _TCP) & ~headers.is_later_fragment[rows] & (transport + _TCP_MIN <= end)
    flags = raw[transport + 13]
    opens = is_tcp & (flags & _SYN != 0)
    window = raw[transport + 14] << 8 | raw[transport + 15]
    kinds, mss, scale = _tcp_options(heads.raw, transport + _TCP_MIN, np.minimum(headers.end[rows], end), opens)
    whole = ip + np.where(is_v4, 20, 40) <= end
    found = {
        "ttl": np.where(is_v4, raw[ip + 8], raw[ip + 7]),
        "tos": 1 + (tos >> 2),
        "ip_flags": np.where(is_v4, 1 + (raw[ip + 6] >> 6 & 1) + 2 * has_id, ABSENT),
        "tcp_flags": np.where(is_tcp, 1 + (flags & 63), ABSENT),
        "window": np.where(opens, 1 + window % _HASHED, ABSENT),
        "options": kinds,
        "mss": mss,
        "scale": scale,
    }
    return {name: np.where(whole, values, ABSENT) for name, values in found.items()}


def _tcp_options(
    raw: NDArray[np.uint8], start: NDArray[np.int64], stop: NDArray[np.int64], opens: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Hash of the kinds in their order, of the maximum segment size, and 1 + the window scale or 1 without one, int64
    [n] each, of the options `raw[start:stop]`; `ABSENT` where the packet does not open. What is cut or malformed ends
    the list."""
    kinds = np.zeros((len(start), _MAX_OPTIONS), np.uint8)
    counts, mss = np.zeros(len(start), np.int64), np.full(len(start), ABSENT, np.int64)
    scale = np.where(opens, _NO_SCALE, ABSENT)
    rows, at, stop = np.flatnonzero(opens), start[opens], stop[opens]
    while True:
        left = at < stop
        if not left.any():
            break
        rows, at, stop = rows[left], at[left], stop[left]
        kind = raw[at]
        kinds[rows, counts[rows]] = kind
        counts[rows] += 1
        length = np.where(kind == 1, 1, np.where(at + 1 < stop, raw[at + 1], 0)).astype(np.int64)
        good = (kind != 0) & (length > 0) & (at + length <= stop)
        is_mss, is_scale = good & (kind == 2) & (length == 4), good & (kind == 3) & (length == 3)
        segment = raw[at[is_mss] + 2].astype(np.int64) << 8 | raw[at[is_mss] + 3]
        mss[rows[is_mss]] = 1 + segment % _HASHED
        scale[rows[is_scale]] = 2 + np.minimum(14, raw[at[is_scale] + 2].astype(np.int64))
        rows, at, stop = rows[good], (at + length)[good], stop[good]
    hashes = np.full(len(start), ABSENT, np.int64)
    for row in np.flatnonzero(opens).tolist():
        hashes[row] = 1 + zlib.crc32(kinds[row, : counts[row]].tobytes()) % _HASHED
    return hashes, mss, scale
