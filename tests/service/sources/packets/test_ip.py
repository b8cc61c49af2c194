"""IP: extension headers, fragments, offload, cut headers, and tunnels with their inner and outer flows."""

import struct
from itertools import pairwise

import pytest

from tests.service.sources import builders as b

HOP_BY_HOP = bytes([17, 0]) + bytes(6)
DATAGRAM = b.udp(4000, 7000, b"payload")
SECRET = bytes([192, 168, 0, 1]), bytes([192, 168, 0, 2])
INNER = b.ipv4(17, b.udp(4000, 7000, b"payload"), *SECRET)
INNER6 = b.ipv6(17, b.udp(4000, 7000, b"payload"))


def only(frames, **options):
    (flow,) = b.flows_of(frames, **options)
    return flow


def test_extension_headers_are_no_payload():
    flow = only([b.ethernet(b.ipv6(0, HOP_BY_HOP + DATAGRAM))], heads="header")
    assert b.ends(flow) == ("2001:db8::1", 4000, "2001:db8::2", 7000, "udp")
    assert flow.payload_lengths == [7]
    assert flow.orig_ip_bytes == 40 + 8 + 15
    assert len(flow.heads[0].data) == 14 + 40 + 8 + 8


def test_chain_of_extension_headers():
    options = bytes([51, 1]) + bytes(14)
    authentication = bytes([17, 2]) + bytes(14)
    flow = only([b.ethernet(b.ipv6(60, options + authentication + DATAGRAM))])
    assert flow.payload_lengths == [7]


def test_routing_header_gives_the_final_destination():
    final = bytes.fromhex("20010db80000000000000000000000ff")
    routing = bytes([17, 2, 0, 1]) + bytes(4) + final
    flow = only([b.ethernet(b.ipv6(43, routing + DATAGRAM))])
    assert flow.resp_h == "2001:db8::ff"


def test_home_address_option_gives_the_source():
    home = bytes.fromhex("20010db80000000000000000000000aa")
    options = bytes([17, 2, 1, 2, 0, 0, 201, 16]) + home
    flow = only([b.ethernet(b.ipv6(60, options + DATAGRAM))])
    assert flow.orig_h == "2001:db8::aa"


@pytest.mark.parametrize("protocol", [50, 59, 135])
def test_ipv6_without_readable_transport_is_no_flow(protocol):
    assert b.flows_of([b.ethernet(b.ipv6(protocol, bytes([59, 0]) + bytes(30)))]) == []


def fragments(payload, *cuts, identifier=9):
    edges = [0, *cuts, len(payload)]
    return [
        b.ethernet(
            b.ipv4(
                17,
                payload[start:end],
                fragment=(0x2000 if end < len(payload) else 0) | start // 8,
                identifier=identifier,
            )
        )
        for start, end in pairwise(edges)
    ]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0), (0, 1, 1, 2)])
def test_fragments_make_one_packet_in_any_order(order):
    payload = b.udp(4000, 7000, bytes(range(100)))
    parts = fragments(payload, 40, 80)
    flow = only([parts[n] for n in order], heads="header")
    assert flow.payload_lengths == [100]
    assert flow.orig_bytes == bytes(range(100))
    assert flow.orig_ip_bytes == 128
    assert flow.orig_pkts == 1
    assert len(flow.heads[0].data) == 34  # of the frame that completed it: no transport header there


def test_overlapping_fragments_keep_what_came_first():
    payload = b.udp(4000, 7000, b"a" * 40)
    first, second = fragments(payload, 24)
    other = b.ethernet(b.ipv4(17, payload[:16] + b"zzzzzzzzZZZZZZZZ", fragment=0x2000, identifier=9))
    flow = only([first, other, second])
    assert flow.orig_bytes == b"a" * 16 + b"Z" * 8 + b"a" * 16  # of the second, only what the first did not have


def test_fragments_of_other_datagrams_and_incomplete_ones():
    payload = b.udp(4000, 7000, bytes(64))
    assert b.flows_of([fragments(payload, 40, identifier=1)[0], fragments(payload, 40, identifier=2)[1]]) == []


