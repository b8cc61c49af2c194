"""Tracegram's tokens: literal ones of packets built by hand, and properties over real captures."""

import struct

import msgspec
import numpy as np
import pytest

from tapline.models.flow import Flow, PacketHead
from tapline.models.packet_tokens import (
    CLASS,
    END,
    PACKET_START,
    PADDING,
    TracegramFeatures,
    encode_packets,
    pad_packets,
)
from tapline.service.sources.capture import ReadOptions, read_capture
from tests.paths import DATA

CAPTURES = DATA / "captures"
MAC_A, MAC_B = bytes.fromhex("b0c554aabbcc"), bytes.fromhex("0202030405f6")
IP_A, IP_B = bytes((192, 168, 2, 16)), bytes((192, 168, 2, 1))
SIX_A, SIX_B = bytes.fromhex("fe80000000000000b2c554fffeaabbcc"), bytes.fromhex("20010db8000000000000000000000001")
ETHERNET = MAC_B + MAC_A + b"\x08\x00"
UDP = struct.pack("!HHHH", 5353, 1900, 12, 0xABCD)
TCP = struct.pack("!HHIIBBHHH", 1024, 80, 7, 9, 6 << 4, 24, 512, 0xABCD, 0) + b"\x01\x01\x01\x00"


def ipv4(protocol, body, source=IP_A, target=IP_B):
    return struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 3, 0, 64, protocol, 0x1234) + source + target + body


def flow_of(*packets, link_type=3, kind="full", **fields):
    given = {"orig_h": "192.168.2.16", "resp_h": "192.168.2.1", "orig_p": 5353, "resp_p": 1900, "proto": "udp"} | fields
    heads = [PacketHead(250_000 if index else 0, packet) for index, packet in enumerate(packets)]
    return Flow("F", 0, 0, link_type=link_type, heads_kind=kind, heads=heads, **given)


def head_bytes(flow, **features):
    """What is left of the bytes of a flow's only packet."""
    tokens = encode_packets([flow], TracegramFeatures(**features)).tokens
    assert tokens[:3].tolist() == [CLASS, PACKET_START, flow.link_type]
    assert tokens[-1] == END
    return bytes(tokens[11:-1].astype(np.uint8))


def test_tokens_by_hand():
    flow = flow_of(ETHERNET + ipv4(17, UDP + b"data"), ETHERNET + ipv4(17, UDP + b"more"))
    header = bytes(12) + b"\x08\x00" + ipv4(17, b"....data", bytes(4), bytes(4))[:20] + bytes(4) + b"\x00\x0c"
    header = header[:16] + b"\x00\x20" + header[18:24] + bytes(2) + header[26:]  # the IP length stays
    packet = [*header, 0, 0]
    expected = [259, 256, 3, 0, 0, 0, 0, 0, 0, 0, 0, *packet]
    expected += [256, 3, 0x3F, 0xD0, 0, 0, 0, 0, 0, 0, *packet, 257]  # 0.25 s
    batch = encode_packets([flow])
    assert batch.tokens.tolist() == expected
    assert batch.offsets.tolist() == [0, 106]
    assert encode_packets([flow], TracegramFeatures(max_tokens=60)).tokens.tolist() == [*expected[:59], 257]


def test_payload_and_padding_are_read_when_asked_for():
    flow = flow_of(ETHERNET + ipv4(17, UDP + b"data") + b"pad")
    assert head_bytes(flow, payload=True).endswith(b"\0\0datapad")
    assert len(head_bytes(flow)) == 42


def test_checksums_as_captured():
    kept = head_bytes(flow_of(ETHERNET + ipv4(17, UDP)), zero_checksums=False)
    assert (kept[24:26], kept[40:42]) == (b"\x12\x34", b"\xab\xcd")
    tcp = flow_of(ETHERNET + ipv4(6, TCP + b"GET"), proto="tcp")
    assert head_bytes(tcp, zero_checksums=False)[50:52] == b"\xab\xcd"
    assert head_bytes(tcp)[34:] == bytes(4) + TCP[4:16] + bytes(2) + TCP[18:]


