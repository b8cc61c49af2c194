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

_FRONT = np.dtype(
    [
        ("size", "<u4"), ("kinds", "u1", 4), ("ports", "<u2", 2), ("counts", "<u8", 8), ("orig_h", "V16"),
        ("resp_h", "V16"), ("sizes", "u1", 6), ("content_sizes", "<u2", 2), ("", "<u2"),
    ]
)  # fmt: skip
"""What every flow begins with, neighbours of one kind together: looking at an array costs more than what is in it.

`kinds`: flags, protocol, link type, kind of heads. `counts`: start, duration, packets, IP bytes and payload packets
each way. `sizes`: of uid, service, state and server's name in bytes, and how many lengths and heads.
"""

_HEADS_KIND, _START, _DURATION, _UID, _LENGTHS = 3, 0, 1, 0, 4
_MOST = np.array([MAX_NAME_CHARS, MAX_NAME_CHARS, MAX_NAME_CHARS, 255, MAX_PAYLOAD_LENGTHS, 255], np.uint8)
"""Of `sizes`; how much there may be of names of servers and of heads is seen elsewhere."""

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
    glances = glances_of_bytes(data, edges) if wanted else []
    rows = _rows(flows, glances, wanted)
    if not rows:
        return _placed(glances, [], [])
    starts, ends = [edges[row] for row in rows], [edges[row + 1] for row in rows]
    front = np.frombuffer(b"".join([data[at : at + _FRONT.itemsize] for at in starts]), _FRONT)
    parts = _Parts(data, np.array(starts, np.int64), np.array(ends, np.int64), front)
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
    """Where the parts of each flow lie in a batch, as far as they fit into it.

    `places` int64 [flows, 11]: how many lengths and heads there are, where lengths, heads, content of the originator
    and of the responder, uid, service, state and name of the server begin, and where that ends. `lengths`
    int32 and `gaps_us` uint64 are those of all flows end to end, `length_row` and `head_row` of which flow each is.
    `overrun` bool [flows]: the parts do not fit into the flow.
    """

    def __init__(self, data: bytes, starts: Ints, ends: Ints, front: NDArray[np.void]) -> None:
        sizes = front["sizes"].astype(np.int64)
        self.places = places = np.empty((len(front), 11), np.int64)
        lengths_at = starts + _FRONT.itemsize
        fits = lengths_at + sizes[:, _LENGTHS:] @ (_LENGTH_BYTES, _HEAD_BYTES) <= ends
        places[:, :2] = sizes[:, _LENGTHS:] * fits[:, None]
        n_lengths, self.n_heads = places[:, 0], places[:, 1]
        places[:, 2] = lengths_at
        places[:, 3] = heads_at = lengths_at + _LENGTH_BYTES * n_lengths
        rows = np.arange(len(front))
        self.length_row, self.head_row = np.repeat(rows, n_lengths), np.repeat(rows, self.n_heads)
        self.lengths = np.frombuffer(_joined(data, lengths_at, heads_at), "<i4")
        if len(self.head_row):
            sizes_at, data_at = heads_at + 8 * self.n_heads, heads_at + _HEAD_BYTES * self.n_heads
            self.gaps_us = np.frombuffer(_joined(data, heads_at, sizes_at), "<u8")
            head_sizes = np.frombuffer(_joined(data, sizes_at, data_at), "<u2")
            self.head_bytes = np.bincount(self.head_row, head_sizes, len(front)).astype(np.int64)
            places[:, 4] = data_at + self.head_bytes
        else:
            self.gaps_us, self.head_bytes = np.zeros(0, np.uint64), np.zeros(len(front), np.int64)
            places[:, 4] = heads_at
        places[:, 5:7] = front["content_sizes"]
        places[:, 7:] = sizes[:, _UID:_LENGTHS]
        np.cumsum(places[:, 4:], axis=1, out=places[:, 4:])
        self.overrun = ~fits | (places[:, -1] > ends)


def _joined(data: bytes, starts: Ints, ends: Ints) -> bytes:
    return b"".join([data[start:end] for start, end in zip(starts.tolist(), ends.tolist(), strict=True)])


def _doubtful(front: NDArray[np.void], parts: _Parts) -> NDArray[np.bool_]:
    """Flows that may be out of bounds, bool [flows]; of all others it is certain that `flow_of` takes them."""
    counts, sizes = front["counts"], front["sizes"]
    doubt = np.zeros(len(front), np.bool_)
    doubt |= (counts > MAX_COUNT).any(axis=1)
    doubt |= (sizes > _MOST).any(axis=1)
    doubt |= (front["content_sizes"] > MAX_CONTENT_BYTES).any(axis=1)
    doubt |= (counts[:, _START] + counts[:, _DURATION] > MAX_COUNT) | (sizes[:, _UID] == 0)
    doubt |= front["kinds"][:, _HEADS_KIND] >= len(_HEADS_KINDS)
    doubt[parts.length_row[(parts.lengths == 0) | (parts.lengths < -MAX_PAYLOAD_LENGTH)]] = True
    if len(parts.head_row):
        doubt |= HEAD_TOKEN_COST * parts.n_heads + parts.head_bytes > HEADS_TOKEN_BUDGET
        doubt[parts.head_row[parts.gaps_us > MAX_COUNT]] = True
    return doubt


def _flows(data: bytes, front: NDArray[np.void], parts: _Parts, sensor: str) -> Iterator[Flow]:
    """A flow of each row, whatever its values."""
    columns = [front[name] for name in ("kinds", "ports", "counts", "orig_h", "resp_h")]
    for (
        (flags, protocol, link_type, heads_kind), (orig_p, resp_p),
        (start_us, duration_us, orig_pkts, resp_pkts, orig_ip_bytes, resp_ip_bytes, up, down), orig_h, resp_h,
        (n_lengths, n_heads, lengths_at, heads_at, orig_at, resp_at, uid_at, service_at, state_at, name_at, end_at),
    ) in zip(*(column.tolist() for column in (*columns, parts.places)), strict=True):  # fmt: skip
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
