"""Damaged, hostile and foreign input: a clear sentence, what came before it is kept, and memory stays bounded."""

import gzip
import io
import random
import struct
import tracemalloc
import zlib
from contextlib import suppress
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from tapline.service.sources.capture import CaptureError, CaptureReader, CaptureTooLargeError, ReadOptions, read_capture
from tapline.service.sources.flows import flow_table
from tests.paths import DATA
from tests.service.sources import builders as b

pytestmark = pytest.mark.whole

FRAME = b.ethernet(b.ipv4(17, b.udp(4000, 7000, b"payload")))
PACKETS = [b.Packet(n, FRAME) for n in range(3)]
CAPTURES = DATA / "captures"
SEEDS = [
    (CAPTURES / name).read_bytes()
    for name in (
        "ndpi/http2.pcapng",
        "ndpi/gtp_c.pcap",
        "ndpi/fuzz-2021-06-07-c6c72a0a56.pcap",
        "zeek-traces/tunnels/geneve.pcap",
        "zeek-traces/tunnels/gre-pptp.pcap",
        "zeek-traces/tunnels/6in6in6.pcap",
        "zeek-traces/tunnels/ayiya-large-identity.pcap",
        "zeek-traces/ipv4/fragmented-1.pcap",
        "zeek-traces/ipv6_zero_len_ah.trace",
        "zeek-traces/tcp/payload-syn.pcap",
        "zeek-traces/radiotap.pcap",
        "zeek-traces/pbb.pcap",
        "zeek-traces/erspanII.pcap",
        "zeek-traces/nflog-http.pcap",
    )
]


def run(data, **options):
    reader = CaptureReader(io.BytesIO(data), ReadOptions(**options))
    return list(reader), reader


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the capture is empty"),
        (b"\xd4\xc3\xb2", "expected a pcap or pcapng file"),
        (b"GET / HTTP/1.1\r\n\r\n", "expected a pcap or pcapng file"),
        (gzip.compress(b"not a capture", mtime=0), "expected a pcap or pcapng file"),
        (b.pcap([])[:20], "ends inside its file header"),
        (b.section()[:10], "ends inside its section header"),
        (b"\x0a\x0d\x0d\x0a" + bytes(40), "no byte-order mark"),
        (b"\x1f\x8b" + bytes(30), "gzip data is damaged"),
        (b"\x28\xb5\x2f\xfd" + b"\xff" * 30, "zstd data is damaged"),
        (zstandard.compress(b.pcap(PACKETS))[:50], "zstd data ends early"),
    ],
)
def test_what_is_no_capture_is_refused_in_a_sentence(data, message):
    with pytest.raises(CaptureError, match=message) as error:
        run(data)
    assert "\n" not in str(error.value)


def test_missing_file():
    with pytest.raises(CaptureError, match=r"cannot open nowhere\.pcap: No such file"):
        CaptureReader(Path("/nonexistent/nowhere.pcap"))


def test_capture_without_packets_has_no_flows():
    assert run(b.pcap([]))[0] == []
    assert run(b.pcapng([]))[0] == []


@pytest.mark.parametrize("form", [b.pcap, b.pcapng])
def test_capture_cut_in_a_packet(form):
    whole = form(PACKETS)
    for cut in (1, 10, 40):
        flows, reader = run(whole[:-cut])
        assert [flow.payload_lengths for flow in flows] == [[7, 7]]
        assert reader.warning == (
            f"the capture ends in the middle of packet 3 at byte {len(whole) - cut}; what came before was read"
        )


@pytest.mark.parametrize("form", [b.pcap, b.pcapng])
@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress])
def test_compressed_capture_cut(form, pack):
    noise = [b.Packet(n, FRAME + random.Random(n).randbytes(1000)) for n in range(400)]
    flows, reader = run(pack(form(noise))[:-40_000])
    assert 100 < flows[0].up < 400
    assert reader.warning is not None
    assert "what came before was read" in reader.warning


def test_damaged_gzip_keeps_what_came_before():
    noise = [b.Packet(n, FRAME + random.Random(n).randbytes(500).hex().encode()) for n in range(100)]
    data = bytearray(gzip.compress(b.pcap(noise)))
    data[30_000:30_100] = b"\xff" * 100
    flows, reader = run(bytes(data))
    assert flows[0].up > 10
    assert reader.warning is not None
    assert "damaged" in reader.warning


def test_absurd_captured_length():
    data = b.pcap(PACKETS) + struct.pack("<IIII", b.START_S, 0, 1 << 30, 1 << 30) + bytes(100)
    flows, reader = run(data)
    assert flows[0].up == 3
    assert reader.warning is not None
    assert reader.warning.startswith(f"packet 4 at byte {len(b.pcap(PACKETS))} claims 1,073,741,824 captured bytes")


def test_absurd_block_length():
    flows, reader = run(b.pcapng(PACKETS) + struct.pack("<II", 6, 1 << 30) + bytes(100))
    assert flows[0].up == 3
    assert reader.warning is not None
    assert "a block claims 1,073,741,824 bytes" in reader.warning


def test_packet_longer_than_its_block():
    body = struct.pack("<5I", 0, 0, 0, 5000, 5000) + bytes(60)
    flows, reader = run(b.pcapng(PACKETS) + b.block(6, body))
    assert flows[0].up == 3
    assert reader.warning is not None
    assert "packet 4 claims 5,000 captured bytes" in reader.warning


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress])
def test_limit_counts_decompressed_bytes(pack):
    data = pack(b.pcap([b.Packet(n / 1000, FRAME) for n in range(20_000)]))
    assert len(run(data, max_bytes=2_000_000)[0]) == 1
    with pytest.raises(CaptureTooLargeError, match="more than the allowed 100,000 bytes"):
        run(data, max_bytes=100_000)


