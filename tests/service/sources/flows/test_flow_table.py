"""Flows of UDP, ICMP and other protocols: direction, pairing, lifetimes, and time itself."""

import pytest

from tapline.service.sources.flows import flow_table
from tests.service.sources import builders as b

QUERY = b"\x12\x34\x01\x00\0\1\0\0\0\0\0\0\1a\0\0\1\0\1"
ANSWER = b"\x12\x34\x81\x80\0\1\0\0\0\0\0\0\1a\0\0\1\0\1"


def datagram(at, source_port, target_port, payload=b"x", back=False, source=b.CLIENT, target=b.SERVER):
    source, target = (target, source) if back else (source, target)
    return b.Packet(at, b.ethernet(b.ipv4(17, b.udp(source_port, target_port, payload), source, target)))


def flows(*packets):
    return b.by_start(b.read(b.pcap(packets)))


@pytest.mark.parametrize(("wait", "count"), [(59.9, 1), (60.0, 2)])
def test_udp_flow_ends_after_a_minute(wait, count):
    assert len(flows(datagram(0, 4000, 7000), datagram(wait, 7000, 4000, back=True))) == count


def test_each_packet_prolongs_a_flow():
    assert len(flows(*(datagram(50 * n, 4000, 7000) for n in range(5)))) == 1


def test_udp_originator_is_the_first_sender():
    (flow,) = flows(datagram(0, 7000, 4000, b"abc", back=True), datagram(1, 4000, 7000, b"de"))
    assert b.ends(flow) == ("10.0.0.2", 7000, "10.0.0.1", 4000, "udp")
    assert flow.payload_lengths == [3, -2]


def test_udp_from_a_server_port_is_an_answer():
    (flow,) = flows(datagram(0, 161, 4000, b"abc", back=True))
    assert b.ends(flow) == ("10.0.0.1", 4000, "10.0.0.2", 161, "udp")
    assert flow.payload_lengths == [-3]
    assert flow.conn_state == "SHR"


def test_udp_to_everyone_is_not_turned():
    (flow,) = flows(datagram(0, 67, 68, b"offer", target=b"\xff\xff\xff\xff"))
    assert flow.orig_p == 67


def test_dns_answer_first_turns_the_flow_with_what_it_has():
    (flow,) = flows(datagram(0, 53, 53, ANSWER), datagram(1, 53, 53, QUERY, back=True))
    assert b.ends(flow)[0] == "10.0.0.2"
    assert flow.payload_lengths == [-len(ANSWER), len(QUERY)]
    assert (flow.orig_bytes, flow.resp_bytes) == (QUERY, ANSWER)


def test_dns_announcement_is_not_turned():
    (flow,) = flows(datagram(0, 5353, 5353, ANSWER, target=bytes([224, 0, 0, 251])))
    assert flow.orig_h == "10.0.0.1"


def test_dns_flow_ends_when_silent_at_its_ten_second_look():
    assert len(flows(datagram(0, 4000, 53, QUERY), datagram(9.9, 4000, 53, QUERY))) == 1
    assert len(flows(datagram(0, 4000, 53, QUERY), datagram(10.1, 4000, 53, QUERY))) == 2
    assert len(flows(datagram(0, 4000, 53, QUERY), datagram(5, 4000, 53, QUERY), datagram(13.9, 4000, 53, QUERY))) == 1


def test_dns_look_happens_at_any_packet():
    arp = b.Packet(12, b.ethernet(bytes(40), 0x0806))
    talk = [datagram(0, 4000, 53, QUERY), datagram(3.5, 4000, 53, QUERY)]
    assert len(flows(*talk, arp, datagram(21, 4000, 53, QUERY))) == 1  # looked at 12, and at 22 next
    assert len(flows(*talk, datagram(21, 4000, 53, QUERY))) == 2  # looked at only at 21


def test_ntp_mode_tells_the_server():
    (flow,) = flows(datagram(0, 123, 123, b"\x24" + bytes(47)), datagram(1, 123, 123, b"\x23" + bytes(47), back=True))
    assert b.ends(flow)[0] == "10.0.0.2"
    assert flow.payload_lengths == [-48, 48]