def test_fragments_wait_five_minutes():
    first, second = fragments(b.udp(4000, 7000, bytes(64)), 40)
    assert len(b.read(b.pcap([b.Packet(0, first), b.Packet(299, second)]))) == 1
    assert b.read(b.pcap([b.Packet(0, first), b.Packet(301, second)])) == []


def test_ipv6_fragments():
    payload = b.udp(4000, 7000, bytes(range(100)))
    parts = [
        b.ethernet(b.ipv6(44, struct.pack(">BBHI", 17, 0, start | (1 if end < 108 else 0), 77) + payload[start:end]))
        for start, end in ((0, 48), (48, 108))
    ]
    flow = only(parts)
    assert flow.payload_lengths == [100]
    assert flow.orig_ip_bytes == 148


def test_first_fragment_cut_by_the_snap_length_still_counts():
    whole = b.ethernet(b.ipv4(17, b.udp(4000, 7000, bytes(200)), fragment=0x2000))
    (flow,) = b.read(b.pcap([b.Packet(0, whole[:80], len(whole))]))
    assert flow.payload_lengths == [200]


def test_ip_length_of_zero_means_what_was_captured():
    segment = b.tcp(4000, 8999, b.ACK | b.PSH, 1, 1, bytes(3000))
    flow = only([b.ethernet(b.ipv4(6, segment, total=0))])
    assert flow.payload_lengths == [3000]
    assert flow.orig_ip_bytes == 0


def test_payload_length_is_the_headers_not_the_captures():
    whole = b.ethernet(b.ipv4(6, b.tcp(4000, 8999, b.ACK, 1, 1, bytes(1000))))
    (flow,) = b.read(b.pcap([b.Packet(0, whole[:70], len(whole))]))
    assert flow.payload_lengths == [1000]
    assert flow.orig_bytes == b""  # a segment that is not all there is not delivered


@pytest.mark.parametrize(
    "packet",
    [
        b.ipv4(17, DATAGRAM, total=200),
        b.ipv4(17, DATAGRAM, total=10),
        b"\x43" + b.ipv4(17, DATAGRAM)[1:],
        b"\x55" + b.ipv4(17, DATAGRAM)[1:],
        b.ipv4(17, DATAGRAM)[:19],
        b.ipv4(17, DATAGRAM[:7]),
        b.ipv4(6, b.tcp(1, 2, 2)[:19]),
        b.ipv4(1, b.icmp(8)[:7]),
        b.ipv6(17, DATAGRAM)[:39],
    ],
)
def test_impossible_headers_are_no_flows(packet):
    assert b.flows_of([b.ethernet(packet, 0x0800)]) == []


def test_other_protocols_are_flows_without_ports():
    flow = only([b.ethernet(b.ipv4(132, b"sctp packet")), b.ethernet(b.ipv4(132, b"answer", b.SERVER, b.CLIENT))])
    assert b.ends(flow) == ("10.0.0.1", 0, "10.0.0.2", 0, "132")
    assert flow.payload_lengths == [11, -6]
    assert (flow.orig_bytes, flow.resp_bytes) == (b"", b"")


def gre(kind, body, flags=0, extra=b""):
    return struct.pack(">HH", flags, kind) + extra + body


ETHERNET = b.MACS + b"\x08\0" + INNER
IN_IP = {
    "ip in ip": b.ipv4(4, INNER),
    "ip in ipv6": b.ipv6(4, INNER),
    "gre": b.ipv4(47, gre(0x0800, INNER)),
    "gre with key and sequence": b.ipv4(47, gre(0x0800, INNER, 0x3000, bytes(8))),
    "gre with ethernet": b.ipv4(47, gre(0x6558, ETHERNET)),
    "pptp": b.ipv4(47, gre(0x880B, b"\xff\x03\0\x21" + INNER, 0x3081, bytes(12))),
    "erspan": b.ipv4(47, gre(0x88BE, ETHERNET)),
    "erspan 2": b.ipv4(47, gre(0x88BE, bytes(8) + ETHERNET, 0x1000, bytes(4))),
    "erspan 3": b.ipv4(47, gre(0x22EB, bytes(12) + ETHERNET, 0x1000, bytes(4))),
    "two deep": b.ipv4(4, b.ipv4(4, INNER)),
}