def bomb(pack):
    """A header and then nothing but zeros (packets of no bytes), 100 MB of them in well under a megabyte."""
    return pack(b.pcap([]) + bytes(100_000_000))


@pytest.mark.parametrize("pack", [lambda data: zlib.compress(data, 1, wbits=31), zstandard.compress])
def test_decompression_bomb_takes_no_memory(pack):
    data = bomb(pack)
    assert len(data) < 1_000_000
    tracemalloc.start()
    try:
        with pytest.raises(CaptureTooLargeError):
            list(read_capture(io.BytesIO(data), ReadOptions(max_bytes=8_000_000)))
        assert tracemalloc.get_traced_memory()[1] < 100_000_000
    finally:
        tracemalloc.stop()


class Scan(io.RawIOBase):
    """A SYN scan as long as one likes: `count` flows of one packet each, made while it is read."""

    def __init__(self, count):
        self._left = count
        self._number = 0
        self._ready = b.pcap([])

    def readable(self):
        return True

    def read(self, size=-1):
        if not self._ready and self._left:
            number, batch = self._number, min(2_000, self._left)
            packets = [
                b.Packet(n * 1e-5, b.ethernet(b.ipv4(6, b.tcp(1, 80, b.SYN), target=n.to_bytes(4))))
                for n in range(number, number + batch)
            ]
            self._number, self._left = number + batch, self._left - batch
            self._ready = b.pcap(packets)[24:]
        data, self._ready = self._ready[:size], self._ready[size:]
        return data


def test_scan_takes_no_more_memory_when_it_is_longer(monkeypatch):
    monkeypatch.setattr(flow_table, "MAX_LIVE_FLOWS", 2_000)
    peaks = []
    for count in (6_000, 12_000):
        tracemalloc.start()
        reader = CaptureReader(Scan(count))
        assert sum(1 for _ in reader) == count
        assert reader.skipped["flows ended early because too many were live"] == count - 2_000
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]


def test_fragments_take_bounded_memory():
    first = [
        b.Packet(n * 1e-5, b.ethernet(b.ipv4(17, bytes(1400), fragment=0x2000, identifier=n, source=n.to_bytes(4))))
        for n in range(1, 5_000)
    ]
    data = b.pcap(first)
    tracemalloc.start()
    try:
        flows, reader = run(data)
        assert flows == []
        assert reader.skipped["fragments dropped for lack of room"] > 2_000
        assert tracemalloc.get_traced_memory()[1] < 40_000_000
    finally:
        tracemalloc.stop()


def test_segments_beyond_a_hole_take_bounded_memory():
    talk = b.Talk().opened().up(b.ACK, 1001, 5001, b"x").down(b.ACK, 5001, 1002)
    for n in range(5_000):
        talk.up(b.ACK, 1010 + 2 * n, 5001, b"y")
    talk.up(b.ACK, 1002, 5001, bytes(8))
    (flow,) = talk.flows()
    assert flow.orig_bytes == b"x" + bytes(8) + b"y"


def test_segments_beyond_holes_of_many_flows_take_bounded_memory(monkeypatch):
    monkeypatch.setattr(flow_table, "MAX_HOLES", 100)
    packets = []
    for port in range(30):
        talk = b.Talk(client_port=4000 + port).opened()
        for n in range(10):
            talk.up(b.ACK, 1010 + 2 * n, 5001, b"y")
        packets += talk.packets
    flows, reader = run(b.pcap(packets))
    assert [flow.up for flow in flows] == [10] * 30
    assert reader.skipped == {"segments out of order given up for lack of room": 20}


@settings(max_examples=150)
@given(st.sampled_from(SEEDS), st.data())
def test_mutated_captures_raise_nothing_else(seed, data):
    changed = bytearray(seed)
    for _ in range(data.draw(st.integers(1, 12))):
        place = data.draw(st.integers(0, len(changed) - 1))
        how = data.draw(st.integers(0, 3))
        if how == 0:
            changed[place] = data.draw(st.integers(0, 255))
        elif how == 1:
            changed[place : place + 2] = data.draw(st.sampled_from([b"\xff\xff", b"\0\0", b"\x7f\xff"]))
        elif how == 2:
            del changed[place : place + data.draw(st.integers(1, 8))]
        else:
            changed[place:place] = data.draw(st.binary(max_size=8))
        if not changed:
            return
    heads = data.draw(st.sampled_from(["none", "header", "full"]))
    with suppress(CaptureError):
        for flow in read_capture(io.BytesIO(bytes(changed)), ReadOptions(heads=heads)):
            assert 0 not in flow.payload_lengths
            assert len(flow.orig_bytes) <= 256
            assert len(flow.resp_bytes) <= 256
            assert flow.duration_us >= 0


@settings(max_examples=100)
@given(
    st.lists(st.binary(min_size=1, max_size=120), max_size=20),
    st.sampled_from([0, 1, 9, 51, 101, 105, 113, 127, 239, 276]),
)
def test_any_bytes_as_packets(packets, link):
    for flow in b.read(b.pcap([b.Packet(n, data) for n, data in enumerate(packets)], link), heads="full"):
        assert flow.proto
