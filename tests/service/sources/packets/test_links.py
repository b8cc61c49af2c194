"""Link layers: the same datagram is found under each of them."""

import io
import struct

import pytest

from tapline.service.sources.capture import CaptureError, CaptureReader
from tests.service.sources import builders as b

IP = b.ipv4(17, b.udp(4000, 7000, b"payload"))
IP6 = b.ipv6(17, b.udp(4000, 7000, b"payload"))
SNAP = b"\xaa\xaa\x03\0\0\0\x08\0"
DATA_FRAME = b"\x08\x00\0\0" + bytes(18) + b"\0\0"
QOS_FRAME = b"\x88\x00\0\0" + bytes(18) + b"\0\0" + b"\0\0"


def tag(ethertype, body):
    return struct.pack(">HH", 5, ethertype) + body


def subframe(body):
    return bytes(12) + struct.pack(">H", len(body)) + body


FRAMES = {
    "ethernet": (1, b.ethernet(IP)),
    "padded ethernet": (1, b.ethernet(IP) + bytes(30)),
    "vlan": (1, b.ethernet(tag(0x0800, IP), 0x8100)),
    "vlan 0x9100": (1, b.ethernet(tag(0x0800, IP), 0x9100)),
    "qinq": (1, b.ethernet(tag(0x8100, tag(0x0800, IP)), 0x88A8)),
    "three tags": (1, b.ethernet(tag(0x8100, tag(0x8100, tag(0x0800, IP))), 0x88A8)),
    "mpls": (1, b.ethernet(bytes.fromhex("0000004000000140") + IP, 0x8847)),
    "mpls in vlan": (1, b.ethernet(tag(0x8847, bytes.fromhex("00000140") + IP), 0x8100)),
    "pppoe": (1, b.ethernet(b"\x11\0\0\1" + struct.pack(">HH", len(IP) + 2, 0x21) + IP, 0x8864)),
    "vntag and vlan": (1, b.ethernet(bytes(4) + b"\x81\0" + tag(0x0800, IP), 0x8926)),
    "provider backbone": (1, b.ethernet(bytes(4) + b.ethernet(IP), 0x88E7)),
    "fabric path": (1, b.MACS + b"\x89\x03" + b"\0\0" + b.ethernet(IP)),
    "snap": (1, b.MACS + struct.pack(">H", 8 + len(IP)) + SNAP + IP),
    "bsd loopback": (0, struct.pack("<I", 2) + IP),
    "bsd loopback, big-endian": (108, struct.pack(">I", 2) + IP),
    "bsd loopback, ipv6": (0, struct.pack("<I", 30) + IP6),
    "ppp": (9, b"\0\x21" + IP),
    "ppp in hdlc": (9, b"\xff\x03\0\x21" + IP),
    "ppp with mpls": (9, b"\x02\x81" + bytes.fromhex("00000140") + IP),
    "ppp serial": (50, b"\x0f\0\0\x21" + IP),
    "pppoe link": (51, b"\x11\0\0\1" + struct.pack(">HH", len(IP6) + 2, 0x57) + IP6),
    "fddi": (10, bytes(21) + IP),
    "raw": (101, IP),
    "raw 12": (12, IP6),
    "raw 14": (14, IP),
    "raw ipv4": (228, IP),
    "raw ipv6": (229, IP6),
    "cooked": (113, bytes(14) + b"\x08\0" + IP),
    "cooked v2": (276, b"\x86\xdd" + bytes(18) + IP6),
    "802.11": (105, DATA_FRAME + SNAP + IP),
    "802.11 with four addresses": (105, b"\x08\x03" + bytes(28) + SNAP + IP),
    "802.11 with qos": (105, QOS_FRAME + SNAP + IP),
    "radiotap": (127, b"\0\0\x08\0" + bytes(4) + DATA_FRAME + SNAP + IP),
    "nflog": (239, b"\x02\0\0\0" + b"\x05\0\x0a\0a\0\0\0" + struct.pack("<HH", 4 + len(IP), 9) + IP),
}
LINK_BYTES = {1: 3, 113: 9, 276: 20, 0: 1, 108: 1, 101: 21, 14: 21, 228: 21, 12: 6, 229: 6}


