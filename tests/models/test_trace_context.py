"""The context of flows: what headers say by another reader of packets, kinds of addresses, bounds, odd heads."""

import ipaddress
import zlib

import dpkt
import numpy as np
import pytest
from msgspec.structs import replace

from tapline.models.flow import Flow, PacketHead
from tapline.models.packet_headers import ETHERNET, RAW_IPV4
from tapline.models.trace_context import (
    ABSENT,
    ADDRESS_KINDS,
    CONTEXT_HEADS,
    CONTEXTS,
    PORTS,
    SIZES,
    table_starts,
    trace_context,
)
from tapline.service.sources.capture import read_capture
from tests.paths import DATA

CAPTURES = DATA / "captures"
FIELDS = tuple(SIZES)


def context_of(flow: Flow) -> dict[str, int]:
    return dict(zip(FIELDS, trace_context([flow], FIELDS)[0].tolist(), strict=True))


def ethernet_flow(data: bytes, **changes) -> Flow:
    flow = Flow("C", 0, 0, "192.168.0.2", 40000, "198.51.100.7", 443, "tcp", heads=[PacketHead(0, data)])
    flow.link_type, flow.heads_kind = ETHERNET, "header"
    return replace(flow, **changes)


def syn(options: bytes = b"", window: int = 29200, ttl: int = 64, flags: int = 2, source="192.168.0.2") -> bytes:
    other = {"192.168.0.2": "198.51.100.7"}.get(source, "192.168.0.2")
    tcp = dpkt.tcp.TCP(sport=40000, dport=443, flags=flags, win=window, opts=options, off=5 + len(options) // 4)
    ip = dpkt.ip.IP(
        src=ipaddress.ip_address(source).packed,
        dst=ipaddress.ip_address(other).packed,
        p=6,
        ttl=ttl,
        df=1,
        id=7,
        data=tcp,
    )
    return bytes(dpkt.ethernet.Ethernet(src=b"\2" * 6, dst=b"\4" * 6, type=0x800, data=ip))


def first_packets(flow: Flow):
    """The first IPv4 packet of each side among the heads that are looked at, as dpkt reads it."""
    found = {}
    for head in flow.heads[:CONTEXT_HEADS]:
        try:
            ip = dpkt.ethernet.Ethernet(head.data).data
        except dpkt.UnpackError:
            continue
        if isinstance(ip, dpkt.ip.IP):
            side = "orig" if ip.src == ipaddress.ip_address(flow.orig_h).packed else "resp"
            found.setdefault(side, ip)
    return found


@pytest.mark.parametrize("name", ["android.pcap", "ndpi/mysql.pcapng", "ndpi/steam.pcapng"])
def test_headers_are_those_that_another_reader_finds(name):
    flows = [
        flow
        for flow in read_capture(CAPTURES / name)
        if flow.link_type == ETHERNET and flow.heads and ":" not in flow.orig_h
    ]
    compared = 0
    for flow, row in zip(flows, trace_context(flows, FIELDS).tolist(), strict=True):
        context = dict(zip(FIELDS, row, strict=True))
        for side, ip in first_packets(flow).items():
            compared += 1
            assert context[f"ttl_{side}"] == ip.ttl
            assert context[f"tos_{side}"] == 1 + (ip.tos >> 2)
            assert context[f"ip_flags_{side}"] == 1 + ip.df + 2 * (ip.id != 0)
            if isinstance(ip.data, dpkt.tcp.TCP) and ip.data.flags & dpkt.tcp.TH_SYN:
                options = dict(dpkt.tcp.parse_opts(ip.data.opts))
                assert context[f"tcp_flags_{side}"] == 1 + (ip.data.flags & 63)
                assert context[f"window_{side}"] == 1 + ip.data.win % 255
                assert context[f"mss_{side}"] == 1 + int.from_bytes(options[2]) % 255
                assert context[f"scale_{side}"] == (2 + options[3][0] if 3 in options else 1)
    assert compared > 1


def test_the_order_of_options_is_told_and_their_values_are_not():
    mss, scale, stamps = b"\2\4\5\xb4", b"\1\3\3\7", b"\1\1\x08\x0a" + b"\5" * 8
    first = context_of(ethernet_flow(syn(mss + scale + stamps)))
    assert first["options_orig"] == 1 + zlib.crc32(bytes([2, 1, 3, 1, 1, 8])) % 255
    assert (first["mss_orig"], first["scale_orig"], first["window_orig"]) == (1 + 1460 % 255, 9, 1 + 29200 % 255)
    assert (
        first["options_orig"]
        == context_of(ethernet_flow(syn(mss + scale + b"\1\1\x08\x0a" + b"\6" * 8)))["options_orig"]
    )
    assert first["options_orig"] != context_of(ethernet_flow(syn(stamps + mss + scale)))["options_orig"]


@pytest.mark.parametrize(
    "options", [b"\2\6\5\xb4", b"\2\0\0\0", b"\3\1\0\0", b"\xfe\xff\0\0", b"\0\0\0\0", b"\1\1\1\1"]
)
def test_malformed_options_end_the_list(options):
    found = context_of(ethernet_flow(syn(options.ljust(4, b"\1"))))
    assert found["mss_orig"] == ABSENT
    assert all(value < SIZES[field] for field, value in found.items())


def test_each_side_is_read_from_its_own_packet():
    heads = [PacketHead(0, syn()), PacketHead(0, syn(ttl=50, flags=18, source="198.51.100.7"))]
    found = context_of(ethernet_flow(b"", heads=heads))
    assert (found["ttl_orig"], found["ttl_resp"]) == (64, 50)
    assert (found["tcp_flags_orig"], found["tcp_flags_resp"]) == (3, 19)


def test_only_packets_that_open_tell_the_window():
    found = context_of(ethernet_flow(syn(flags=16)))
    assert (found["window_orig"], found["options_orig"], found["tcp_flags_orig"]) == (ABSENT, ABSENT, 17)


@pytest.mark.parametrize("cut", [0, 13, 20, 33, 40, 53])
def test_cut_heads_tell_less_and_never_of_the_next_packet(cut):
    data = syn()[:cut]
    found = context_of(ethernet_flow(b"", heads=[PacketHead(0, data), PacketHead(0, b"\xff" * 60)]))
    header = {
        name: value for name, value in found.items() if name.endswith("_orig") and name in ("ttl_orig", "tos_orig")
    }
    assert set(header.values()) == ({ABSENT} if cut < 34 else {64, 1})
    assert found["window_orig"] == ABSENT


def test_addresses_are_read_as_their_kind_alone():
    kinds = {
        "10.1.2.3": "private", "8.8.8.8": "global", "224.0.0.251": "multicast", "255.255.255.255": "broadcast",
        "169.254.1.1": "link-local", "127.0.0.1": "loopback", "0.0.0.0": "unspecified", "10.1.2.255": "broadcast",
    }  # fmt: skip
    for address, kind in kinds.items():
        flow = Flow("C", 0, 0, "10.9.9.9", 5000, address, 53, "udp")
        assert ADDRESS_KINDS[context_of(flow)["address_resp"] - 1] == kind
    one, other = (
        context_of(Flow("C", 0, 0, host, 40000, "8.8.8.8", 53, "udp")) for host in ("10.0.0.7", "192.168.7.9")
    )
    assert one == other


def test_ports_are_classes():
    named = {context_of(Flow("C", 0, 0, "10.0.0.1", 1, "10.0.0.2", port, "tcp"))["port_resp"] for port in PORTS}
    assert len(named) == len(PORTS)
    others = [
        context_of(Flow("C", 0, 0, "10.0.0.1", port, "10.0.0.2", 1, "tcp"))["port_orig"]
        for port in (1, 1024, 5001, 32768, 49154, 65535)
    ]
    assert others[4] == others[5]
    assert len(set(others)) == 5
    assert context_of(Flow("C", 0, 0, "10.0.0.1", 8, "10.0.0.2", 0, "icmp"))["port_orig"] == ABSENT


def test_volume_grows_by_half_doublings():
    found = [
        context_of(Flow("C", 0, 0, "10.0.0.1", 1, "10.0.0.2", 2, "tcp", orig_pkts=n))["packets_orig"]
        for n in (0, 1, 2, 4, 2**53 - 1)
    ]
    assert found == [1, 2, 4, 6, 63]


def with_packets(lengths: list[int], gaps_us: list[int] = (), duration_us: int = 0) -> dict[str, int]:
    heads = [PacketHead(gap, b"") for gap in gaps_us]
    return context_of(Flow("C", 0, duration_us, "10.0.0.1", 1, "10.0.0.2", 2, "tcp", 0, 0, lengths, heads=heads))


def fields_of(found: dict[str, int], name: str) -> list[int]:
    return [value for field, value in found.items() if field.startswith(name)]


def test_lengths_are_hashed_with_their_sign_and_sized_by_quarter_doublings():
    found = with_packets([1, -1, 254, 255, 1460, -1460, 0, 2**31 - 1])
    assert fields_of(found, "length_") == [2, 255, 255, 1, 186, 71, 0, 1 + (2**31 - 1) % 255] + [0] * 24
    assert fields_of(found, "size_") == [1, 48, 33, 33, 43, 90, 0, 47] + [0] * 8
    more = with_packets([7] * 33)
    assert fields_of(more, "length_") == [8] * 32
    assert fields_of(more, "size_") == [12] * 16


def test_gaps_and_duration_grow_by_half_doublings():
    found = with_packets([], [5, 0, 1, 2, 1_000_000, 2**60, 4, 8], duration_us=4096)
    assert fields_of(found, "gap_") == [1, 2, 4, 42, 63, 6]  # the first head follows nothing, the last is the eighth
    assert found["duration"] == 26
    assert fields_of(with_packets([], [9, 4]), "gap_") == [6, 0, 0, 0, 0, 0]
    assert [with_packets([], duration_us=us)["duration"] for us in (0, 1, 2**53)] == [1, 2, 63]


def test_lengths_behind_the_first_six_share_one_table_and_nothing_else_does():
    fields = ("transport", "length_6", "length_7", "ttl_orig", "length_32", "length_8", "size_7", "size_8")
    starts, rows = table_starts(fields)
    assert starts.tolist() == [0, 6, 262, 518, 262, 262, 774, 869]
    assert rows == 964
    assert table_starts(())[1] == 0
    assert len(set(table_starts(tuple(SIZES))[0].tolist())) == len(SIZES) - 25


def test_behind_the_first_six_a_length_means_the_same_wherever_it_stands():
    starts, _ = table_starts(FIELDS)

    def read(lengths):
        """How often each row of the table of `length_` is read."""
        rows = zip(FIELDS, starts.tolist(), with_packets(lengths).values(), strict=True)
        return sorted(start + value for field, start, value in rows if field.startswith("length_"))

    first = [10, 20, 30, 40, 50, 60]
    assert read([*first, 70, 80, 90]) == read([*first, 90, 70, 80])
    assert read([*first, 70, 80]) != read([20, 10, *first[2:], 70, 80])
    assert read([*first, 70, 80]) != read([*first, 70, -80])


def test_what_tells_a_system_is_no_behaviour():
    left_out = set(CONTEXTS["all"]) - set(CONTEXTS["behaviour"])
    assert left_out == {
        f"{name}_{side}"
        for name in ("ttl", "tos", "ip_flags", "window", "options", "mss", "scale")
        for side in ("orig", "resp")
    }
    heads = [PacketHead(0, syn()), PacketHead(0, syn(ttl=50, flags=18, source="198.51.100.7"))]
    other = [PacketHead(0, syn(b"\2\4\5\xb4", 1000, 128)), PacketHead(0, syn(b"\1" * 4, 5, 1, 18, "198.51.100.7"))]
    one, two = (trace_context([ethernet_flow(b"", heads=each)], CONTEXTS["behaviour"]) for each in (heads, other))
    np.testing.assert_array_equal(one, two)


def test_a_flow_in_a_tunnel_is_read_from_its_own_header():
    inner = syn(ttl=17)[14:]
    outer = dpkt.ip.IP(src=b"\1\1\1\1", dst=b"\2\2\2\2", p=4, ttl=99, data=inner)
    flow = ethernet_flow(bytes(outer), link_type=RAW_IPV4)
    assert context_of(flow)["ttl_orig"] == 17


def test_every_value_is_below_the_size_of_its_field():
    flows = [flow for path in sorted((DATA / "captures").rglob("*.pcap*"))[:40] for flow in read_capture(path)]
    table = trace_context(flows, FIELDS)
    assert table.dtype == np.uint8
    assert len(flows) > 200
    assert (table < [SIZES[field] for field in FIELDS]).all()


def test_context_of_a_flow_does_not_depend_on_what_is_beside_it():
    flows = list(read_capture(CAPTURES / "android.pcap"))
    together = trace_context(flows, FIELDS)
    np.testing.assert_array_equal(together, [trace_context([flow], FIELDS)[0] for flow in flows])
    assert trace_context(flows, ()).shape == (len(flows), 0)
    assert trace_context([], FIELDS).shape == (0, len(FIELDS))