def test_links_and_versions():
    inside = struct.pack("!IHBB", 6 << 28, 20, 0, 64) + SIX_A + SIX_B
    inside += b"\x11\x00" + bytes(6) + UDP + b"data"  # hop-by-hop options first
    six = {"orig_h": "fe80::b2c5:54ff:feaa:bbcc", "resp_h": "2001:db8::1"}
    cleared = inside[:8] + bytes(32) + inside[40:48] + bytes(4) + b"\x00\x0c\x00\x00"
    for link_type, before, left in (
        (3, MAC_B + MAC_A + b"\x81\x00\x00\x05\x86\xdd", bytes(12) + b"\x81\x00\x00\x05\x86\xdd"),
        (9, b"\0\0\0\1\0\6" + MAC_A + b"\0\0\x86\xdd", b"\0\0\0\1\0\6" + bytes(8) + b"\x86\xdd"),
        (20, b"\x86\xdd" + bytes(8) + b"\0\6" + MAC_A + b"\0\0", b"\x86\xdd" + bytes(8) + b"\0\6" + bytes(8)),
        (6, b"", b""),
        (1, b"\0\0\0\x1e", b"\0\0\0\x1e"),
        (0, b"odd", b"odd"),
    ):
        assert head_bytes(flow_of(before + inside, link_type=link_type, **six)) == left + cleared, link_type


def test_the_flow_inside_a_tunnel_loses_its_addresses_too():
    inner = ipv4(17, UDP + b"data", bytes((10, 0, 0, 1)), bytes((10, 0, 0, 2)))
    flow = flow_of(ETHERNET + ipv4(47, b"\0\0\x08\x00" + inner), orig_h="10.0.0.1", resp_h="10.0.0.2")
    left = head_bytes(flow)
    assert len(left) == 14 + 20 + 4 + 28
    assert left[26:34] == left[50:58] == bytes(8)
    assert left[58:62] == bytes(4)


def test_flows_without_heads_and_cut_heads():
    flows = [flow_of(), flow_of(b""), flow_of(ETHERNET + ipv4(17, UDP)[:17]), flow_of(ETHERNET[:5])]
    for features in (TracegramFeatures(), TracegramFeatures(payload=True)):
        batch = encode_packets(flows, features)
        assert batch.tokens[:2].tolist() == [CLASS, END]
        assert not batch.tokens[batch.offsets[2] + 11 : batch.offsets[2] + 23].any()
    assert len(encode_packets([])) == 0
    padded = pad_packets(encode_packets(flows[:2]), np.array([1, 0]))
    assert padded.tolist() == [[259, 256, 3, 0, 0, 0, 0, 0, 0, 0, 0, 257], [259, 257] + [PADDING] * 10]


@pytest.mark.parametrize(
    "text",
    [
        MAC_A, b"\xb2\xc5\x54\xff\xfe\xaa\xbb\xcc", b"B0:C5:54:AA:BB:CC", b"b0-c5-54-aa-bb-cc", b"b0c5.54aa.bbcc",
        b"B0C554AABBCC", b"b2c5:54ff:feaa:bbcc", b"AAbbCC", IP_A, b"192.168.2.16", b"192-168-2-16",
        b"\x0216\x012\x03168\x03192", MAC_B,
    ],
)  # fmt: skip
def test_own_addresses_in_payloads(text):
    flow = flow_of(ETHERNET + ipv4(17, UDP + b"<" + text + b">"))
    assert head_bytes(flow, payload=True)[42:] == b"<" + bytes(len(text)) + b">"
    assert head_bytes(flow, payload=True, mask_addresses=False)[42:] == b"<" + text + b">"


