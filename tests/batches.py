"""Flows as sensors send them: one to an event (format 1 of the bus) and packed by the batch (format 2).

The layout is in `zeek/README.md`; nothing else packs in Python.
"""

from __future__ import annotations

import base64
import socket
import struct
import zlib
from collections.abc import Iterable, Sequence
from typing import Any

from tapline.models.flow import Flow, ip_protocol_number
from tapline.service.sources.bus.events import BusEvent, Count

HEADS_KINDS = ("none", "header", "full")
FRONT = struct.Struct("<I4B2H8Q16s16s6B2H2x")


def pack_flow(flow: Flow, behind: bytes = b"") -> bytes:
    """A flow as it lies in a batch; `behind`: what a later version would add."""
    texts = [text.encode() for text in (flow.uid, flow.service, flow.conn_state, flow.server_name)]
    lengths, heads = list(flow.payload_lengths), list(flow.heads)
    parts = b"".join(
        (
            struct.pack(f"<{len(lengths)}i", *lengths),
            struct.pack(f"<{len(heads)}Q", *[head.gap_us for head in heads]),
            struct.pack(f"<{len(heads)}H", *[len(head.data) for head in heads]),
            *[head.data for head in heads],
            flow.orig_bytes,
            flow.resp_bytes,
            *texts,
            behind,
        )
    )
    is_ipv6 = ":" in flow.orig_h
    family = socket.AF_INET6 if is_ipv6 else socket.AF_INET
    front = FRONT.pack(
        FRONT.size + len(parts), flow.complete | is_ipv6 << 1, ip_protocol_number(flow.proto, flow.orig_h),
        flow.link_type, HEADS_KINDS.index(flow.heads_kind), flow.orig_p, flow.resp_p, flow.start_us, flow.duration_us,
        flow.orig_pkts, flow.resp_pkts, flow.orig_ip_bytes, flow.resp_ip_bytes, flow.up, flow.down,
        socket.inet_pton(family, flow.orig_h), socket.inet_pton(family, flow.resp_h), *map(len, texts), len(lengths),
        len(heads), len(flow.orig_bytes), len(flow.resp_bytes),
    )  # fmt: skip
    return front + parts


def flow_text(flow: Flow, *, straight: bool = True, behind: str = "") -> str:
    """A flow as a sensor without the plugin writes it; `straight`: the first packet is the originator's; `behind`: what
    a later version would add.
    """
    sign = 1 if straight else -1
    lengths, heads = [sign * length for length in flow.payload_lengths], list(flow.heads)
    ahead = sum(length > 0 for length in lengths)
    more = (flow.up, flow.down) if straight else (flow.down, flow.up)
    data = b"".join([head.data for head in heads]) + flow.orig_bytes + flow.resp_bytes + flow.service.encode()
    values = [
        "FT"[flow.complete], "FT"[straight], flow.orig_h, flow.resp_h, flow.uid, flow.conn_state, flow.server_name,
        base64.b64encode(data).decode("ascii"), ip_protocol_number(flow.proto, flow.orig_h), flow.link_type,
        HEADS_KINDS.index(flow.heads_kind), flow.orig_p, flow.resp_p, flow.start_us, flow.duration_us, flow.orig_pkts,
        flow.resp_pkts, flow.orig_ip_bytes, flow.resp_ip_bytes, more[0] - ahead, more[1] - len(lengths) + ahead,
        len(flow.orig_bytes), len(flow.resp_bytes), lengths, [head.gap_us * 512 + len(head.data) for head in heads],
    ]  # fmt: skip
    return ",".join(map(str, values)) + behind


def pack_batch(flows: Iterable[bytes], *, compressed: bool = True) -> str:
    """The `packed` of an event with these packed flows, compressed or not."""
    data = b"".join(flows)
    body = zlib.compress(data) if compressed else data
    return base64.b64encode(struct.pack("<B3xI", compressed, len(data)) + body).decode("ascii")


def flows_event(
    flows: Sequence[Flow], seq: int, *, sensor: str = "tap-a", shard: str = "0", text: bool = False
) -> BusEvent:
    """Up to 64 flows as a sensor publishes them, the first of them numbered `seq`; `text`: one without the plugin."""
    packed = "|" + "|".join(map(flow_text, flows)) if text else pack_batch(map(pack_flow, flows))
    args = [Count(2), sensor, Count(seq), Count(len(flows)), packed]
    return BusEvent(f"tapline/flows/{shard}", "Tapline::flows", args)


def flow_event(flow: Flow, seq: int, *, sensor: str = "tap-a", shard: str = "0") -> BusEvent:
    """A flow as a sensor before format 2 publishes it."""
    args: list[Any] = [
        1, sensor, seq, flow.complete, flow.uid, flow.start_us, flow.duration_us, flow.orig_h, flow.orig_p, flow.resp_h,
        flow.resp_p, flow.proto, flow.service, flow.conn_state, flow.orig_pkts, flow.resp_pkts, flow.orig_ip_bytes,
        flow.resp_ip_bytes, flow.up, flow.down, ",".join(map(str, flow.payload_lengths)), flow.orig_bytes.hex(),
        flow.resp_bytes.hex(), flow.link_type, flow.heads_kind,
        ";".join(f"{head.gap_us}:{head.data.hex()}" for head in flow.heads),
    ]  # fmt: skip
    args = [Count(arg) if type(arg) is int else arg for arg in args]
    return BusEvent(f"tapline/flows/{shard}", "Tapline::flow", args)