def cooked(ethertype, body):
    return bytes(14) + struct.pack(">H", ethertype) + body


def cooked_2(ethertype, body):
    return struct.pack(">H", ethertype) + bytes(18) + body


def snap(ethertype, body):
    return b"\xaa\xaa\x03\0\0\0" + struct.pack(">H", ethertype) + body


def pppoe(session):
    return b"\x11\0\0\1" + struct.pack(">H", len(session)) + session


def gre(ethertype, body, *between):
    return b.ethernet(b.ipv4(47, struct.pack(">HH", 0, ethertype) + b"".join(between) + body))


def vxlan(frame):
    return b.ethernet(b.ipv4(17, b.udp(40000, 4789, b"\x08" + bytes(7) + frame)))


CARRIERS = {
    "ethernet": (1, lambda kind, body: b.ethernet(body, kind)),
    "cooked": (113, cooked),
    "cooked v2": (276, cooked_2),
    "802.11": (105, lambda kind, body: DATA_FRAME + snap(kind, body)),
    "802.3 with snap": (1, lambda kind, body: b.ethernet(snap(kind, body), 8 + len(body))),
    "loopback": (0, lambda kind, body: struct.pack(">I", kind) + body),
    "loopback, little-endian": (0, lambda kind, body: struct.pack("<I", kind) + body),
    "loopback of openbsd": (108, lambda kind, body: struct.pack(">I", kind) + body),
    "cisco hdlc": (104, lambda kind, body: struct.pack(">HH", 0x0F00, kind) + body),
    "ppp serial, cisco hdlc": (50, lambda kind, body: struct.pack(">HH", 0x8F00, kind) + body),
    "fddi": (10, lambda kind, body: bytes(13) + snap(kind, body)),
    "token ring": (6, lambda kind, body: bytes(14) + snap(kind, body)),
    "token ring with a route": (
        6,
        lambda kind, body: bytes(8) + b"\x80" + bytes(5) + b"\6" + bytes(5) + snap(kind, body),
    ),
    "gre": (1, gre),
    "ethernet in gre": (1, lambda kind, body: gre(0x6558, b.ethernet(body, kind))),
    "erspan": (1, lambda kind, body: gre(0x88BE, b.ethernet(body, kind))),
    "vxlan": (1, lambda kind, body: vxlan(b.ethernet(body, kind))),
    "geneve": (
        1,
        lambda kind, body: b.ethernet(
            b.ipv4(17, b.udp(40000, 6081, struct.pack(">HHI", 0, kind, 0) + body)),
        ),
    ),
    "ethernet in mpls": (1, lambda kind, body: b.ethernet(b"\0\0\1\x40" + bytes(4) + b.ethernet(body, kind), 0x8847)),
    "provider backbone": (1, lambda kind, body: b.ethernet(bytes(4) + b.ethernet(body, kind), 0x88E7)),
    "pktap": (258, lambda kind, body: struct.pack("<III", 108, 1, 1) + bytes(96) + b.ethernet(body, kind)),
    "pktap, big-endian": (149, lambda kind, body: struct.pack(">III", 108, 1, 1) + bytes(96) + b.ethernet(body, kind)),
}
INSIDE = {
    "vlan": (0x8100, tag(0x0800, IP)),
    "qinq as 8100, 88a8": (0x8100, tag(0x88A8, tag(0x0800, IP))),
    "qinq as 88a8, 88a8": (0x88A8, tag(0x88A8, tag(0x0800, IP))),
    "qinq as 9100, 9200, 8100": (0x9100, tag(0x9200, tag(0x8100, tag(0x86DD, IP6)))),
    "cisco metadata": (0x8909, bytes.fromhex("01010001000a") + b"\x08\0" + IP),
    "cisco metadata in a vlan": (0x8100, tag(0x8909, bytes.fromhex("01010001000a") + b"\x86\xdd" + IP6)),
    "vlan in cisco metadata": (0x8909, bytes.fromhex("01010001000a") + b"\x81\0" + tag(0x0800, IP)),
    "cisco time tag": (0x8988, bytes(6) + b"\x08\0" + IP),
    "vn-tag": (0x8926, bytes(4) + b"\x08\0" + IP),
    "e-tag": (0x893F, bytes(6) + b"\x81\0" + tag(0x0800, IP)),
    "hsr": (0x892F, bytes(4) + b"\x08\0" + IP),
    "macsec without encryption": (0x88E5, bytes(6) + b"\x08\0" + IP + bytes(16)),
    "macsec with its channel": (0x88E5, b"\x20" + bytes(13) + b"\x08\0" + IP + bytes(16)),
    "mpls": (0x8847, bytes.fromhex("0000004000000140") + IP),
    "multicast mpls": (0x8848, bytes.fromhex("00000140") + IP6),
    "pppoe": (0x8864, pppoe(b"\0\x21" + IP)),
    "pppoe, protocol in one byte": (0x8864, pppoe(b"\x21" + IP)),
    "pppoe with address and control": (0x8864, pppoe(b"\xff\x03\x57" + IP6)),
    "pppoe with mpls": (0x8864, pppoe(b"\x02\x81" + bytes.fromhex("00000140") + IP)),
    "pppoe in a vlan": (0x8100, tag(0x8864, pppoe(b"\0\x57" + IP6))),
    "snap in a vlan": (0x8100, tag(8 + len(IP), SNAP + IP)),
    "wccp 2": (0x883E, b"\0\0\0\1" + IP),
    "wccp 1": (0x883E, IP),
    "nsh": (0x894F, b"\0\2\1\1\0\0\1\xff" + IP),
}


