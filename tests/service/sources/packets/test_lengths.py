"""Lengths that are known to lie, or that no header has: offload, jumbograms, snap lengths, padding, tunnels in them."""

import io
import random
import socket
import struct

import pytest

from tapline.models.flow import MAX_PAYLOAD_LENGTH, parse_flow
from tapline.service.results.records import feature_lines
from tapline.service.sources.capture import CaptureReader
from tapline.service.sources.packets.fragments import Datagram, Fragment, Reassembler
from tests.service.sources import builders as b

SECRET = bytes([192, 168, 0, 1]), bytes([192, 168, 0, 2])
INNER = b.ipv4(17, b.udp(4000, 7000, b"payload"), *SECRET)
SEGMENT = b.tcp(4000, 8999, b.ACK | b.PSH, 1, 1, bytes(range(250)))


def one(packet, wire=None, link=1):
    (flow,) = b.read(b.pcap([b.Packet(0, packet, wire)], link=link))
    return flow


def jumbo(next_header, body, length=None):
    length = 8 + len(body) if length is None else length
    option = bytes((next_header, 0, 0xC2, 4)) + length.to_bytes(4)
    return b.ipv6(0, option + body, length=0)


@pytest.mark.parametrize("captured", [None, 14 + 40 + 8 + 20 + 100])
def test_jumbo_option_is_the_length(captured):
    frame = b.ethernet(jumbo(6, SEGMENT))
    flow = one(frame[:captured], len(frame))
    assert flow.payload_lengths == [250]
    assert flow.orig_bytes == bytes(range(250))[: captured and 100]
    assert flow.orig_ip_bytes == 40 + 8 + 270


def test_jumbo_option_beyond_the_frame_is_no_packet():
    assert b.flows_of([b.ethernet(jumbo(6, SEGMENT, length=90_000))]) == []


def test_payloads_longer_than_the_record_holds_are_bounded():
    frame = b.ethernet(b.ipv4(6, SEGMENT, total=0))
    flow = one(frame, 0xFFFFFFFF)
    assert flow.payload_lengths == [MAX_PAYLOAD_LENGTH - 20]
    (line,) = feature_lines([flow], tokens=False)
    assert parse_flow(b.json_of(line)) == flow


@pytest.mark.parametrize(
    "build",
    [
        lambda body, kind: b.ipv4(kind, body, total=0),
        lambda body, kind: b.ipv6(kind, body, length=0),
    ],
)
@pytest.mark.parametrize(("kind", "body"), [(6, SEGMENT), (17, b.udp(4000, 8999, bytes(range(250))))])
def test_without_a_length_the_frame_says_it(build, kind, body):
    frame = b.ethernet(build(body, kind))
    flow = one(frame)
    assert (flow.payload_lengths, flow.orig_bytes) == ([250], bytes(range(250)))
    cut = one(frame[:-150], len(frame))
    assert (cut.payload_lengths, cut.orig_bytes) == ([250], bytes(range(100)))


def test_a_checksum_behind_the_frame_is_no_payload():
    wifi = b"\x08\0" + bytes(22) + b"\xaa\xaa\x03\0\0\0\x08\0" + b.ipv4(6, SEGMENT, total=0)
    radiotap = struct.pack("<BBHIB", 0, 0, 9, 2, 0x10)
    assert one(radiotap + wifi + b"fcs!", link=127).payload_lengths == [250]


def test_ipv6_of_another_protocol_without_a_length_has_no_payload():
    flow = one(b.ethernet(b.ipv6(99, b"", length=0)) + bytes(6))
    assert (flow.proto, flow.payload_lengths, flow.orig_ip_bytes) == ("99", [], 40)


@pytest.mark.parametrize("wire", [0, 1, 40])
@pytest.mark.parametrize("as_file", [b.pcap, b.pcapng])
def test_original_length_below_what_was_captured(as_file, wire):
    reader = CaptureReader(io.BytesIO(as_file([b.Packet(0, b.ethernet(b.ipv4(6, SEGMENT)), wire)])))
    (flow,) = reader
    assert (flow.payload_lengths, flow.orig_bytes) == ([250], bytes(range(250)))
    assert reader.beyond_zeek == {"an original length below what was captured": 1}


