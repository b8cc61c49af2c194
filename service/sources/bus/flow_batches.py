"""Batches of flows, format 2 of the bus: their bytes become `Flow`s, all of a batch at once.

The layout is in `zeek/README.md`, section `Tapline::flows`; nothing is packed here.
"""

from __future__ import annotations

import binascii
import zlib
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tapline.models.flow import (
    HEAD_TOKEN_COST,
    HEADS_TOKEN_BUDGET,
    MAX_CONTENT_BYTES,
    MAX_COUNT,
    MAX_NAME_CHARS,
    MAX_PAYLOAD_LENGTH,
    MAX_PAYLOAD_LENGTHS,
    Flow,
    FlowError,
    HeadsKind,
    flow_of,
)
from tapline.models.packed_packets import PackedHeads, PackedLengths
from tapline.models.server_name import host_name
from tapline.service.sources.bus.flow_texts import MARK, flow_of_text, texts_of
from tapline.service.sources.bus.glances import (
    FINAL,
    IPV6,
    Glance,
    Wanted,
    address,
    glances_of_bytes,
    glances_of_texts,
)

MAX_BATCH_FLOWS = 64
MAX_BATCH_BYTES = 1 << 20
"""Largest size of the flows of a batch, once decompressed."""

MAX_PACKED_CHARS = 2 * MAX_BATCH_BYTES
"""Longest batch that is looked at."""

_HEADS_KINDS: dict[int, HeadsKind] = {0: "none", 1: "header", 2: "full"}
_PROTOCOLS = tuple({1: "icmp", 6: "tcp", 17: "udp", 58: "icmp"}.get(number, str(number)) for number in range(256))

_NO_KIND: Any = ""
_PREFIX_BYTES = 8
_STORED, _ZLIB = 0, 1
_LENGTH_BYTES, _HEAD_BYTES = 4, 10
_KNOWN_NAMES = 4096

_COUNTS = (
    "start_us", "duration_us", "orig_pkts", "resp_pkts", "orig_ip_bytes", "resp_ip_bytes", "up", "down",
)  # fmt: skip
_FRONT = np.dtype(
    [
        ("size", "<u4"), ("flags", "u1"), ("protocol", "u1"), ("link_type", "u1"), ("heads_kind", "u1"),
        ("orig_p", "<u2"), ("resp_p", "<u2"), *((name, "<u8") for name in _COUNTS), ("orig_h", "V16"),
        ("resp_h", "V16"), ("uid", "u1"), ("service", "u1"), ("conn_state", "u1"), ("server_name", "u1"),
        ("lengths", "u1"), ("heads", "u1"), ("orig_bytes", "<u2"), ("resp_bytes", "<u2"), ("", "<u2"),
    ]
)  # fmt: skip
"""What every flow begins with; the names from `uid` on are how much there is of each."""

_FIELDS = ("flags", "protocol", "link_type", "heads_kind", "orig_p", "resp_p", *_COUNTS, "orig_h", "resp_h")
_PLACES = (
    "n_lengths", "n_heads", "lengths_at", "heads_at", "orig_at", "resp_at", "uid_at", "service_at", "conn_state_at",
    "server_name_at", "end_at",
)  # fmt: skip

Ints = NDArray[np.int64]


class BatchError(ValueError):
    """The flows of a batch cannot be told apart, and it is lost whole; the message never names content."""


def read_batch(packed: str, flows: int, sensor: str, wanted: Wanted | None = None) -> list[Flow | FlowError | Glance]:
    """The flows of a batch in their order; where one is out of bounds, its error stands in its place, and what was seen
    of it where it is not `wanted`, None: all are.

    Which flows are out of bounds is what `flow_of` says, as for every other source. A name of a server that has
    characters which neither a host name nor an address may have is left out.

    Raises:
        BatchError: it is neither base64 nor text of a batch of so many flows.
    """
    if len(packed) > MAX_PACKED_CHARS:
        raise BatchError(f"expected a batch of at most {MAX_PACKED_CHARS} characters")
    if packed.startswith(MARK):
        return _read_texts(texts_of(packed, flows), flows, sensor, wanted)
    return _read(_unpacked(packed), flows, sensor, wanted)


def _read_texts(
    texts: Sequence[str], flows: int, sensor: str, wanted: Wanted | None
) -> list[Flow | FlowError | Glance]:
    """The flows of texts."""
    if len(texts) != flows:
        raise BatchError("expected as many flows as the event tells")
    glances = glances_of_texts(texts) if wanted else []
    rows = _rows(flows, glances, wanted)
    given = [flow_of_text(texts[row]) for row in rows]
    made = [each for each in given if isinstance(each, bytes)]
    read = iter(_read(b"".join(made), len(made), sensor))
    return _placed(glances, rows, [each if isinstance(each, FlowError) else next(read) for each in given])


