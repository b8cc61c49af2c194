"""Captures: packets of real ones, mutated where headers stand, in files whose own structure is mutated, too.

Whatever comes in, the reader ends by itself, by nothing but a `CaptureError`, and each flow that it gives is one that
every path takes back.
"""

from __future__ import annotations

import functools
import io
import random
import struct
from pathlib import Path

import msgspec

from tapline.models.encode import Mm4flowFeatures, encode
from tapline.models.flow import Flow, flow_to_line, parse_flow
from tapline.models.packet_tokens import encode_packets
from tapline.models.server_name import server_name
from tapline.service.community_id import community_id
from tapline.service.sources.capture import CaptureError, CaptureReader, ReadOptions
from tests.fuzz.mutation import EDGES, spoil
from tests.paths import DATA

MAX_PACKETS = 300
HEADER_BYTES = 120
LINKS = (0, 1, 9, 12, 50, 51, 101, 104, 105, 107, 108, 113, 119, 127, 192, 195, 228, 229, 239, 276, 9999)


@functools.cache
def captures() -> list[Path]:
    """All captures among the test data."""
    names = (".pcap", ".pcapng", ".trace", ".cap")
    return sorted(path for path in DATA.rglob("*") if path.suffix in names and path.is_file())


@functools.cache
def packets_of(path: Path) -> tuple[int, list[tuple[int, int, bytes]]]:
    """Link type and packets (time in microseconds, length on the wire, bytes) of a capture in the plainest format."""
    data = path.read_bytes()
    if data[:4] not in (b"\xd4\xc3\xb2\xa1", b"\xa1\xb2\xc3\xd4"):
        return 1, []
    order = "<" if data[:4] == b"\xd4\xc3\xb2\xa1" else ">"
    (link,) = struct.unpack_from(f"{order}I", data, 20)
    found, place = [], 24
    while place + 16 <= len(data) and len(found) < MAX_PACKETS:
        seconds, micros, captured, wire = struct.unpack_from(f"{order}IIII", data, place)
        found.append((seconds * 1_000_000 + micros, wire, data[place + 16 : place + 16 + captured]))
        place += 16 + captured
    return link, found


def case(random: random.Random) -> None:
    """Read one mutated capture and check all that comes out."""
    mutated = file(random)
    heads = random.choice(("none", "header", "full"))
    flows = []
    try:
        flows = list(CaptureReader(io.BytesIO(mutated), ReadOptions(heads=heads, max_bytes=64 << 20)))
    except CaptureError:
        return
    for flow in flows:
        check(flow)
    encode(flows, Mm4flowFeatures())
    encode_packets(flows)


def file(random: random.Random) -> bytes:
    """A mutated capture."""
    return random.choice((_mutated_packets, _mutated_file))(random)


def check(flow: Flow) -> None:
    """What is given is taken back, and has its join key and the name of its server."""
    named = msgspec.structs.replace(flow, server_name=server_name(flow))
    assert parse_flow(msgspec.json.encode(flow_to_line(named, community_id(flow)))) == named


def _mutated_file(random: random.Random) -> bytes:
    data = random.choice(captures()).read_bytes()[: 1 << 17]
    head = random.choice((64, 400, len(data)))
    return spoil(data[:head], random) + data[head:]


def _mutated_packets(random: random.Random) -> bytes:
    link, packets = 1, []
    while not packets:
        link, packets = packets_of(random.choice(captures()))
    start = random.randrange(len(packets))
    chosen = packets[start : start + random.randint(1, 60)]
    if random.random() < 0.3:  # packets of another capture between them, whatever their link type
        chosen += random.choice([packets_of(path)[1] for path in captures()])[:20]
        random.shuffle(chosen)
    if random.random() < 0.1:
        link = random.choice(LINKS)
    made = bytearray(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 262_144, link))
    for time_us, wire, data in chosen:
        made += _packet(time_us, wire, data, random)
    return bytes(made)


def _packet(time_us: int, wire: int, data: bytes, random: random.Random) -> bytes:
    if random.random() < 0.4:
        data = spoil(data[:HEADER_BYTES], random, 3) + data[HEADER_BYTES:]
    if random.random() < 0.1:
        time_us += random.choice((-1, 1)) * random.choice((1, 1000, 400_000_000, 3_600_000_000, 2**31 * 1_000_000))
    if random.random() < 0.1:
        wire = random.choice(EDGES) % 2**32
    if random.random() < 0.1:
        data = data[: random.randint(0, len(data))]
    seconds, micros = divmod(max(0, time_us), 1_000_000)
    packed = struct.pack("<IIII", seconds % 2**32, micros, len(data), wire % 2**32) + data
    return packed * (2 if random.random() < 0.05 else 1)
