"""Captures that are not as most are: what each holds, flow by flow, with exact lengths, content and counts."""

import msgspec
import pytest

from tapline.models.encode import Mm4flowFeatures, encode
from tapline.models.flow import parse_flow
from tapline.models.server_name import server_name
from tapline.service.results.records import feature_lines
from tapline.service.sources.capture import CaptureReader
from tests.paths import DATA
from tests.service.sources import builders as b

ODD = DATA / "odd"
QUERY = bytes.fromhex("00010100000100000000000004686f7374076578616d706c650000010001")
ANSWER = bytes.fromhex(
    "00018180000100010000000004686f7374076578616d706c65000001000104686f7374076578616d706c65000001000100000000"
    "0004c6336407"
)
REQUEST = b"GET / HTTP/1.1\r\nHost: www.example\r\n\r\n"
DNS_ENDS = ("192.0.2.10", 40000, "192.0.2.53", 53, "udp")
HTTP_ENDS = ("192.0.2.10", 41000, "192.0.2.80", 80, "tcp")
HTTP6_ENDS = ("2001:db8::1", 41000, "2001:db8::80", 80, "tcp")


def read(name, heads="header"):
    reader = CaptureReader(ODD / name, b.ReadOptions(heads=heads))
    return reader, b.by_start(reader)


def named(flow):
    """A flow with the name that is written with it."""
    return msgspec.structs.replace(flow, server_name=server_name(flow))


@pytest.mark.parametrize(
    ("name", "skipped", "beyond"),
    [
        ("1259-idle-usb.pcapng", {}, {}),
        ("1259-used-bluetooth.pcapng", {"link type 201, which is not supported": 1}, {}),
        ("717-sll-vlan.pcap", {}, {"EtherType 8100 after Linux cooked": 2}),
        ("qinq-8100-88a8.pcap", {}, {"EtherType 88A8 after a VLAN tag": 2}),
        ("qinq-88a8-88a8.pcap", {}, {"EtherType 88A8 after a VLAN tag": 2}),
        ("1928-ttag.pcap", {}, {"EtherType 8988 after Ethernet": 2}),
        ("wccp-gre.pcap", {}, {"EtherType 883E after a tunnel's header": 2}),
        ("77-radiotap-datapad.pcap", {}, {"a padded 802.11 header": 2}),
        ("nflog-be.pcap", {}, {}),
        ("849-null-ethertype.pcap", {}, {"an EtherType in a loopback header": 2}),
        ("107-origlen-zero.pcap", {}, {"an original length below what was captured": 2}),
        ("1710-caplen-gt-len.pcapng", {}, {"an original length below what was captured": 2}),
    ],
)
def test_the_dns_flow_is_found(name, skipped, beyond):
    reader, (flow,) = read(name)
    assert b.ends(flow) == DNS_ENDS
    assert (flow.payload_lengths, flow.orig_bytes, flow.resp_bytes) == ([30, -58], QUERY, ANSWER)
    assert (flow.orig_pkts, flow.resp_pkts, flow.orig_ip_bytes, flow.resp_ip_bytes) == (1, 1, 58, 86)
    assert (flow.conn_state, len(flow.heads)) == ("SF", 2)
    assert (reader.skipped, reader.beyond_zeek, reader.warning) == (skipped, beyond, None)


def test_ppp_with_its_protocol_in_one_byte():
    _, (flow,) = read("4810-pppoe-pfc.pcap")
    assert b.ends(flow) == HTTP_ENDS
    assert (flow.payload_lengths, flow.orig_bytes) == ([37, -43], REQUEST)
    assert (flow.orig_pkts, flow.resp_pkts, flow.orig_ip_bytes, flow.resp_ip_bytes) == (5, 3, 237, 163)


def test_subframes_are_padded_from_their_own_start():
    _, flows = read("422-amsdu.pcap")
    assert [flow.payload_lengths for flow in flows] == [[27], [28], [29], [30]]
    assert [flow.orig_p for flow in flows] == [40000, 40001, 40002, 40003]


@pytest.mark.parametrize(
    ("name", "large", "content", "ip_bytes"),
    [("bigtcp-v6-jumbo.pcap", 70_000, 118, 70_188), ("tso-v6-snap.pcap", 40_000, 126, 40_180)],
)
def test_segments_whose_length_is_not_in_the_ip_header(name, large, content, ip_bytes):
    _, (flow,) = read(name)
    assert b.ends(flow) == HTTP6_ENDS
    assert flow.payload_lengths == [37, -large]
    assert (flow.orig_pkts, flow.resp_pkts, flow.up, flow.down) == (5, 3, 1, 1)
    assert (flow.orig_ip_bytes, flow.resp_ip_bytes) == (337, ip_bytes)
    assert flow.resp_bytes.startswith(b"HTTP/1.1 200 OK\r\n")
    assert len(flow.resp_bytes) == content
    assert flow.conn_state == "SF"


