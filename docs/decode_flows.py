"""Decodes the last argument of `Tapline::flows`, a batch of flows, for other consumers of the bus than tapline.

The layout is in `zeek/README.md`. Nothing but Python's own library is needed.
"""

import base64
import ipaddress
import struct
import zlib
from collections.abc import Iterator
from typing import Any

HEADER = struct.Struct("<I4B2H8Q16s16s6B3H")
FIXED = "size flags protocol link_type heads_kind orig_p resp_p start_us duration_us orig_pkts resp_pkts orig_ip_bytes"
NAMES = [*FIXED.split(), "resp_ip_bytes", "up", "down", "orig_h", "resp_h"]
TEXTS = ["uid", "service", "conn_state", "server_name"]
MAX_BYTES = 1_048_576


def decode_flow(data: bytes) -> dict[str, Any]:
    """The flow that `data` begins with, by the names of the layout."""
    *values, uid, service, conn_state, server_name, lengths, heads, orig_bytes, resp_bytes, _ = HEADER.unpack_from(data)
    flow = dict(zip(NAMES, values, strict=True))
    numbers = struct.unpack_from(f"<{lengths}i{heads}Q{heads}H", data, HEADER.size)
    at = HEADER.size + 4 * lengths + 10 * heads
    parts = []
    for size in (*numbers[lengths + heads :], orig_bytes, resp_bytes, uid, service, conn_state, server_name):
        parts.append(data[at : at + size])
        at += size
    if not at <= flow["size"] <= len(data):
        raise ValueError(f"a flow says {flow['size']} bytes where {at} are needed and {len(data)} are there")
    for side in ("orig_h", "resp_h"):
        flow[side] = ipaddress.ip_address(flow[side][: 16 if flow["flags"] & 2 else 4])
    flow |= dict(zip(TEXTS, (part.decode() for part in parts[-4:]), strict=True))
    flow["heads"] = list(zip(numbers[lengths : lengths + heads], parts[:heads], strict=True))
    return flow | {"payload_lengths": numbers[:lengths], "orig_bytes": parts[heads], "resp_bytes": parts[heads + 1]}


def decode_flows(packed: str) -> Iterator[dict[str, Any]]:
    """The flows of a batch. Of a broken one it raises ValueError (bad text among it), struct.error or zlib.error."""
    batch = base64.b64decode(packed, validate=True)
    compression, size = struct.unpack_from("<B3xI", batch)
    if compression > 1 or size > MAX_BYTES:
        raise ValueError(f"no batch of format 2: compression {compression}, {size} bytes")
    data = zlib.decompressobj().decompress(batch[8:], size + 1) if compression else batch[8:]
    if len(data) != size:
        raise ValueError(f"a batch says {size} bytes and has {len(data)}")
    while data:
        yield (flow := decode_flow(data))
        data = data[flow["size"] :]