def _read(data: bytes, flows: int, sensor: str, wanted: Wanted | None = None) -> list[Flow | FlowError | Glance]:
    """The flows of bytes."""
    edges = _edges(data, flows)
    front = np.frombuffer(b"".join([data[at : at + _FRONT.itemsize] for at in edges[:-1]]), _FRONT)
    glances = glances_of_bytes(data, edges[:-1], front) if wanted else []
    rows = _rows(flows, glances, wanted)
    if not rows:
        return _placed(glances, [], [])
    bounds = np.array(edges, np.int64)
    starts, ends = bounds[:-1], bounds[1:]
    if glances:
        front, starts, ends = front[rows], starts[rows], ends[rows]
    parts = _Parts(data, starts, ends, front)
    made = list(_flows(data, front, parts, sensor))
    found: list[Flow | FlowError] = list(made)
    for row in np.flatnonzero(parts.overrun | _doubtful(front, parts)).tolist():
        try:
            if parts.overrun[row]:
                raise FlowError("expected parts that fit into the size of the flow")
            found[row] = flow_of(_fields(made[row]))
        except FlowError as error:
            found[row] = error
    return _placed(glances, rows, found)


def _rows(flows: int, glances: Sequence[Glance | None], wanted: Wanted | None) -> list[int]:
    """Which flows are to be read: those that are wanted, and those of which nothing can be said."""
    if wanted is None:
        return list(range(flows))
    chosen = zip(glances, wanted(glances), strict=True)
    return [row for row, (glance, is_wanted) in enumerate(chosen) if is_wanted or glance is None]


def _placed(
    glances: Sequence[Glance | None], rows: Sequence[int], read: Sequence[Flow | FlowError | Glance]
) -> list[Flow | FlowError | Glance]:
    """What was read in its place among what was not."""
    if not glances:
        return list(read)
    found: dict[int, Flow | FlowError | Glance] = dict(zip(rows, read, strict=True))
    return [glance if row not in found and glance is not None else found[row] for row, glance in enumerate(glances)]


def _unpacked(packed: str) -> bytes:
    """The flows of a batch as bytes."""
    try:
        batch = binascii.a2b_base64(packed, strict_mode=True)
    except ValueError:  # binascii.Error, its subclass, and text that is not ASCII
        raise BatchError("expected base64 with padding") from None
    if len(batch) < _PREFIX_BYTES:
        raise BatchError(f"expected {_PREFIX_BYTES} bytes before the flows")
    size = int.from_bytes(batch[4:_PREFIX_BYTES], "little")
    if size > MAX_BATCH_BYTES:
        raise BatchError(f"expected a size of at most {MAX_BATCH_BYTES} bytes")
    if batch[0] not in (_STORED, _ZLIB):
        raise BatchError("expected compression 0 or 1")
    data = batch[_PREFIX_BYTES:] if batch[0] == _STORED else _inflated(batch[_PREFIX_BYTES:], size)
    if len(data) != size:
        raise BatchError("expected flows of the size that the batch tells")
    return data


def _inflated(data: bytes, size: int) -> bytes:
    """What zlib made `data` of, or the first byte too many of it."""
    stream = zlib.decompressobj()
    try:
        found = stream.decompress(data, size + 1)
    except zlib.error:
        raise BatchError("expected data compressed by zlib") from None
    if len(found) <= size and (not stream.eof or stream.unused_data):
        raise BatchError("expected one whole stream of zlib")
    return found


def _edges(data: bytes, flows: int) -> list[int]:
    """Where each flow begins, and where the last ends."""
    edges, at = [0], 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "little")
        if size < _FRONT.itemsize or size > len(data) - at:
            raise BatchError("expected flows that fill the batch end to end")
        at += size
        edges.append(at)
        if len(edges) - 1 > flows:
            break
    if len(edges) - 1 != flows:
        raise BatchError("expected as many flows as the event tells")
    return edges