def is_payload(flow, frame):
    hosts = ("10.0.0.1", "10.0.0.2") if IP in frame else ("2001:db8::1", "2001:db8::2")
    return (
        b.ends(flow) == (hosts[0], 4000, hosts[1], 7000, "udp")
        and flow.payload_lengths == [7]
        and flow.orig_bytes == b"payload"
        and flow.heads[0].data == frame[: frame.index(b"payload")]
    )


@pytest.mark.parametrize("inside", INSIDE)
@pytest.mark.parametrize("carrier", CARRIERS)
def test_every_link_layer_follows_every_tag(carrier, inside):
    link, build = CARRIERS[carrier]
    frame = build(*INSIDE[inside])
    flows = b.flows_of([frame], link, heads="header")
    assert sorted(is_payload(flow, frame) for flow in flows) == [False] * (carrier in ("vxlan", "geneve")) + [True]


PPP = {
    "plain": b"\0\x21" + IP,
    "with address and control": b"\xff\x03\0\x21" + IP,
    "protocol in one byte": b"\x21" + IP,
    "both": b"\xff\x03\x57" + IP6,
    "with mpls": b"\xff\x03\x02\x81" + bytes.fromhex("00000140") + IP6,
}
PPP_CARRIERS = {
    "ppp": (9, lambda frame: frame),
    "ppp serial": (50, lambda frame: frame),
    "cisco hdlc or ppp": (104, lambda frame: frame),
    "ppp with direction": (204, lambda frame: b"\1" + frame),
    "pppoe link": (51, pppoe),
    "pppoe": (1, lambda frame: b.ethernet(pppoe(frame), 0x8864)),
    "pppoe in cooked": (113, lambda frame: cooked(0x8864, pppoe(frame))),
    "pppoe in a vlan in cooked v2": (276, lambda frame: cooked_2(0x8100, tag(0x8864, pppoe(frame)))),
    "cooked": (113, lambda frame: cooked(7, frame)),
    "pptp": (1, lambda frame: b.ethernet(b.ipv4(47, struct.pack(">HHHH", 0x3081, 0x880B, 0, 1) + bytes(8) + frame))),
    "ppp in gre": (1, lambda frame: gre(0x880B, frame)),
}


@pytest.mark.parametrize("form", PPP)
@pytest.mark.parametrize("carrier", PPP_CARRIERS)
def test_ppp_is_read_in_every_form_wherever_it_is(carrier, form):
    link, build = PPP_CARRIERS[carrier]
    frame = build(PPP[form])
    (flow,) = b.flows_of([frame], link, heads="header")
    assert is_payload(flow, frame)


