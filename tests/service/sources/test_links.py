"""Link layers: the same datagram is found under each of them."""

import struct

import pytest

from service.sources.capture import CaptureError
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
