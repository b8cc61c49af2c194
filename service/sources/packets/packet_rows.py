"""The records that pass between the parts of the capture reader: a block of captured packets, and a decoded packet."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Int64Array = npt.NDArray[np.int64]

TCP = 6
UDP = 17
ICMP = 1
ICMP6 = 58
UDP_TUNNEL = 0x100 | UDP
"""`PacketRow.kind` of a UDP datagram that may carry an inner packet."""
TCP_BAD_HEADER = 0x100 | TCP
"""`PacketRow.kind` of a TCP packet whose header length is wrong: it belongs to a flow and says nothing else."""
TCP_OFFLOADED = 0x200 | TCP
"""`PacketRow.kind` of a TCP packet whose IP header has no length: what was captured of it counts as content."""
CLOCK = 0x300
"""`PacketRow.kind` of a packet without a flow by which time passes; only `time_us` counts."""
NO_TCP_HEADER = -1
"""`PacketRow.have` of a TCP packet whose header claims to be shorter than any: nothing in it counts."""


@dataclass(slots=True)
class PacketBlock:
    """Captured packets in file order. All arrays have one entry per packet.

    * `data`: the bytes that hold the packets, followed by at least 128 more bytes.
    * `start`: where in `data` a packet's link layer begins; `captured` and `wire`: its captured and original length.
    * `time_us`: microseconds since the epoch, rounded down; `nanos`: the nanoseconds below that, from 0 to 999.
    * `link`: link type (the LINKTYPE_ registry of tcpdump.org).
    """

    data: bytes
    start: Int64Array
    captured: Int64Array
    wire: Int64Array
    time_us: Int64Array
    link: Int64Array
    nanos: Int64Array


class PacketRow(NamedTuple):
    """One packet of one flow, decoded.

    A block's rows are plain tuples in this order, made by `zip`: the table unpacks a million of them in a second, and
    attribute access would double that.

    * `key`: the two endpoints (address and port, lower first), the IP protocol and the IP version; `side` is 1 where
      the packet comes from the second one. One-way ICMP is not ordered, its `side` is always 0.
    * `kind`: the IP protocol number, or `UDP_TUNNEL`, `TCP_BAD_HEADER`, `TCP_OFFLOADED`, `CLOCK`.
    * `length`: transport payload by the IP header; `total`: IP length; `have`: captured payload bytes.
    * `flags`, `seq`, `ack`: of TCP, else 0.
    * `data`, `offset`: where the payload is (not in `frame` after reassembly).
    * `frame`, `head_start`, `head_end`, `frame_end`: the captured packet, the end of its headers, its end.
    * `link`: Tracegram's link-type byte, 0 for link layers it has none for.
    * `place`: counts the rows of a block; 0 for a row of none.
    """

    time_us: int
    key: bytes
    side: int
    kind: int
    length: int
    total: int
    have: int
    flags: int
    seq: int
    ack: int
    data: bytes
    offset: int
    frame: bytes
    head_start: int
    head_end: int
    frame_end: int
    link: int
    place: int = 0


@dataclass(slots=True)
class ReadCounters:
    """What was read and what was left out, by reason; `beyond_zeek`: what was read that Zeek 8.0 leaves out."""

    packets: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    beyond_zeek: Counter[str] = field(default_factory=Counter)