class _Parts:
    """Where the parts of each flow lie in a batch, int64 [flows] each, as far as they fit into it.

    `lengths` int32 and `gaps_us` uint64 are those of all flows end to end, `length_row` and `head_row` of which flow
    each is. `overrun` bool [flows]: the parts do not fit into the flow.
    """

    def __init__(self, data: bytes, starts: Ints, ends: Ints, front: NDArray[np.void]) -> None:
        self.lengths_at = starts + _FRONT.itemsize
        n_lengths, n_heads = front["lengths"].astype(np.int64), front["heads"].astype(np.int64)
        fits = self.lengths_at + _LENGTH_BYTES * n_lengths + _HEAD_BYTES * n_heads <= ends
        self.n_lengths, self.n_heads = n_lengths * fits, n_heads * fits
        self.heads_at = self.lengths_at + _LENGTH_BYTES * self.n_lengths
        sizes_at, heads_data_at = self.heads_at + 8 * self.n_heads, self.heads_at + _HEAD_BYTES * self.n_heads
        rows = np.arange(len(front))
        self.length_row, self.head_row = np.repeat(rows, self.n_lengths), np.repeat(rows, self.n_heads)
        self.lengths = np.frombuffer(_joined(data, self.lengths_at, self.heads_at), "<i4")
        self.gaps_us = np.frombuffer(_joined(data, self.heads_at, sizes_at), "<u8")
        sizes = np.frombuffer(_joined(data, sizes_at, heads_data_at), "<u2")
        self.head_bytes = np.bincount(self.head_row, sizes, len(front)).astype(np.int64)
        self.orig_at = heads_data_at + self.head_bytes
        self.resp_at = self.orig_at + front["orig_bytes"]
        self.uid_at = self.resp_at + front["resp_bytes"]
        self.service_at = self.uid_at + front["uid"]
        self.conn_state_at = self.service_at + front["service"]
        self.server_name_at = self.conn_state_at + front["conn_state"]
        self.end_at = self.server_name_at + front["server_name"]
        self.overrun = ~fits | (self.end_at > ends)


def _joined(data: bytes, starts: Ints, ends: Ints) -> bytes:
    return b"".join([data[start:end] for start, end in zip(starts.tolist(), ends.tolist(), strict=True)])


def _doubtful(front: NDArray[np.void], parts: _Parts) -> NDArray[np.bool_]:
    """Flows that may be out of bounds, bool [flows]; of all others it is certain that `flow_of` takes them."""
    doubt = front["heads_kind"] >= len(_HEADS_KINDS)
    for name in _COUNTS:
        doubt |= front[name] > MAX_COUNT
    doubt |= front["start_us"] + front["duration_us"] > MAX_COUNT
    doubt |= front["uid"] == 0
    for name, most in (
        ("uid", MAX_NAME_CHARS), ("service", MAX_NAME_CHARS), ("conn_state", MAX_NAME_CHARS),
        ("lengths", MAX_PAYLOAD_LENGTHS), ("orig_bytes", MAX_CONTENT_BYTES), ("resp_bytes", MAX_CONTENT_BYTES),
    ):  # fmt: skip
        doubt |= front[name] > most
    doubt |= HEAD_TOKEN_COST * parts.n_heads + parts.head_bytes > HEADS_TOKEN_BUDGET
    doubt[parts.length_row[(parts.lengths == 0) | (parts.lengths < -MAX_PAYLOAD_LENGTH)]] = True
    doubt[parts.head_row[parts.gaps_us > MAX_COUNT]] = True
    return doubt


def _flows(data: bytes, front: NDArray[np.void], parts: _Parts, sensor: str) -> Iterator[Flow]:
    """A flow of each row, whatever its values."""
    columns = zip(*(front[name].tolist() for name in _FIELDS), strict=True)
    places = zip(*(getattr(parts, name).tolist() for name in _PLACES), strict=True)
    for (
        (flags, protocol, link_type, heads_kind, orig_p, resp_p, start_us, duration_us, orig_pkts, resp_pkts,
         orig_ip_bytes, resp_ip_bytes, up, down, orig_h, resp_h),
        (n_lengths, n_heads, lengths_at, heads_at, orig_at, resp_at, uid_at, service_at, state_at, name_at, end_at),
    ) in zip(columns, places, strict=True):  # fmt: skip
        address_bytes = 16 if flags & IPV6 else 4
        yield Flow(
            str(data[uid_at:service_at], "utf-8", "replace"), start_us, duration_us,
            address(orig_h[:address_bytes]), orig_p, address(resp_h[:address_bytes]), resp_p,
            _PROTOCOLS[protocol], up, down, PackedLengths(n_lengths, data[lengths_at:heads_at]),
            data[orig_at:resp_at], data[resp_at:uid_at], orig_pkts, resp_pkts, orig_ip_bytes, resp_ip_bytes, link_type,
            _HEADS_KINDS.get(heads_kind, _NO_KIND), PackedHeads(n_heads, data[heads_at:orig_at]),
            str(data[service_at:state_at], "utf-8", "replace"), str(data[state_at:name_at], "utf-8", "replace"),
            sensor, bool(flags & FINAL), _server_name(data[name_at:end_at]),
        )  # fmt: skip


_server_name = lru_cache(_KNOWN_NAMES)(host_name)


def _fields(flow: Flow) -> dict[str, Any]:
    """Plain values: records that are made already would not be checked."""
    fields = {name: getattr(flow, name) for name in Flow.__struct_fields__}
    heads = [{"gap_us": head.gap_us, "data": head.data} for head in flow.heads]
    return fields | {"payload_lengths": list(flow.payload_lengths), "heads": heads}
