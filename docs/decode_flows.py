"""Prints the flows of tapline's bus, format 2, a line of JSON each; the layout is in `zeek/README.md`.

    python decode_flows.py ws://127.0.0.1:27759

Without an address it reads frames of Zeek's WebSocket API from the standard input, one a line.
"""

import base64
import ipaddress
import json
import struct
import sys
import zlib

FRONT = struct.Struct("<I4B2H8Q16s16s6B3H")
NAMES = "size flags protocol link_type heads_kind orig_p resp_p start_us duration_us orig_pkts resp_pkts orig_ip_bytes"
NAMES += " resp_ip_bytes up down orig_h resp_h"
PARTS = ["orig_bytes", "resp_bytes", "uid", "service", "conn_state", "server_name"]


def decode_flow(data):
    """The flow that `data` begins with, by the names of the layout."""
    *values, uid, service, state, name, lengths, heads, orig, resp, _ = FRONT.unpack_from(data)
    flow, at, parts = dict(zip(NAMES.split(), values, strict=True)), FRONT.size + 4 * lengths + 10 * heads, []
    numbers = struct.unpack_from(f"<{lengths}i{heads}Q{heads}H", data, FRONT.size)
    for size in (*numbers[lengths + heads :], orig, resp, uid, service, state, name):
        parts, at = [*parts, data[at : at + size]], at + size
    if not at <= flow["size"] <= len(data):
        raise ValueError(f"a flow says {flow['size']} bytes where {at} are needed and {len(data)} are there")
    for side in ("orig_h", "resp_h"):
        flow[side] = str(ipaddress.ip_address(flow[side][: 16 if flow["flags"] & 2 else 4]))
    flow |= {part: data if "bytes" in part else data.decode() for part, data in zip(PARTS, parts[heads:], strict=True)}
    gaps_us = numbers[lengths : lengths + heads]
    return flow | {"payload_lengths": numbers[:lengths], "heads": list(zip(gaps_us, parts[:heads], strict=True))}


def decode_text(text):
    """The same of a flow in text."""
    final, straight, *texts, data, numbers = text.split(",", 8)
    *values, ahead, back, orig, resp, lengths, heads = json.loads(f"[{numbers}]")[:17]
    flow = dict(zip(["protocol", "link_type", "heads_kind", *NAMES.split()[5:13]], values, strict=True))
    flow |= dict(zip(["orig_h", "resp_h", "uid", "conn_state", "server_name"], texts, strict=True))
    ups, data, parts = sum(n > 0 for n in lengths), base64.b64decode(data, validate=True), []
    both, sign = (ups + ahead, len(lengths) - ups + back), 1 if straight == "T" else -1
    for size in (*(n % 512 for n in heads), orig, resp, len(data)):
        parts, data = [*parts, data[:size]], data[size:]
    flow |= {"orig_bytes": parts[-3], "resp_bytes": parts[-2], "service": parts[-1].decode()}
    flow["flags"] = (final == "T") + 2 * (":" in flow["orig_h"])
    flow |= {"up": both[::sign][0], "down": both[::sign][1], "payload_lengths": tuple(sign * n for n in lengths)}
    return flow | {"heads": [(n // 512, head) for n, head in zip(heads, parts[:-3], strict=True)]}


def decode_flows(packed):
    """The flows of a batch. Of a broken one it raises ValueError (bad text among it), struct.error or zlib.error."""
    if packed[:1] == "|":
        yield from map(decode_text, packed[1:].split("|"))
        return
    batch = base64.b64decode(packed, validate=True)
    compression, size = struct.unpack_from("<B3xI", batch)
    if compression > 1 or size > 1 << 20:
        raise ValueError(f"no batch of format 2: compression {compression}, {size} bytes")
    data = zlib.decompressobj().decompress(batch[8:], size + 1) if compression else batch[8:]
    if len(data) != size:
        raise ValueError(f"a batch says {size} bytes and has {len(data)}")
    while data:
        flow = decode_flow(data)
        data = data[flow["size"] :]
        yield flow


def main(url=""):
    """Print what comes."""
    frames = sys.stdin
    if url:
        from websockets.sync.client import connect

        frames = connect(f"{url}/v1/messages/json")
        frames.send('["tapline/flows/"]')
    for event in (json.loads(frame).get("data") for frame in frames):
        if event and event[2]["data"][0]["data"] == "Tapline::flows":
            for flow in decode_flows(event[2]["data"][1]["data"][4]["data"]):
                print(json.dumps(flow, default=bytes.hex), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
