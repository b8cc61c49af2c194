"""File formats and compression: whatever a capture is stored as, its flows are the same."""

import gzip
import io
import struct

import pytest
import zstandard

from service.sources.capture import CaptureReader, ReadOptions
from tests.service.sources import builders as b

PACKETS = [
    b.Packet(0.000001, b.ethernet(b.ipv4(17, b.udp(4000, 7000, b"first")))),
    b.Packet(1.5, b.ethernet(b.ipv4(17, b.udp(7000, 4000, b"second!"), b.SERVER, b.CLIENT))),
]


def pack(data, how):
    return {"plain": bytes, "gzip": gzip.compress, "zstd": zstandard.compress}[how](data)


def check(flows):
    (flow,) = flows
    assert b.ends(flow) == ("10.0.0.1", 4000, "10.0.0.2", 7000, "udp")
    assert flow.start_us == b.START_S * 1_000_000 + 1
    assert flow.duration_us == 1_499_999
    assert flow.payload_lengths == [5, -7]
    assert (flow.orig_bytes, flow.resp_bytes) == (b"first", b"second!")


@pytest.mark.parametrize("how", ["plain", "gzip", "zstd"])
@pytest.mark.parametrize("nanoseconds", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
def test_pcap(order, nanoseconds, how, tmp_path):
    data = pack(b.pcap(PACKETS, order=order, nanoseconds=nanoseconds), how)
    check(b.read(data))
    path = tmp_path / "capture"
    path.write_bytes(data)
    reader = CaptureReader(path)
    check(reader)
    assert (reader.packets, reader.bytes_read, reader.bytes_total) == (2, len(data), len(data))
    assert reader.warning is None


@pytest.mark.parametrize("how", ["plain", "gzip", "zstd"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_pcapng(order, how):
    check(b.read(pack(b.pcapng(PACKETS, order=order), how)))


class Dribble(io.RawIOBase):
    """A pipe that gives a few bytes at a time and cannot seek."""

    def __init__(self, data):
        self._data = io.BytesIO(data)

    def readable(self):
        return True

    def read(self, size=-1):
        return self._data.read(min(size, 7) if size > 0 else 7)


@pytest.mark.parametrize("how", ["plain", "gzip", "zstd"])
@pytest.mark.parametrize("form", [b.pcap, b.pcapng])
def test_stream_in_small_pieces(form, how):
    reader = CaptureReader(Dribble(pack(form(PACKETS), how)))
    check(reader)
    assert reader.bytes_total is None


def test_modified_pcap_has_longer_records():
    data = struct.pack("<IHHiIII", 0xA1B2CD34, 2, 4, 0, 0, 65535, 1)
    for packet in PACKETS:
        seconds, micros = divmod(packet.time_us, 1_000_000)
        data += struct.pack("<IIIIIHBB", seconds, micros, len(packet.data), len(packet.data), 0, 0, 0, 0) + packet.data
    check(b.read(data))


def test_old_pcap_has_lengths_the_other_way_round():
    cut = PACKETS[0].data[:60]
    data = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 1, 0, 0, 65535, 1)
    data += struct.pack("<IIII", b.START_S, 0, 400, len(cut)) + cut
    data += struct.pack("<IIII", b.START_S, 1, len(PACKETS[1].data), len(PACKETS[1].data)) + PACKETS[1].data
    (flow,) = b.read(data)
    assert flow.payload_lengths == [5, -7]


def test_link_type_has_other_bits_above_it():
    (flow,) = b.read(b.pcap(PACKETS[:1], link=0x14000001))
    assert flow.orig_p == 4000


def test_snap_length_of_the_file_cuts_packets():
    (flow,) = b.read(b.pcap([b.Packet(0, b.ethernet(b.ipv4(17, b.udp(4000, 7000, b"x" * 100))))], snap_length=64))
    assert flow.payload_lengths == [100]
    assert flow.orig_bytes == b"x" * 22


def test_gzip_of_several_members_and_padding():
    data = b.pcap(PACKETS)
    check(b.read(gzip.compress(data[:50]) + gzip.compress(data[50:]) + bytes(100)))


def test_zstd_of_several_frames():
    data = b.pcap(PACKETS)
    check(b.read(zstandard.compress(data[:50]) + zstandard.compress(data[50:])))


@pytest.mark.parametrize("order", ["<", ">"])
def test_pcapng_interfaces_have_their_own_link_clock_and_snap_length(order):
    raw = b.ipv4(17, b.udp(1, 2, b"raw"))
    nano = b.option(9, b"\x09", order) + b.option(0, b"", order)
    binary = b.option(9, b"\x8a", order) + b.option(14, struct.pack(order + "q", 1_000_000), order)
    data = b.section(order) + b.interface(1, order, snap_length=48) + b.interface(101, order, options=nano)
    data += b.interface(101, order, options=binary)
    data += b.enhanced(b.Packet(0, b.ethernet(b.ipv4(17, b.udp(3, 4, b"ethernet")))), 0, order)
    data += b.enhanced(b.Packet(1.25, raw), 1, order, units_per_second=10**9)
    data += b.enhanced(b.Packet(2.5, raw), 2, order, units_per_second=1024, offset_s=1_000_000)
    first, second = b.by_start(b.read(data))
    assert first.orig_bytes == b"ethern"
    assert second.start_us == b.START_S * 1_000_000 + 1_250_000
    assert second.duration_us == 1_250_000


def test_pcapng_simple_and_obsolete_packets_and_unknown_blocks():
    frame = b.ethernet(b.ipv4(17, b.udp(4000, 7000, b"first")))
    units = PACKETS[0].time_us
    obsolete = struct.pack("<HHIIII", 0, 0, units >> 32, units & 0xFFFFFFFF, len(frame), len(frame)) + frame
    data = b.section() + b.interface() + b.block(0xBAD, b"unknown") + b.block(2, obsolete)
    data += b.block(3, struct.pack("<I", len(frame)) + frame)
    (flow,) = b.read(data)
    assert flow.payload_lengths == [5, 5]  # a simple packet has no time: that of the packet before it


def test_pcapng_sections_may_differ_in_byte_order():
    data = b.pcapng(PACKETS[:1], order="<") + b.pcapng(PACKETS[1:], order=">")
    check(b.read(data))


def test_pcapng_interface_that_is_never_described():
    reader = CaptureReader(io.BytesIO(b.section() + b.interface() + b.enhanced(PACKETS[0]) + b.enhanced(PACKETS[1], 5)))
    (flow,) = reader
    assert flow.payload_lengths == [5]
    assert reader.warning is not None
    assert "packet 2 names an interface that is not described" in reader.warning


def test_uids_repeat_and_differ():
    packets = [b.Packet(n, b.ethernet(b.ipv4(17, b.udp(4000 + n % 3, 7000, b"x")))) for n in range(3)]
    first, again = b.read(b.pcap(packets)), b.read(b.pcapng(packets))
    assert [flow.uid for flow in first] == [flow.uid for flow in again]
    assert len({flow.uid for flow in first}) == 3
    assert all(len(flow.uid) == 18 and flow.uid[0] == "T" and flow.uid.isalnum() for flow in first)


def test_heads_option_is_in_the_record():
    for heads, expected in (("none", 0), ("header", 42), ("full", 47)):
        (flow,) = list(CaptureReader(io.BytesIO(b.pcap(PACKETS[:1])), ReadOptions(heads=heads)))
        assert flow.heads_kind == heads
        assert [len(head.data) for head in flow.heads] == ([expected] if expected else [])
        assert flow.link_type == (3 if expected else 0)