def test_simple_packet_block_without_an_original_length():
    frame = b.ethernet(b.ipv4(6, SEGMENT))
    capture = b.section() + b.interface() + b.block(3, struct.pack("<I", 0) + frame)
    (flow,) = b.read(capture)
    assert flow.payload_lengths == [250]


@pytest.mark.parametrize(
    ("offset", "length", "head"),
    [(15, 0, 14 + 20 + 20), (6, 0, 14 + 20 + 20), (3, 8, 14 + 20 + 20), (0, 20, 14 + 20 + 20)],
)
def test_tcp_header_of_another_size_than_its_packet(offset, length, head):
    segment = bytearray(b.tcp(4000, 8999, b.ACK, 1, 1))
    segment[12] = offset << 4
    (flow,) = b.flows_of([b.ethernet(b.ipv4(6, bytes(segment))) + bytes(6)], heads="header")
    assert flow.payload_lengths == ([length] if length else [])
    assert [len(each.data) for each in flow.heads] == [head]


TUNNELS = {
    "ip in ip": b.ipv4(4, INNER),
    "gre": b.ipv4(47, struct.pack(">HH", 0, 0x0800) + INNER),
    "ethernet in gre": b.ipv4(47, struct.pack(">HH", 0, 0x6558) + b.MACS + b"\x08\0" + INNER),
    "ip in ipv6": b.ipv6(4, INNER),
}


@pytest.mark.parametrize("name", TUNNELS)
def test_tunnels_in_padded_and_in_cut_frames(name):
    frame = b.ethernet(TUNNELS[name])
    padded = one(frame + bytes(20))
    cut = one(frame[:-5], len(frame))
    assert [flow.payload_lengths for flow in (padded, cut)] == [[7], [7]]
    assert [flow.orig_bytes for flow in (padded, cut)] == [b"payload", b"pa"]


def test_gtp_and_teredo_cut_by_the_snap_length():
    inner6 = b.ipv6(17, b.udp(4000, 7000, b"payload"))
    for port, payload in ((2152, b"\x30\xff" + struct.pack(">HI", len(INNER), 1) + INNER), (3544, inner6)):
        frame = b.ethernet(b.ipv4(17, b.udp(40000, port, payload)))
        outer, inner = b.by_start(b.read(b.pcap([b.Packet(0, frame[:-5], len(frame))])))
        assert sorted((outer.payload_lengths, inner.payload_lengths), key=list) == [[7], [len(payload)]]


def fragment_header(next_header, offset=0, more=0, identifier=5):
    return struct.pack(">BBHI", next_header, 0, offset | more, identifier)


def test_fragments_inside_fragments():
    inner = b.udp(4000, 7000, bytes(range(96)))
    whole = [fragment_header(17, 0, 1, 7) + inner[:48], fragment_header(17, 48, 0, 7) + inner[48:]]
    frames = []
    for number, datagram in enumerate(whole):
        frames.append(b.ethernet(b.ipv6(44, fragment_header(44, 0, 1, number) + datagram[:24])))
        frames.append(b.ethernet(b.ipv6(44, fragment_header(44, 24, 0, number) + datagram[24:])))
    (flow,) = b.flows_of(frames)
    assert (flow.payload_lengths, flow.orig_bytes) == ([96], bytes(range(96)))


@pytest.mark.parametrize(("levels", "flows"), [(1, 1), (4, 1), (5, 0), (1_000, 0)])
def test_fragment_headers_nested_too_deep_are_given_up(levels, flows):
    body = b"".join(fragment_header(44) for _ in range(levels - 1)) + fragment_header(17) + b.udp(1, 2, b"x")
    assert len(b.flows_of([b.ethernet(b.ipv6(44, body))])) == flows


def test_an_atomic_fragment_does_not_complete_another_datagram():
    """RFC 6946: a packet whose fragment header says that it is all there waits for nothing and answers for itself."""
    datagram = b.udp(4000, 7000, bytes(40))
    frames = [
        b.ethernet(b.ipv6(44, fragment_header(17, 0, 1) + datagram[:24])),
        b.ethernet(b.ipv6(44, fragment_header(17) + b.udp(4001, 7000, b"atomic"))),
        b.ethernet(b.ipv6(44, fragment_header(17, 24) + datagram[24:])),
    ]
    assert [flow.payload_lengths for flow in b.flows_of(frames)] == [[6], [40]]


