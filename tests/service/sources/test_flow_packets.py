"""The packets of one flow: read again, they give the same flow, and they are the packets of the capture, bit by bit."""

import gzip
import io
import random
import struct
import subprocess

import dpkt
import msgspec
import pytest
import zstandard

from tapline.installation import module_command
from tapline.service.sources import flow_packets_worker
from tapline.service.sources.capture import CaptureError, read_capture
from tapline.service.sources.flow_packets import flow_packets
from tests.paths import DATA
from tests.service.sources import builders as b

CAPTURES = sorted(
    path.relative_to(DATA).as_posix()
    for path in DATA.rglob("*.pcap*")
    if path.is_file() and not path.is_relative_to(DATA / "traces")
)
CHECKED_FLOWS = 8
SAME = (
    "start_us", "duration_us", "orig_h", "orig_p", "resp_h", "resp_p", "proto", "up", "down", "payload_lengths",
    "orig_bytes", "resp_bytes", "orig_pkts", "resp_pkts", "orig_ip_bytes", "resp_ip_bytes", "conn_state",
)  # fmt: skip


def same(flow):
    return tuple(str(getattr(flow, name)) for name in SAME)


def extract(data, flow):
    return b"".join(flow_packets(io.BytesIO(data), flow.uid, flow.start_us))


def records(data):
    """Time in nanoseconds and bytes of the packets of a little-endian pcap of either resolution."""
    unit = {0xA1B2C3D4: 1_000, 0xA1B23C4D: 1}[struct.unpack_from("<I", data)[0]]
    at, found = 24, []
    while at < len(data):
        seconds, fraction, captured, _ = struct.unpack_from("<IIII", data, at)
        found.append((seconds * 10**9 + fraction * unit, data[at + 16 : at + 16 + captured]))
        at += 16 + captured
    return found


@pytest.mark.parametrize("name", CAPTURES)
def test_its_packets_alone_give_the_same_flow(name):
    data = (DATA / name).read_bytes()
    try:
        flows = list(read_capture(io.BytesIO(data)))
    except CaptureError:
        flows = []
    for flow in random.Random(3).sample(flows, min(len(flows), CHECKED_FLOWS)):
        again = list(read_capture(io.BytesIO(extract(data, flow))))
        assert same(flow) in [same(other) for other in again]
        if len({(each.orig_h, each.resp_h) for each in again}) == 1 and flow.proto == "tcp":
            assert len(again) == 1  # nothing of the flow's neighbours came along


def udp_packet(at, source_port, payload, **how):
    return b.Packet(at, b.ethernet(b.ipv4(17, b.udp(source_port, 9999, payload), **how)))


def test_flows_that_meet_at_the_same_ends_are_told_apart_by_their_times():
    times = (0, 0.5, 300, 300.5, 900)
    data = b.pcap([udp_packet(at, 4000, bytes([number]) * 9) for number, at in enumerate(times)])
    flows = sorted(read_capture(io.BytesIO(data)), key=lambda flow: flow.start_us)
    assert [flow.orig_bytes[::9] for flow in flows] == [b"\0\1", b"\2\3", b"\4"]
    assert [len(records(extract(data, flow))) for flow in flows] == [2, 2, 1]
    assert [record for flow in flows for record in records(extract(data, flow))] == records(data)


def test_a_reused_port_of_tcp_begins_another_flow():
    def segment(at, flags, seq, payload=b""):
        return b.Packet(at, b.ethernet(b.ipv4(6, b.tcp(4000, 80, flags, seq=seq, payload=payload))))

    packets = [
        segment(0, b.SYN, 10), segment(1, b.RST, 11), segment(2, b.SYN, 9000), segment(3, b.PSH | b.ACK, 9001, b"again")
    ]  # fmt: skip
    data = b.pcap(packets)
    flows = sorted(read_capture(io.BytesIO(data)), key=lambda flow: flow.start_us)
    assert len(flows) == 2
    assert [record for flow in flows for record in records(extract(data, flow))] == records(data)