@pytest.mark.parametrize(
    ("name", "lengths"), [("bigtcp-v4-full.pcap.gz", [37, -70_000]), ("hostile-bigtcp-70000-bytes.pcap.gz", [70_000])]
)
def test_segments_above_65535_bytes_are_written_as_they_are_read_back(name, lengths):
    _, (flow,) = read(name)
    assert flow.payload_lengths == lengths
    (line,) = feature_lines([flow], tokens=False)
    assert parse_flow(b.json_of(line)) == named(flow)
    tokens = encode([flow], Mm4flowFeatures()).ps_tokens.tolist()
    assert tokens[-2] == 1  # [UNK]: the models read lengths up to 1,500


def test_one_identification_serves_several_protocols():
    reader, flows = read("frag-same-id-protos.pcap")
    assert reader.beyond_zeek == {"fragments of one identification and several protocols": 1}
    assert sorted((flow.proto, *flow.payload_lengths) for flow in flows) == [("icmp", 2000), ("udp", 2000)]


def test_a_clock_that_steps_back_inside_a_flow():
    _, flows = read("clock-step-400s.pcap")
    states = sorted((flow.conn_state, flow.orig_pkts, flow.resp_pkts, flow.payload_lengths) for flow in flows)
    assert states == [("OTH", 1, 0, []), ("SF", 4, 3, [37, -43])]


def test_time_passes_with_packets_that_are_not_ip():
    reader, flows = read("hostile-non-ip-packet-an-hour-ahead.pcap")
    assert [flow.payload_lengths for flow in flows] == [[10], [10], [10]]
    assert reader.skipped == {"not IP": 1}


def test_without_an_ip_length_the_wire_says_it():
    _, (flow,) = read("hostile-ip-len0-snapped-tcp.pcap")
    assert (flow.payload_lengths, flow.orig_bytes, flow.orig_ip_bytes) == ([2946], b"x" * 40, 0)


def test_padding_is_no_payload():
    _, (flow,) = read("hostile-ip4-len20-udp.pcap")
    assert (flow.payload_lengths, flow.up, flow.orig_bytes, flow.orig_ip_bytes) == ([], 0, b"", 20)
    assert [len(head.data) for head in flow.heads] == [42]


def test_ipv6_without_a_length_fills_its_frame():
    _, (flow,) = read("hostile-ip6-len0-udp.pcap")
    assert (flow.payload_lengths, flow.orig_bytes) == ([400], b"x" * 256)


def test_a_fragment_inside_a_reassembled_packet():
    _, (flow,) = read("hostile-two-fragment-headers.pcap")
    assert b.ends(flow) == ("2001:db8::1", 128, "2001:db8::2", 129, "icmp")
    assert flow.payload_lengths == [64]


def test_the_head_of_an_atomic_fragment_ends_with_its_fragment_header():
    _, (flow,) = read("hostile-atomic-fragment-tcp-head.pcap")
    assert [len(head.data) for head in flow.heads] == [74, 74, 74, 62, 74, 74, 8]
    assert (flow.payload_lengths, flow.orig_bytes) == ([18], b"GET / HTTP/1.0\r\n\r\n")


def test_a_tcp_header_beyond_its_packet_ends_with_it():
    _, (flow,) = read("hostile-tcp-header-beyond-ip.pcap")
    assert [len(head.data) for head in flow.heads] == [54]
    assert flow.payload_lengths == []


def test_a_tcp_header_below_20_bytes_counts_as_it_says():
    _, flows = read("hostile-tcp-header-12-bytes-mutated.pcap")
    (flow,) = (flow for flow in flows if flow.orig_h == "192.168.1.100")
    assert sorted({*flow.payload_lengths}) == [35, 43, 55]
    assert flow.payload_lengths.count(43) == 1


def test_one_packet_with_syn_and_rst():
    _, (flow,) = read("hostile-syn-rst.pcap")
    assert (flow.conn_state, flow.orig_pkts, flow.payload_lengths) == ("OTH", 1, [])


def test_loopback_in_big_endian_order_is_beyond_zeek():
    reader, flows = read("hostile-zeek-loopback-big-endian.pcap")
    assert len(flows) == 8
    assert flows[0].payload_lengths[:6] == [77, -108, 180, -334, 196, -213]
    assert reader.beyond_zeek == {"a loopback header in big-endian order": 144}


@pytest.mark.parametrize("path", sorted(ODD.glob("*.pcap*")), ids=lambda path: path.name)
def test_what_is_read_is_a_flow_by_the_record_s_own_rules(path):
    flows = list(CaptureReader(path, b.ReadOptions(heads="full")))
    assert flows
    for flow, line in zip(flows, feature_lines(flows, tokens=False), strict=True):
        assert parse_flow(b.json_of(line)) == named(flow)