@pytest.mark.parametrize("name", IN_IP)
def test_tunnels_in_ip_have_only_the_inner_flow(name):
    frame = b.ethernet(IN_IP[name])
    flow = only([frame], heads="header")
    assert b.ends(flow) == ("192.168.0.1", 4000, "192.168.0.2", 7000, "udp")
    assert flow.payload_lengths == [7]
    assert flow.heads[0].data == frame[:-7]  # the whole packet, from the outer link layer on


def test_ipv6_in_ipv4():
    assert only([b.ethernet(b.ipv4(41, INNER6))]).orig_h == "2001:db8::1"


def test_tunnels_deeper_than_four_are_given_up():
    packet = INNER
    for depth in range(1, 6):
        packet = b.ipv4(4, packet)
        assert len(b.flows_of([b.ethernet(packet)])) == (1 if depth <= 4 else 0)


@pytest.mark.parametrize(
    "body", [gre(0x0800, INNER, 2), gre(0x0800, INNER, 0x4000), gre(0x0801, INNER, 1), b"\0\0\x08"]
)
def test_damaged_gre_is_no_flow(body):
    assert b.flows_of([b.ethernet(b.ipv4(47, body))]) == []


TEREDO = bytes.fromhex("20010000000000000000000000000001")
IN_UDP = {
    "vxlan": (4789, b"\x08" + bytes(7) + ETHERNET, "192.168.0.1"),
    "geneve": (6081, b"\0\0\x65\x58" + bytes(4) + ETHERNET, "192.168.0.1"),
    "geneve with options and ip": (6081, b"\x02\0\x86\xdd" + bytes(12) + INNER6, "2001:db8::1"),
    "gtp": (2152, b"\x30\xff" + struct.pack(">HI", len(INNER), 1) + INNER, "192.168.0.1"),
    "gtp with extension": (2152, b"\x34\xff" + bytes(6) + b"\0\0\0\x85" + b"\1\0\0\0" + INNER, "192.168.0.1"),
    "teredo": (3544, INNER6, "2001:db8::1"),
    "teredo with headers": (3544, b"\0\1\0\0" + bytes(9) + bytes(8) + INNER6, "2001:db8::1"),
    "teredo on another port": (9999, b.ipv6(17, DATAGRAM, TEREDO), "2001::1"),
    "teredo with origin on another port": (9999, bytes(8) + INNER6, "2001:db8::1"),
    "ayiya": (5072, b"\x40\x52\x11\x29" + bytes(4 + 16 + 20) + INNER6, "2001:db8::1"),
    "gre in udp": (4754, gre(0x0800, INNER), "192.168.0.1"),
}


@pytest.mark.parametrize("name", IN_UDP)
def test_tunnels_in_udp_have_the_outer_flow_too(name):
    port, payload, inner_host = IN_UDP[name]
    frame = b.ethernet(b.ipv4(17, b.udp(40000, port, payload)))
    outer, inner = b.flows_of([frame], heads="header")
    assert b.ends(outer) == ("10.0.0.1", 40000, "10.0.0.2", port, "udp")
    assert outer.payload_lengths == [len(payload)]
    assert b.ends(inner)[0::2] == (inner_host, b.ends(inner)[2], "udp")
    assert inner.payload_lengths == [7]
    assert inner.orig_bytes == b"payload"
    assert inner.heads[0].data == frame[:-7]


@pytest.mark.parametrize(
    ("port", "payload"), [(4789, bytes(40)), (3544, b"\x60" + bytes(50)), (6081, b"\x3f" + bytes(9))]
)
def test_flow_that_contradicts_its_tunnel_is_not_one(port, payload):
    tunnel = IN_UDP[{4789: "vxlan", 3544: "teredo", 6081: "geneve"}[port]][1]
    frames = [b.ethernet(b.ipv4(17, b.udp(40000, port, data))) for data in (payload, tunnel)]
    assert len(b.flows_of(frames)) == 1


def test_stun_and_other_traffic_is_no_teredo():
    stun = b"\0\1\0\x58\x21\x12\xa4\x42" + bytes(88)
    assert len(b.flows_of([b.ethernet(b.ipv4(17, b.udp(40000, 3478, stun)))])) == 1