def test_all_fragments_come_along_and_no_others():
    def piece(at, payload, offset, more, identifier):
        return b.Packet(
            at, b.ethernet(b.ipv4(17, payload, fragment=(offset // 8) | 0x2000 * more, identifier=identifier))
        )

    whole = b.udp(4000, 9999, bytes(range(40)))
    other = b.udp(4001, 9999, bytes(range(40)))
    data = b.pcap([
        piece(0, whole[:16], 0, True, 1), piece(0.1, other[:24], 0, True, 2), piece(0.2, whole[32:], 32, False, 1),
        piece(0.3, other[24:], 24, False, 2), piece(0.4, whole[16:32], 16, True, 1), piece(0.5, whole[:16], 0, True, 3),
    ])  # fmt: skip
    flow = next(flow for flow in read_capture(io.BytesIO(data)) if flow.orig_p == 4000)
    everything = records(data)
    assert records(extract(data, flow)) == [everything[place] for place in (0, 2, 4)]


@pytest.mark.parametrize("compress", [bytes, gzip.compress, zstandard.ZstdCompressor().compress])
def test_nanoseconds_are_kept_and_compression_does_not_matter(compress):
    packets = [udp_packet(0, 4000, b"a"), udp_packet(1, 4001, b"b"), udp_packet(2, 4000, b"c")]
    plain = b.pcap(packets, nanoseconds=True)
    data = compress(plain)
    flow = next(flow for flow in read_capture(io.BytesIO(data)) if flow.orig_p == 4000)
    found = extract(data, flow)
    assert records(found) == [records(plain)[0], records(plain)[2]]
    assert records(found)[0][0] % 1_000 == 999
    assert [packet for _, packet in dpkt.pcap.Reader(io.BytesIO(found))] == [packet for _, packet in records(found)]


def test_several_link_types_give_pcapng():
    packet = b.ipv4(17, b.udp(4000, 9999, b"abc"))
    times = b.option(9, b"\x09")
    data = b.section() + b.interface(1, options=times) + b.interface(101, options=times)
    other = b.ipv4(17, b.udp(5, 6, b"other"))
    for which, frame in ((0, b.ethernet(packet)), (1, packet), (1, other)):
        data += b.enhanced(b.Packet(0.25, frame), which, units_per_second=10**9)
    flow = next(flow for flow in read_capture(io.BytesIO(data)) if flow.orig_p == 4000)
    found = extract(data, flow)
    assert found[:4] == b"\x0a\x0d\x0d\x0a"
    assert [same(other) for other in read_capture(io.BytesIO(found))] == [same(flow)]
    assert (b.ethernet(packet) in found, other in found) == (True, False)


def test_a_flow_that_is_not_there_is_said_to_be_gone():
    data = b.pcap([udp_packet(0, 4000, b"a")])
    (flow,) = read_capture(io.BytesIO(data))
    for uid, start_us in (("Tnone", flow.start_us), (flow.uid, flow.start_us + 1)):
        with pytest.raises(CaptureError, match="no such flow"):
            b"".join(flow_packets(io.BytesIO(data), uid, start_us))
    with pytest.raises(CaptureError, match="more than the allowed"):
        b"".join(flow_packets(io.BytesIO(data), flow.uid, flow.start_us, max_bytes=10))


def test_the_process_ends_with_1_where_it_cannot_give_them(tmp_path):
    path = tmp_path / "a.pcap"
    path.write_bytes(b.pcap([udp_packet(0, 4000, b"a")]))
    (flow,) = read_capture(path)
    outcomes = []
    for uid in (flow.uid, "Tnone"):
        options = flow_packets_worker.PacketsOptions(uid, flow.start_us, 1 << 30, 2 << 30)
        command = module_command(flow_packets_worker.__name__, msgspec.json.encode(options).decode())
        with path.open("rb") as file:
            ended = subprocess.run(command, stdin=file, capture_output=True, check=False, timeout=60)
        outcomes.append((ended.returncode, len(ended.stdout), ended.stderr))
    assert outcomes == [(0, path.stat().st_size, b""), (1, 0, b"")]