def wifi(flags=0, qos=None, four=False, control=b"", pad=0, body=SNAP + IP):
    kind = 0x08 if qos is None else 0x88
    header = bytes((kind, flags | (3 if four else 0))) + bytes(22) + bytes(6 * four) + (qos or b"") + control
    return header + bytes(pad) + body


def radiotap(fields, flags, frame):
    """`fields`: what comes before the flags, by the lowest presence bit."""
    present = 2 | (1 if fields else 0)
    header = struct.pack("<I", present) + fields + bytes((flags,))
    return struct.pack("<BBH", 0, 0, 4 + len(header)) + header + frame


WIFI = {
    "ht control": (105, wifi(flags=0x80, qos=b"\0\0", control=bytes(4))),
    "order without qos is no ht control": (105, wifi(flags=0x80)),
    "four addresses, qos and ht control": (105, wifi(flags=0x80, qos=b"\0\0", four=True, control=bytes(4))),
    "radiotap, padded qos": (127, radiotap(b"", 0x20, wifi(qos=b"\0\0", pad=2))),
    "radiotap, padded four addresses": (127, radiotap(b"", 0x20, wifi(four=True, pad=2))),
    "radiotap, padded where nothing is missing": (127, radiotap(b"", 0x20, wifi())),
    "radiotap with time, padded": (127, radiotap(bytes(8), 0x20, wifi(qos=b"\0\0", pad=2))),
    "radiotap with checksum": (127, radiotap(b"", 0x10, wifi() + b"fcs!")),
    "two presence words": (
        127,
        struct.pack("<BBHIIB", 0, 0, 13, 0x80000002, 0, 0x20) + wifi(qos=b"\0\0", pad=2),
    ),
    "ppi": (192, struct.pack("<BBHI", 0, 0, 8, 105) + wifi()),
    "ppi, big-endian": (192, struct.pack(">BBHI", 0, 0, 8, 105) + wifi()),
    "ppi with ethernet": (192, struct.pack("<BBHI", 0, 0, 8, 1) + b.ethernet(tag(0x0800, IP), 0x88A8)),
    "ppi with checksum": (
        192,
        struct.pack("<BBHIHHQH", 0, 0, 32, 105, 2, 20, 0, 1) + bytes(10) + wifi() + b"fcs!",
    ),
    "prism": (119, struct.pack("<II", 0x44, 144) + bytes(136) + wifi()),
    "prism, big-endian": (119, struct.pack(">II", 0x44, 144) + bytes(136) + wifi()),
    "avs": (163, struct.pack(">II", 0x80211001, 64) + bytes(56) + wifi()),
    "ip in llc": (105, wifi(body=b"\x06\x06\x03" + IP)),
    "protected, but not encrypted": (105, wifi(flags=0x40, qos=b"\0\0")),
}


@pytest.mark.parametrize("name", WIFI)
def test_wifi_headers_with_everything_that_may_be_in_them(name):
    link, frame = WIFI[name]
    (flow,) = b.flows_of([frame], link, heads="header")
    assert is_payload(flow, frame)


@pytest.mark.parametrize("sizes", [(1, 2, 3, 4), (4, 4, 4), (9, 9), (2, 1)])
def test_subframes_of_every_length_are_found(sizes):
    parts = []
    for number, size in enumerate(sizes):
        body = SNAP + b.ipv4(17, b.udp(4000 + number, 7000, bytes(size)))
        part = subframe(body)
        parts.append(part + bytes(-len(part) % 4 if number < len(sizes) - 1 else 0))
    frame = wifi(qos=b"\x80\0", body=b"".join(parts))
    assert [flow.payload_lengths for flow in b.flows_of([frame], 105)] == [[size] for size in sizes]


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("before", [b"", b"abc", bytes(8)])
def test_nflog_of_either_byte_order(order, before):
    attribute = struct.pack(order + "HH", 4 + len(before), 10) + before + bytes(-len(before) % 4)
    frame = b"\x0a\0\0\0" + attribute + struct.pack(order + "HH", 4 + len(IP6), 9) + IP6
    (flow,) = b.flows_of([frame], 239, heads="header")
    assert is_payload(flow, frame)