def test_fragments_of_one_identification_are_told_apart_by_protocol():
    payloads = {17: b.udp(4000, 7000, b"u" * 32), 1: b.icmp(8, payload=b"i" * 32)}
    frames = [
        b.ethernet(b.ipv4(kind, payload[start : start + 24], fragment=(0x2000 if not start else 0) | start // 8))
        for start in (0, 24)
        for kind, payload in payloads.items()
    ]
    assert sorted(flow.proto for flow in b.flows_of(frames)) == ["icmp", "udp"]


def test_fragments_that_wait_in_vain_are_counted():
    first = b.ethernet(b.ipv4(17, b.udp(4000, 7000, bytes(40))[:24], fragment=0x2000))
    late = b.ethernet(b.ipv4(17, b.udp(4000, 7000, b"x")))
    reader = CaptureReader(io.BytesIO(b.pcap([b.Packet(0, first), b.Packet(400, first), b.Packet(500, late)])))
    assert len(list(reader)) == 1
    assert reader.skipped == {"fragments without the rest of their datagram": 2}


def plain_reassembly(fragments, size):
    """The first copy of each byte, or None where one is missing."""
    data: list[int | None] = [None] * size
    for offset, payload in fragments:
        for place, byte in enumerate(payload, offset):
            data[place] = byte if data[place] is None else data[place]
    return None if None in data else bytes(data)


@pytest.mark.parametrize("seed", range(60))
def test_parts_in_any_order_and_overlap_give_the_first_copy_of_each_byte(seed):
    source = random.Random(seed)
    size = source.choice([24, 64, 200])
    datagram = Datagram(b"", 0, 17)
    given = []
    for _ in range(1_000):
        start = source.randrange(size // 8) * 8
        end = min(size, start + source.choice([8, 16, 24, 64]))
        payload = source.randbytes(end - start)
        given.append((start, payload))
        datagram.add(Fragment((b"", b"", 0, 17), b"", start, end < size, payload, 17))
        expected = plain_reassembly(given, size)
        assert datagram.is_whole() is (expected is not None)
        if expected is not None:
            assert datagram.joined() == expected
            return
    pytest.fail("a thousand parts left a hole")


def test_many_parts_of_one_datagram_are_found_without_looking_at_each():
    """Each fragment looks at as many parts as it overlaps: counted, as time would depend on the machine."""

    class Counting(list):
        reads = 0

        def __getitem__(self, place):
            Counting.reads += 1
            return super().__getitem__(place)

    datagram = Datagram(b"", 0, 17)
    datagram.starts, datagram.parts = Counting(), Counting()
    for round_ in range(2):
        for place in range(8_000 - 2, 0, -2):
            datagram.add(Fragment((b"", b"", 0, 17), b"", place * 8, True, bytes(8), 17))
        assert Counting.reads < 8_000 * 40 * (round_ + 1)
    assert len(datagram.parts) == 3_999


def test_what_waits_for_fragments_outlasts_a_clock_that_steps_back():
    waiting = Reassembler()
    key = (b"a", b"b", 1, 17)
    assert waiting.add(Fragment(key, b"", 0, True, bytes(8), 17), 1_000_000_000) is None
    assert waiting.add(Fragment((b"c", b"d", 1, 17), b"", 0, True, bytes(8), 17), 0) is None
    whole = waiting.add(Fragment((b"c", b"d", 1, 17), b"", 8, False, b"12345678", 17), 1_000)
    assert whole is not None
    assert whole.joined() == bytes(8) + b"12345678"
    assert waiting.waiting() == 1


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        ("::ffff:10.0.0.1", "::ffff:10.0.0.2", ("10.0.0.1", "10.0.0.2")),
        ("::ffff:10.0.0.1", "2001:db8::2", ("::ffff:10.0.0.1", "2001:db8::2")),
        ("::", "::ffff:10.0.0.2", ("::", "::ffff:10.0.0.2")),
        ("fe80::1", "ff02::1", ("fe80::1", "ff02::1")),
    ],
)
def test_addresses_are_of_one_version(source, target, expected):
    ends = (socket.inet_pton(socket.AF_INET6, address) for address in (source, target))
    flow = one(b.ethernet(b.ipv6(17, b.udp(4000, 7000, b"payload"), *ends)))
    assert (flow.orig_h, flow.resp_h) == expected
    (line,) = feature_lines([flow], tokens=False)
    assert parse_flow(b.json_of(line)) == flow
