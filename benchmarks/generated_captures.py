"""Captures made for a measurement: connections held open, a scan, a flood.

Their checksums are zero: read them with `zeek -C`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

BEGIN_US = 1_700_000_000_000_000
GLOBAL_HEADER = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 262_144, 1)
CHUNK = 200_000
"""Packets made at once."""

PORT = 40_000
"""Of the responders: none that Zeek knows a protocol for."""

SYN, ACK = 0x02, 0x10
FRAME = [
    ("seconds", "<u4"), ("microseconds", "<u4"), ("captured", "<u4"), ("wire", "<u4"), ("macs", "V12"),
    ("ether_type", ">u2"), ("version", "u1"), ("tos", "u1"), ("length", ">u2"), ("id", ">u2"), ("fragment", ">u2"),
    ("ttl", "u1"), ("protocol", "u1"), ("checksum", ">u2"), ("orig", ">u4"), ("resp", ">u4"),
    ("orig_port", ">u2"), ("resp_port", ">u2"),
]  # fmt: skip
TCP = [
    ("seq", ">u4"), ("ack", ">u4"), ("offset", "u1"), ("flags", "u1"), ("window", ">u2"), ("rest", ">u4"),
]  # fmt: skip
UDP = [("udp_length", ">u2"), ("udp_checksum", ">u2")]
RECORD_BYTES, ETHERNET_BYTES = 16, 14


def frames(times_us: NDArray[np.int64], transport: list[tuple[str, str]], payload: int) -> NDArray[np.void]:
    """Packets of one length, one for each time, between addresses that are still to be set."""
    made = np.zeros(len(times_us), np.dtype([*FRAME, *transport, ("payload", "u1", (payload,))]))
    made["seconds"], made["microseconds"] = np.divmod(times_us, 1_000_000)
    made["captured"] = made["wire"] = made.itemsize - RECORD_BYTES
    made["ether_type"], made["version"], made["ttl"] = 0x0800, 0x45, 64
    made["length"], made["protocol"] = made.itemsize - RECORD_BYTES - ETHERNET_BYTES, 6 if transport is TCP else 17
    made["payload"] = np.arange(payload) * 7 % 251 + 1
    if transport is TCP:
        made["offset"], made["window"] = 0x50, 65_535
    else:
        made["udp_length"] = 8 + payload
    return made


def write(out: Path, parts: Iterator[NDArray[np.void]]) -> Path:
    """Write packets behind a capture's header."""
    with out.open("wb") as file:
        file.write(GLOBAL_HEADER)
        for part in parts:
            part.tofile(file)
    return out


def turned(made: NDArray[np.void]) -> NDArray[np.void]:
    """The packets with their ends exchanged."""
    for one, other in (("orig", "resp"), ("orig_port", "resp_port")):
        made[one], made[other] = made[other].copy(), made[one].copy()
    return made


def open_connections(out: Path, connections: int, payload_packets: int) -> Path:
    """TCP connections, all open at the end: handshakes, then packets of 100 bytes to and fro, within 40 seconds."""
    numbers = np.arange(connections)
    spacing = 40e6 / (connections * (3 + payload_packets))

    def packet(at: int, places: NDArray[np.int64]) -> NDArray[np.void]:
        made = frames(BEGIN_US + (places * spacing).astype(np.int64), TCP, 100 if at >= 3 else 0)
        made["orig"], made["resp"] = 0x0A000000 + numbers // 20_000, 0xAC100001
        made["orig_port"], made["resp_port"] = 41_000 + numbers % 20_000, PORT
        back = at == 1 or (at >= 3 and at % 2 == 0)
        to_resp, to_orig = max(0, at - 2) // 2 * 100, max(0, at - 3) // 2 * 100
        made["seq"] = 1_000 + (at > 1) + (to_orig if back else to_resp)
        made["ack"] = 0 if at == 0 else 1_001 + (to_resp if back else to_orig)
        made["flags"] = SYN if at == 0 else SYN | ACK if at == 1 else ACK
        return turned(made) if back else made

    def parts() -> Iterator[NDArray[np.void]]:
        # a SYN that waits for its answer is soon forgotten
        first, *others = (packet(at, 3 * numbers + at) for at in range(3))
        together = np.repeat(first, 3)
        for at, made in enumerate(others, 1):
            together[at::3] = made
        yield together
        for at in range(3, 3 + payload_packets):
            yield packet(at, at * connections + numbers)

    return write(out, parts())


def scan(out: Path, syns: int) -> Path:
    """SYNs of one host to as many others, 10,000 a second, none answered."""

    def parts() -> Iterator[NDArray[np.void]]:
        for first in range(0, syns, CHUNK):
            numbers = np.arange(first, min(syns, first + CHUNK))
            made = frames(BEGIN_US + numbers * 100, TCP, 0)
            made["orig"], made["resp"] = 0x0A000001, 0xAC100000 + numbers
            made["orig_port"], made["resp_port"] = PORT, 445
            made["seq"], made["flags"] = 1_000, SYN
            yield made

    return write(out, parts())


def flood(out: Path, ip_bytes: int, packets: int, flows: int) -> Path:
    """UDP packets of one length, over flows in turn, as fast as 10 Gb/s carries them: checksum, preamble and gap of a
    frame take 24 bytes more than its Ethernet header and IP packet.
    """

    def parts() -> Iterator[NDArray[np.void]]:
        bits = 8 * (ETHERNET_BYTES + ip_bytes + 24)
        for first in range(0, packets, CHUNK):
            numbers = np.arange(first, min(packets, first + CHUNK))
            made = frames(BEGIN_US + numbers * bits // 10_000, UDP, ip_bytes - 28)
            made["orig"], made["resp"] = 0x0A000001 + numbers % flows, 0xAC100001
            made["orig_port"], made["resp_port"] = PORT + 1, PORT
            yield made

    return write(out, parts())


def empty(out: Path) -> Path:
    """No packet."""
    return write(out, iter(()))