@pytest.mark.parametrize(
    ("protocol", "request_type", "reply_type"), [(1, 8, 0), (1, 13, 14), (1, 17, 18), (58, 128, 129), (58, 135, 136)]
)
def test_icmp_request_and_reply_are_one_flow(protocol, request_type, reply_type):
    ip = (b.ipv4, b.CLIENT, b.SERVER) if protocol == 1 else (b.ipv6, b.CLIENT6, b.SERVER6)
    request = b.ethernet(ip[0](protocol, b.icmp(request_type, payload=b"ping"), ip[1], ip[2]))
    reply = b.ethernet(ip[0](protocol, b.icmp(reply_type, payload=b"pong!"), ip[2], ip[1]))
    (flow,) = b.flows_of([request, reply])
    assert b.ends(flow)[1::2] == (request_type, reply_type)
    assert flow.proto == "icmp"
    assert flow.payload_lengths == [4, -5]
    assert flow.orig_bytes == b""


def test_icmp_errors_are_one_way_and_have_the_code_as_port():
    there = b.ethernet(b.ipv4(1, b.icmp(3, 1, bytes(28))))
    back = b.ethernet(b.ipv4(1, b.icmp(3, 1, bytes(28)), b.SERVER, b.CLIENT))
    assert [b.ends(flow) for flow in b.flows_of([there, back, there])] == [
        ("10.0.0.1", 3, "10.0.0.2", 1, "icmp"),
        ("10.0.0.2", 3, "10.0.0.1", 1, "icmp"),
    ]


def test_vlans_do_not_separate_flows():
    frames = [b.ethernet(number + b"\x08\0" + b.ipv4(17, b.udp(1, 2, b"x")), 0x8100) for number in (b"\0\1", b"\0\2")]
    (flow,) = b.flows_of(frames)
    assert flow.payload_lengths == [1, 1]


def test_udp_datagrams_are_joined():
    (flow,) = flows(datagram(0, 4000, 7000, bytes(200)), datagram(1, 4000, 7000, b"x" * 200))
    assert flow.orig_bytes == bytes(200) + b"x" * 56
    assert flow.payload_lengths == [200, 200]


def test_packets_without_payload_count_but_have_no_length():
    (flow,) = flows(datagram(0, 4000, 7000, b""), datagram(1, 4000, 7000, b"x"))
    assert (flow.orig_pkts, flow.up, flow.payload_lengths) == (2, 1, [1])


def test_time_never_goes_back():
    packets = [datagram(0, 1, 2), datagram(1000, 3, 4), datagram(0.5, 5, 6), datagram(0.6, 5, 6)]
    assert [flow.orig_p for flow in flows(*packets)] == [1, 5, 5, 3]  # each packet of the past is late at once


def test_flows_come_out_when_they_end():
    packets = [datagram(0, 1, 2), datagram(1, 3, 4), datagram(30, 1, 2), datagram(70, 5, 6), datagram(100, 7, 8)]
    assert [flow.orig_p for flow in b.read(b.pcap(packets))] == [3, 1, 5, 7]


def test_flow_nearest_to_its_end_makes_room(monkeypatch):
    monkeypatch.setattr(flow_table, "MAX_LIVE_FLOWS", 3)
    packets = [datagram(0, 1, 2), datagram(1, 3, 4), datagram(2, 5, 6), datagram(3, 1, 2), datagram(4, 7, 8)]
    assert [flow.orig_p for flow in b.read(b.pcap(packets))] == [3, 1, 5, 7]


def test_a_clock_that_steps_back_ends_no_flow_before_its_timer():
    """As in Zeek: a flow's silence is looked at when its timer fires, and time itself does not go back."""
    packets = [datagram(0, 1, 2), datagram(50, 1, 2), datagram(-500, 1, 2), datagram(-499, 1, 2), datagram(59, 3, 4)]
    assert [(flow.orig_p, flow.orig_pkts) for flow in flows(*packets)] == [(1, 4), (3, 1)]


def test_a_clock_that_steps_back_ends_a_flow_when_its_timer_fires():
    packets = [datagram(0, 1, 2), datagram(-500, 1, 2), datagram(61, 3, 4), datagram(62, 1, 2)]
    assert [(flow.orig_p, flow.orig_pkts) for flow in flows(*packets)] == [(1, 2), (3, 1), (1, 1)]


@pytest.mark.parametrize(
    "other",
    [
        b.ethernet(bytes(46), 0x88CC),
        b.ethernet(bytes(46), 0x0806),
        b.ethernet(b.ipv4(17, bytes(24), fragment=0x2000)),
        bytes(10),
    ],
    ids=["lldp", "arp", "a fragment", "a cut frame"],
)
def test_time_passes_with_every_packet(other):
    packets = [datagram(0, 1, 2), b.Packet(3600, other), datagram(1, 1, 2), datagram(2, 1, 2)]
    assert [flow.orig_pkts for flow in flows(*packets)] == [1, 1, 1]
    packets[1] = b.Packet(0.5, other)
    assert [flow.orig_pkts for flow in flows(*packets)] == [3]
