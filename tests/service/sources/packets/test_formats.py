"""File formats and compression: whatever a capture is stored as, its flows are the same."""

import gzip
import io
import struct

import pytest
import zstandard

from tapline.models.flow import MAX_COUNT, check_flow
from tapline.service.sources.capture import CaptureError, CaptureReader, ReadOptions
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


def damaged(capture):
    """The flows of a capture, its reader's counts of what was left out, and its warning."""
    reader = CaptureReader(io.BytesIO(capture))
    flows = list(reader)
    return flows, reader.skipped, reader.warning


BAD_BLOCKS = {
    "a packet of an interface that is not described": b.enhanced(PACKETS[0], 5),
    "a packet longer than its block": b.block(6, struct.pack("<5I", 0, 0, 0, 5_000, 5_000) + bytes(40)),
    "a packet block without room for its fields": b.block(6, bytes(8)),
    "a simple packet block without its length": b.block(3, b""),
    "an obsolete packet block that is too short": b.block(2, bytes(4)),
}


@pytest.mark.parametrize("name", BAD_BLOCKS)
def test_pcapng_block_that_makes_no_sense_costs_itself(name):
    start = b.section() + b.interface()
    flows, skipped, warning = damaged(start + BAD_BLOCKS[name] + b.enhanced(PACKETS[0]) + b.enhanced(PACKETS[1]))
    check(flows)
    assert skipped == {"a damaged block of the capture": 1}
    assert warning is not None
    assert warning.endswith(f"at byte {len(start)}: the capture is damaged there, the rest was read")


def test_pcapng_damage_that_reaches_beyond_its_block_ends_the_capture():
    bad = bytearray(BAD_BLOCKS["a packet longer than its block"])
    bad[-4:] = b"\xff\xff\xff\xff"
    data = b.section() + b.interface() + b.enhanced(PACKETS[0]) + bytes(bad) + b.enhanced(PACKETS[1])
    flows, _, warning = damaged(data)
    assert len(flows) == 1
    assert "the capture is damaged there, what came before was read" in warning


def test_pcapng_interface_that_is_damaged_keeps_its_number():
    data = b.section() + b.interface() + b.block(1, b"\1\0") + b.interface(101)
    raw = b.Packet(0, b.ipv4(17, b.udp(4000, 7000, b"raw")))
    flows, skipped, _ = damaged(data + b.enhanced(raw, 2) + b.enhanced(raw, 1))
    assert [flow.payload_lengths for flow in flows] == [[3]]
    assert skipped == {"a damaged block of the capture": 1, "link type 65535, which is not supported": 1}


def test_pcapng_interfaces_each_have_their_link_type_snap_length_and_clock():
    frame = b.ethernet(b.ipv4(17, b.udp(4000, 7000, b"first")))
    raw = b.ipv4(17, b.udp(4001, 7000, b"second, of which some was cut"))
    cooked = bytes(14) + b"\x81\0" + b"\0\5\x08\0" + b.ipv4(17, b.udp(4002, 7000, b"third"))
    interfaces = (
        b.interface(1) + b.interface(220) + b.interface(101, snap_length=34, options=b.option(9, b"\x09"))
        + b.interface(113, options=b.option(9, b"\x03"))
    )  # fmt: skip
    data = b.section() + interfaces
    data += b.enhanced(b.Packet(0, frame), 0) + b.enhanced(b.Packet(1, bytes(64)), 1)
    data += b.enhanced(b.Packet(2, raw), 2, units_per_second=10**9)
    data += b.enhanced(b.Packet(3, cooked), 3, units_per_second=10**3)
    reader = CaptureReader(io.BytesIO(data))
    flows = b.by_start(reader)
    assert [(flow.start_us - b.START_S * 1_000_000, flow.payload_lengths) for flow in flows] == [
        (0, [5]), (2_000_000, [len("second, of which some was cut")]), (3_000_000, [5]),
    ]  # fmt: skip
    assert [flow.orig_bytes for flow in flows] == [b"first", b"second", b"third"]
    assert reader.skipped == {"link type 220, which is not supported": 1}


def test_pcapng_of_foreign_link_types_alone_is_refused():
    data = b.section() + b.interface(220) + b.interface(230)
    data += b.enhanced(b.Packet(0, bytes(64)), 0) + b.enhanced(b.Packet(1, bytes(64)), 1)
    with pytest.raises(CaptureError, match="link type 220 is not supported"):
        b.read(data)


def test_pcapng_time_beyond_what_a_record_holds_is_bounded():
    late = struct.pack("<5I", 0, 0xFFFFFFFF, 0xFFFFFFFF, len(PACKETS[0].data), len(PACKETS[0].data))
    (flow,) = b.read(b.section() + b.interface() + b.block(6, late + PACKETS[0].data))
    assert check_flow(flow).start_us == MAX_COUNT


@pytest.mark.parametrize("size", [8, 5_000_000, (16 << 20) + 4, 50_000_000])
def test_pcapng_blocks_of_other_kinds_are_passed_over_whatever_their_size(size):
    data = b.section() + b.interface() + b.enhanced(PACKETS[0]) + b.block(0x0BAD, bytes(size)) + b.enhanced(PACKETS[1])
    flows, skipped, warning = damaged(gzip.compress(data, 1))
    check(flows)
    assert (skipped, warning) == ({}, None)


def test_pcapng_that_ends_inside_a_large_block_of_another_kind():
    data = b.section() + b.interface() + b.enhanced(PACKETS[0]) + b.block(0x0BAD, bytes(20 << 20))[:-8]
    flows, _, warning = damaged(data)
    assert len(flows) == 1
    assert "the capture ends in the middle" in warning