@pytest.mark.parametrize(
    ("link", "frame"),
    [
        (109, struct.pack("<III", 2, 0, 0) + IP),
        (109, struct.pack(">III", 24, 0, 0) + IP6),
        (117, b"\x3d\x02" + bytes(62) + IP),
        (122, bytes(16) + SNAP + IP),
        (138, bytes(16) + b"\x08\0" + IP),
        (166, b"\0\x03\0\x21" + IP),
        (100, SNAP + IP),
        (0, b"\xff\x03\0\x21" + IP),
    ],
)
def test_rarer_link_layers(link, frame):
    (flow,) = b.flows_of([frame], link, heads="header")
    assert is_payload(flow, frame)


@pytest.mark.parametrize(
    "layer",
    [
        lambda inner: tag(8 + len(inner), SNAP[:6] + b"\x81\0" + inner),
        lambda inner: tag(0x88E7, bytes(4) + b.ethernet(inner, 0x8100)),
        lambda inner: tag(0x8864, pppoe(b"\x02\x81\0\0\1\x40" + bytes(4) + b.ethernet(inner, 0x8100))),
    ],
)
def test_headers_nested_without_end_are_given_up(layer):
    inner = tag(0x0800, IP)
    for _ in range(300):
        inner = layer(inner)[:60_000]
    reader = CaptureReader(io.BytesIO(b.pcap([b.Packet(0, b.ethernet(inner, 0x8100)), b.Packet(1, b.ethernet(IP))])))
    (flow,) = reader
    assert flow.payload_lengths == [7]
    assert sum(reader.skipped.values()) == 1


def test_a_packet_inside_ppi_inside_ppi_without_end_is_given_up():
    frame = struct.pack("<BBHI", 0, 0, 8, 192) * 5_000 + IP
    reader = CaptureReader(io.BytesIO(b.pcap([b.Packet(0, frame)], 192)))
    assert list(reader) == []
    assert reader.skipped == {"link headers nested too deep": 1}


@pytest.mark.parametrize("name", FRAMES)
def test_datagram_is_found(name):
    link, frame = FRAMES[name]
    (flow,) = b.flows_of([frame], link, heads="header")
    hosts = ("10.0.0.1", "10.0.0.2") if IP in frame else ("2001:db8::1", "2001:db8::2")
    assert b.ends(flow) == (hosts[0], 4000, hosts[1], 7000, "udp")
    assert (flow.payload_lengths, flow.orig_bytes) == ([7], b"payload")
    assert flow.link_type == LINK_BYTES.get(link, 0)
    assert flow.heads[0].data == frame[: frame.index(b"payload")]


def test_aggregated_wifi_frame_holds_several_packets():
    other = b.ipv4(17, b.udp(4001, 7000, b"other"))
    first, second = subframe(SNAP + IP), subframe(SNAP + other)
    aggregate = b"\x88\x00\0\0" + bytes(18) + b"\0\0" + b"\x80\0" + first + bytes(len(SNAP + IP) % 4) + second
    flows = b.flows_of([aggregate], 105)
    assert [flow.orig_bytes for flow in flows] == [b"payload", b"other"]


@pytest.mark.parametrize(
    "frame",
    [
        b.ethernet(IP)[:15],
        b.ethernet(tag(0x0800, IP), 0x8100)[:18],
        b.ethernet(bytes(8), 0x8847),
        b.ethernet(b"\x11\0\0\1\0\x20", 0x8864),
        b.MACS + b"\x05\xdc" + bytes(60),
        b.MACS + b"\x05\xdd" + bytes(60),
        b.ethernet(bytes(40), 0x0806),
    ],
)
def test_cut_or_foreign_frames_are_no_flows(frame):
    assert b.flows_of([frame]) == []


@pytest.mark.parametrize("frame", [b"\x48\x00" + bytes(60), b"\x80\x00" + bytes(60), b"\x88\x40" + bytes(60)])
def test_wifi_frames_without_readable_data_are_no_flows(frame):
    assert b.flows_of([frame], 105) == []


def test_unknown_link_type_is_refused():
    with pytest.raises(CaptureError, match="link type 147 is not supported"):
        b.flows_of([bytes(60)], 147)


def test_unknown_link_type_without_packets_is_no_harm():
    assert b.read(b.pcap([], link=147)) == []
