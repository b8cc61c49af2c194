"""Batches of flows, format 2 of the bus: fields out of bounds, sizes that lie, broken base64 and zlib.

Whatever comes in, what is refused is counted, nothing fails, and a flow that is taken is one that the one validator
takes, and can be encoded and returned.
"""

from __future__ import annotations

import base64
import random
import struct
import zlib

import msgspec

from tapline.models.encode import Mm4flowFeatures, encode
from tapline.models.flow import Flow, PacketHead, flow_of, flow_to_line, parse_flow
from tapline.models.packet_tokens import encode_packets
from tapline.service.metrics import Metrics
from tapline.service.sources.bus.events import BusEvent
from tapline.service.sources.bus.source import BusSource
from tests.batches import FRONT, pack_flow
from tests.fuzz.frames import NoTransport
from tests.fuzz.mutation import EDGES, spoil
from tests.logged import capture_logs

FLOW = Flow(
    "Cuid", 1_700_000_000_000_000, 250, "10.0.0.1", 4242, "10.0.0.2", 443, "tcp", 2, 1, [517, -1448, 64],
    b"\x16\x03\x01", b"", 5, 4, 900, 800, 3, "header", [PacketHead(0, b"\xaa\xbb"), PacketHead(12, b"\xcc")], "ssl",
    "SF", server_name="example.org",
)  # fmt: skip
SIZES = (0, 1, 119, 120, 0xFFFF, 1 << 20, (1 << 20) + 1, 0xFFFFFFFF)

_metrics = Metrics()


def case(random: random.Random) -> None:
    """Give one source some batches, most of them wrong."""
    flows: list[Flow] = []
    source = BusSource(NoTransport(), _metrics, flows.append)  # type: ignore[arg-type]
    sent = 0
    with capture_logs():
        for _ in range(20):
            count, packed = batch(random)
            source._receive(BusEvent("tapline/flows/0", "Tapline::flows", [2, "tap-1", sent + 1, count, packed]))
            sent += count
    account = source.state.sensors.get("tap-1")
    assert source.state.faults == 0
    assert account is None or account.flows == len(flows) <= sent - account.missed
    for flow in flows:
        assert flow_of(msgspec.to_builtins(flow, builtin_types=(bytes,), enc_hook=list)) == flow
        assert parse_flow(msgspec.json.encode(flow_to_line(flow))) == flow
    encode(flows, Mm4flowFeatures())
    encode_packets(flows)


def batch(random: random.Random) -> tuple[int, str]:
    """How many flows an event says, and a batch, most likely a wrong one."""
    flows = [_flow(random) for _ in range(random.choice((1, 1, 2, 5, 64)))]
    data = b"".join(flows)
    if random.random() < 0.1:
        data = spoil(data, random)
    size, compression = len(data), random.choice((0, 1))
    body = zlib.compress(data) if compression else data
    if random.random() < 0.1:
        size = random.choice(SIZES)
    if random.random() < 0.1:
        body = spoil(body, random)
    if random.random() < 0.05:
        compression = random.randrange(256)
    packed = base64.b64encode(struct.pack("<B3xI", compression, size) + body)
    if random.random() < 0.05:
        packed = spoil(packed, random)
    count = len(flows) if random.random() < 0.9 else random.choice((1, 2, 63, 64))
    return count, packed.decode("utf-8", "replace")


def _flow(random: random.Random) -> bytes:
    packed = bytearray(pack_flow(FLOW, random.randbytes(random.choice((0, 0, 5)))))
    for _ in range(random.choice((0, 0, 1, 3))):
        how = random.randrange(3)
        if how == 0:  # a byte behind the size: of the fields, the lengths, the heads, or text
            packed[random.randrange(4, len(packed))] = random.choice((0, 1, 127, 128, 255, random.randrange(256)))
        elif how == 1:  # a count of 64 bits
            at = 12 + 8 * random.randrange(8)
            packed[at : at + 8] = struct.pack("<Q", abs(random.choice(EDGES)) % 2**64)
        elif random.random() < 0.2:
            packed[:4] = struct.pack("<I", random.choice(SIZES))
    assert len(packed) >= FRONT.size
    return bytes(packed)
