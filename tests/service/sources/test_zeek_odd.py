"""Frames that Zeek's events describe incompletely: the package looks into them, as the built-in reader does."""

import io
import itertools
import shutil
import struct

import pytest

from tapline.service.sources.capture import CaptureReader, ReadOptions
from tapline.service.sources.zeek_reader import ZeekReader
from tests.service.sources import builders as b

LOOPBACK = bytes([127, 0, 0, 1])
LOOPBACK6 = bytes(15) + b"\1"
MORE = 0x2000
HOP_BY_HOP = b"\x2c\0\1\4\0\0\0\0"
"""An extension header of padding, before a fragment header."""

RAW_IP = 101
GET = b"GET /" + b"a" * 59 + b" HTTP/1.1\r\nHost: x.example\r\n\r\n"


def vlan(packet):
    return b.MACS + b"\x81\0\0\5" + (b"\x86\xdd" if packet[0] >> 4 == 6 else b"\x08\0") + packet


def fragments4(protocol, body, *cuts):
    """IPv4 packets that carry `body` cut at these multiples of 8."""
    edges = [0, *cuts, len(body)]
    return [
        b.ipv4(protocol, body[start:end], fragment=start // 8 | (MORE if end < len(body) else 0))
        for start, end in itertools.pairwise(edges)
    ]


def fragments6(protocol, body, *cuts, before=b""):
    """The same for IPv6, with an extension header before the fragment header."""
    edges = [0, *cuts, len(body)]
    return [
        b.ipv6(
            0 if before else 44,
            before + struct.pack(">BBHI", protocol, 0, start | (end < len(body)), 99) + body[start:end],
        )
        for start, end in itertools.pairwise(edges)
    ]


def snapped(frames, size):
    return [b.Packet(at / 1000, frame[:size], len(frame)) for at, frame in enumerate(frames)]


def talk(protocol, there, back, wrap=b.ethernet, local=4):
    """One packet each way between two ports of one host, by IP version `local`."""
    ip, client, server = (b.ipv4, LOOPBACK, LOOPBACK) if local == 4 else (b.ipv6, LOOPBACK6, LOOPBACK6)
    return [wrap(ip(protocol, there, client, server)), wrap(ip(protocol, back, server, client))]


def http(packets):
    """A handshake around packets that together are a request of the client's."""
    opened = b.Talk(4000, 80).opened()
    frames = [packet.data for packet in opened.packets] + [b.ethernet(packet) for packet in packets]
    return [b.Packet(at / 1000, frame) for at, frame in enumerate(frames)]


def plain(packets, wrap=b.ethernet):
    return [b.Packet(at / 1000, wrap(packet)) for at, packet in enumerate(packets)]


def bsd(packet):
    """BSD's loopback header."""
    return struct.pack("<I", 30 if packet[0] >> 4 == 6 else 2) + packet


def as_is(packet):
    return packet


UP = b.udp(4000, 7000, b"u" * 100)
DOWN = b.udp(7000, 4000, b"d" * 300)
SEGMENT = b.tcp(4000, 80, b.PSH | b.ACK, 1001, 5001, GET)
LONG = b.udp(4000, 7000, bytes(range(256)) * 10)
CASES = {
    "udp between two ports of one host, snapped": (snapped(talk(17, UP, DOWN, local=4), 60), 1),
    "the same, IPv6 on BSD loopback": (snapped(talk(17, UP, DOWN, bsd, local=6), 60), 0),
    "tcp between two ports of one host, snapped": (
        snapped(
            talk(6, b.tcp(4000, 8999, b.SYN, 1), b.tcp(8999, 4000, b.SYN | b.ACK, 1, 2), bsd, local=4)
            + talk(
                6,
                b.tcp(4000, 8999, b.ACK | b.PSH, 2, 2, b"q" * 100),
                b.tcp(8999, 4000, b.ACK | b.PSH, 2, 102, b"a" * 500),
                bsd,
                local=4,
            ),
            52,
        ),
        0,
    ),
    "short pings of oneself": (plain(talk(1, b.icmp(8, 0, b"1234"), b.icmp(0, 0, b"1234"), as_is, local=4)), 1),
    "a first packet at time 0": (plain([b.ipv4(17, UP), b.ipv4(17, UP)]), 1),
    "two IPv4 fragments": (plain(fragments4(17, LONG, 1480)), 1),
    "in a VLAN": (plain(fragments4(17, LONG, 1480), vlan), 1),
    "as raw IP": (plain(fragments4(17, LONG, 1480), as_is), RAW_IP),
    "the last one first": (plain(fragments4(17, LONG, 1480)[::-1]), 1),
    "two IPv6 fragments": (plain(fragments6(17, LONG, 1232)), 1),
    "a first IPv6 fragment of 8 bytes": (plain(fragments6(17, LONG, 8)), 1),
    "behind another extension header": (plain(fragments6(17, LONG, 1232, before=HOP_BY_HOP)), 1),
    "one IPv6 fragment": (plain(fragments6(17, LONG)), 1),
    "a request in IPv4 fragments": (http(fragments4(6, SEGMENT, 56)), 1),
    "a small last fragment": (http(fragments4(6, SEGMENT, len(SEGMENT) // 8 * 8)), 1),
}


def capture(name):
    packets, link = CASES[name]
    if "time 0" in name:
        packets = [b.Packet(packet.at - b.START_S, packet.data) for packet in packets]
    return b.pcap(packets, link)


def seen(flow):
    return flow.payload_lengths, flow.up, flow.down, [(head.gap_us, head.data.hex()) for head in flow.heads]


@pytest.mark.zeek
@pytest.mark.skipif(shutil.which("zeek") is None, reason="no zeek on PATH")
@pytest.mark.parametrize("heads", ["header", "full"])
@pytest.mark.parametrize("name", CASES)
def test_zeek_and_the_built_in_reader_see_the_same(name, heads, tmp_path):
    path = tmp_path / "odd.pcap"
    path.write_bytes(capture(name))
    flows = [seen(flow) for flow in ZeekReader(path, ReadOptions(heads=heads))]
    assert flows == [seen(flow) for flow in CaptureReader(path, ReadOptions(heads=heads))]


HEADERS = {
    "udp between two ports of one host, snapped": [42, 42],
    "the same, IPv6 on BSD loopback": [52, 52],
    "tcp between two ports of one host, snapped": [44, 44, 44, 44],
    "short pings of oneself": [42, 42],
    "a first packet at time 0": [42, 42],
    "two IPv4 fragments": [34],
    "in a VLAN": [38],
    "as raw IP": [20],
    "the last one first": [34],
    "two IPv6 fragments": [62],
    "a first IPv6 fragment of 8 bytes": [62],
    "behind another extension header": [70],
    "one IPv6 fragment": [62],
    "a request in IPv4 fragments": [54, 54, 54, 34],
    "a small last fragment": [54, 54, 54, 34],
}


@pytest.mark.parametrize("name", CASES)
def test_what_both_see(name):
    (flow,) = CaptureReader(io.BytesIO(capture(name)), ReadOptions(heads="header"))
    assert [len(head.data) for head in flow.heads] == HEADERS[name]
    signs = [length > 0 for length in flow.payload_lengths]
    assert signs == (
        [True, False] if "host" in name or "oneself" in name or "IPv6 on BSD" in name else [True] * len(signs)
    )