@pytest.mark.parametrize("text", [b"192.168.2.161", b"1192.168.2.16", b"192.168.2.17", b"\xff" * 6])
def test_other_addresses_in_payloads_stay(text):
    flow = flow_of(ETHERNET + ipv4(17, UDP + b"<" + text + b">"))
    assert head_bytes(flow, payload=True)[42:] == b"<" + text + b">"


def test_addresses_of_ipv6_in_payloads():
    inside = struct.pack("!IHBB", 6 << 28, 60, 17, 64) + SIX_A + SIX_B + UDP
    texts = (b"2001:DB8::1", b"2001:0db8:0000:0000:0000:0000:0000:0001", SIX_A, MAC_A, b"2001:db8::12")
    for text in texts:
        flow = flow_of(inside + text, link_type=6, orig_h="fe80::b2c5:54ff:feaa:bbcc", resp_h="2001:db8::1")
        left = head_bytes(flow, payload=True)[48:]
        assert left == (text if text.endswith(b"12") else bytes(len(text)))


def test_dhcp_fields():
    message = bytearray(b"\x02\x01\x06\x00" + b"\x77" * 236)
    message[236:240] = b"\x63\x82\x53\x63"
    message += b"\x35\x01\x05\x00\x32\x04\x77\x77\x77\x77\x36\x04\x77\x77\x77\x77\x0c\x02hi\x3d\x03\x77\x77\x77\xff"
    flow = flow_of(ETHERNET + ipv4(17, UDP + message), orig_p=68, resp_p=67, orig_h="0.0.0.0", resp_h="255.255.255.255")
    left = head_bytes(flow, payload=True)[42:]
    expected = bytearray(message)
    expected[12:20] = bytes(8)
    expected[28:44] = bytes(16)
    expected[240:] = (
        b"\x35\x01\x05\x00\x32\x04" + bytes(4) + b"\x36\x04" + bytes(4) + b"\x0c\x02hi\x3d\x03" + bytes(3) + b"\xff"
    )
    assert left == expected


def all_flows(heads):
    """Flows of every capture that the tests have, by capture."""
    found = {}
    for path in sorted(CAPTURES.rglob("*")):
        if path.is_file() and path.suffix != ".md":
            try:
                found[path.name] = list(read_capture(path, ReadOptions(heads=heads)))
            except ValueError:
                continue
    assert sum(map(len, found.values())) > 400
    return found


def test_header_only_from_full_heads_is_what_a_header_only_sensor_sends():
    full, sent = all_flows("full"), all_flows("header")
    compared = 0
    del full["gre-aruba-amsdu.pcap"]  # several packets of one flow in a frame: a full head does not say which it is
    for name, flows in full.items():
        for one, other in zip(flows, sent[name], strict=True):
            both = min(len(one.heads), len(other.heads)) - 1  # the last may be cut, elsewhere in each
            pair = [msgspec.structs.replace(flow, heads=flow.heads[:both]) for flow in (one, other)]
            first, second = (encode_packets([flow]).tokens.tolist() for flow in pair)
            assert first == second, name
            compared += both > 0
    assert compared > 250


def test_a_flow_s_tokens_do_not_depend_on_its_batch_and_hold_no_own_address():
    flows = [flow for each in all_flows("full").values() for flow in each]
    for features in (TracegramFeatures(), TracegramFeatures(payload=True), TracegramFeatures(max_tokens=100)):
        batch = encode_packets(flows, features)
        assert batch.counts.max() <= features.max_tokens
        for index, flow in enumerate(flows):
            own = batch.tokens[batch.offsets[index] : batch.offsets[index + 1]]
            assert own.tolist() == encode_packets([flow], features).tokens.tolist()
            if flow.link_type == 3 and flow.heads and len(flow.heads[0].data) > 11:
                data = bytes(own[own < 256].astype(np.uint8))
                macs = [flow.heads[0].data[:6], flow.heads[0].data[6:12]]
                assert not any(mac in data for mac in macs if any(mac) and not mac[0] & 1)
