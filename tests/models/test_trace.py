"""The definition of a trace: subjects on real heads and made ones, windows, order, what is cut."""

import ipaddress
import random

import msgspec
import pytest

from tapline.models.flow import Flow, PacketHead
from tapline.models.trace import TraceSettings, flow_order, is_instance, make_traces, subject_kind_of, subject_of
from tapline.service.sources.capture import ReadOptions, read_capture
from tests.paths import DATA

CAPTURES = DATA / "captures"
DEVICE, ROUTER, SERVER_CARD = "02:00:00:00:00:0a", "02:00:00:00:00:01", "02:00:00:00:00:09"
BROADCAST = "ff:ff:ff:ff:ff:ff"
SECOND = 1_000_000


def frame(source_mac, target_mac, source, target, tags=b"") -> bytes:
    """An Ethernet frame up to the end of its IP header."""
    ends = ipaddress.ip_address(source).packed + ipaddress.ip_address(target).packed
    macs = bytes.fromhex((target_mac + source_mac).replace(":", ""))
    if len(ends) == 8:
        return macs + tags + b"\x08\x00" + b"\x45" + bytes(11) + ends
    return macs + tags + b"\x86\xdd" + b"\x60" + bytes(7) + ends


def flow(*frames, orig="10.0.0.5", resp="10.0.0.9", start_us=0, **fields) -> Flow:
    values = {"link_type": 3, "heads_kind": "header", "orig_p": 1000, "resp_p": 53, "proto": "udp", **fields}
    heads = [PacketHead(0, data) for data in frames]
    return Flow(
        values.pop("uid", "U"), start_us, values.pop("duration_us", 0), orig, values.pop("orig_p"), resp,
        values.pop("resp_p"), values.pop("proto"), 1, 0, [40], heads=heads, **values,
    )  # fmt: skip


def at(seconds, uid="", **fields) -> Flow:
    """A flow of one host that starts then."""
    head = frame(DEVICE, ROUTER, "10.0.0.5", "10.0.0.9")
    return flow(head, uid=uid or f"F{seconds}", start_us=round(seconds * SECOND), **fields)


def uids(traces) -> list[list[str]]:
    return [[each.uid for each in trace.flows] for trace in traces]


@pytest.mark.parametrize(
    ("capture", "mac"),
    [
        ("iot-sentinel/Aria/Setup-A-1-STA.pcap", "20:f8:5e:ca:91:52"),
        ("iot-sentinel/D-LinkDayCam/Setup-A-2-STA.pcap", "b0:c5:54:1c:71:85"),
        ("iot-sentinel/EdimaxCam1/Setup-A-6-STA.pcap", "74:da:38:80:7a:08"),
    ],
)
@pytest.mark.parametrize("heads", ["header", "full"])
def test_a_device_is_one_subject_by_mac_whatever_its_addresses(capture, mac, heads):
    flows = list(read_capture(CAPTURES / capture, ReadOptions(heads=heads)))
    assert len({each.orig_h for each in flows}) > 1  # 0.0.0.0 before DHCP, and an address after
    (trace,) = make_traces(flows, TraceSettings(subject="mac"))
    assert trace.subject == mac
    assert trace.flows == sorted(filter(is_instance, flows), key=flow_order)


def test_hosts_of_a_real_network_by_mac():
    flows = read_capture(CAPTURES / "android.pcap", ReadOptions(heads="header"))
    found = {trace.subject: len(trace.flows) for trace in make_traces(flows, TraceSettings(subject="mac"))}
    assert found == {
        "4c:6a:f6:9f:f6:27": 49, "c4:61:8b:35:82:a9": 10, "c6:2c:03:60:6a:64": 4, "d8:30:62:56:00:1c": 3,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("originator", "10.0.0.9"), ("responder", "10.0.0.10"), ("pair", "10.0.0.10 - 10.0.0.9"), ("mac", DEVICE)],
)
def test_subject_kinds(kind, expected):
    one = flow(frame(DEVICE, ROUTER, "10.0.0.9", "10.0.0.10"), orig="10.0.0.9", resp="10.0.0.10")
    assert subject_of(one, kind) == expected


@pytest.mark.parametrize(
    ("subject", "kind", "expected"),
    [
        (DEVICE, "mac", "mac"),
        ("10.0.0.9", "mac", "originator"),
        ("2001:db8:0:1:2:3:4:5", "mac", "originator"),
        ("fe80::ab", "mac", "originator"),
        ("10.0.0.9", "responder", "responder"),
    ],
)
def test_an_address_in_the_place_of_a_mac_is_told(subject, kind, expected):
    assert subject_kind_of(subject, kind) == expected


def test_a_pair_is_the_same_both_ways():
    there, back = flow(orig="10.0.0.1", resp="10.0.0.2"), flow(orig="10.0.0.2", resp="10.0.0.1")
    assert subject_of(there, "pair") == subject_of(back, "pair")


def test_dhcp_whose_first_packet_is_the_answer_belongs_to_the_client():
    # The flow was turned: 0.0.0.0 is its originator, but the capture holds the server's packets first.
    answer = frame(ROUTER, DEVICE, "10.0.0.1", "10.0.0.5")
    request = frame(DEVICE, BROADCAST, "0.0.0.0", "255.255.255.255")
    turned = flow(answer, request, orig="0.0.0.0", resp="255.255.255.255", orig_p=68, resp_p=67)
    assert subject_of(turned, "mac") == DEVICE


def test_the_other_directions_target_where_the_originator_sent_nothing_that_was_seen():
    answer = frame(ROUTER, DEVICE, "10.0.0.1", "10.0.0.5")
    assert subject_of(flow(answer, orig="10.0.0.5", resp="10.0.0.1"), "mac") == DEVICE


@pytest.mark.parametrize("target", [BROADCAST, "01:00:5e:00:00:fb", "00:00:00:00:00:00"])
def test_a_group_is_nobody(target):
    answer = frame(ROUTER, target, "10.0.0.1", "10.0.0.5")
    assert subject_of(flow(answer, orig="10.0.0.5", resp="10.0.0.1"), "mac") == "10.0.0.5"


def test_a_public_originator_came_through_the_router():
    inbound = flow(frame(ROUTER, DEVICE, "8.8.8.8", "192.168.1.5"), orig="8.8.8.8", resp="192.168.1.5")
    assert subject_of(inbound, "mac") == DEVICE
    answered = flow(
        frame(ROUTER, BROADCAST, "8.8.8.8", "192.168.1.5"),
        frame(DEVICE, ROUTER, "192.168.1.5", "8.8.8.8"),
        orig="8.8.8.8",
        resp="192.168.1.5",
    )
    assert subject_of(answered, "mac") == DEVICE
    unanswered = flow(frame(ROUTER, BROADCAST, "8.8.8.8", "192.168.1.5"), orig="8.8.8.8", resp="192.168.1.5")
    assert subject_of(unanswered, "mac") == "8.8.8.8"


def test_between_two_public_addresses_the_originator_counts():
    host, server = "2a00:1450::5", "2a00:1450::9"
    assert subject_of(flow(frame(DEVICE, ROUTER, host, server), orig=host, resp=server), "mac") == DEVICE


@pytest.mark.parametrize("tags", [b"", b"\x81\x00\x00\x05", b"\x88\xa8\x00\x05\x81\x00\x00\x06"])
@pytest.mark.parametrize(("host", "peer"), [("10.0.0.5", "10.0.0.9"), ("fe80::5", "ff02::fb")])
def test_addresses_are_found_behind_vlan_tags_and_in_both_versions(tags, host, peer):
    one = flow(frame(DEVICE, ROUTER, host, peer, tags), orig=host, resp=peer)
    assert subject_of(one, "mac") == DEVICE


@pytest.mark.parametrize(
    "changed",
    [
        {"link_type": 9},  # cooked: no Ethernet header
        {"heads": []},
        {"heads": [PacketHead(0, b"")]},
        {"heads": [PacketHead(0, frame(DEVICE, ROUTER, "10.0.0.5", "10.0.0.9")[:29])]},  # cut inside the address
        {"heads": [PacketHead(0, frame(DEVICE, ROUTER, "172.16.0.1", "172.16.0.2"))]},  # a tunnel's outer addresses
    ],
)
def test_without_a_mac_the_subject_is_the_address(changed):
    one = flow(frame(DEVICE, ROUTER, "10.0.0.5", "10.0.0.9"))
    for name, value in changed.items():
        setattr(one, name, value)
    assert subject_of(one, "mac") == "10.0.0.5"


def test_windows_count_from_the_subjects_first_flow():
    settings = TraceSettings(window_seconds=10)
    traces = make_traces([at(17), at(12.5), at(7), at(38)], settings)
    assert uids(traces) == [["F7", "F12.5"], ["F17"], ["F38"]]
    assert [(trace.start_us, trace.end_us) for trace in traces] == [
        (7 * SECOND, 17 * SECOND), (17 * SECOND, 27 * SECOND), (37 * SECOND, 47 * SECOND),
    ]  # fmt: skip


def test_each_subject_has_windows_of_its_own():
    other = at(15, uid="other", orig="10.0.0.6")
    traces = make_traces([at(7), other, at(16)], TraceSettings(window_seconds=10))
    assert [(trace.subject, trace.start_us) for trace in traces] == [
        ("10.0.0.5", 7 * SECOND), ("10.0.0.6", 15 * SECOND),
    ]  # fmt: skip


def test_without_a_window_a_trace_ends_with_its_last_flow():
    (trace,) = make_traces([at(100), at(7, duration_us=200 * SECOND), at(1e6)], TraceSettings(window_seconds=0))
    assert (trace.start_us, trace.end_us) == (7 * SECOND, 1e6 * SECOND)
    (trace,) = make_traces([at(100), at(7, duration_us=200 * SECOND)], TraceSettings(window_seconds=0))
    assert trace.end_us == 207 * SECOND


def test_the_newest_flows_stay():
    (trace,) = make_traces([at(each) for each in range(5)], TraceSettings(max_flows=3))
    assert (uids([trace]), trace.cut) == ([["F2", "F3", "F4"]], 2)


def test_too_few_flows_make_no_trace():
    flows = [at(0), at(1), at(11)]
    assert uids(make_traces(flows, TraceSettings(window_seconds=10, min_flows=2))) == [["F0", "F1"]]


def test_flows_without_payload_or_heads_are_no_instances():
    silent, headless = at(1), at(2)
    silent.payload_lengths = []
    headless.heads = []
    assert uids(make_traces([at(0), silent, headless], TraceSettings())) == [["F0"]]


def test_order_does_not_depend_on_arrival():
    flows = [
        at(3, uid=f"{port}{resp}", resp=resp, orig_p=port) for port in (9, 10) for resp in ("10.0.0.9", "10.0.0.7")
    ]
    flows.append(at(2, uid="first"))
    expected = uids(make_traces(flows, TraceSettings()))
    assert expected == [["first", "910.0.0.7", "910.0.0.9", "1010.0.0.7", "1010.0.0.9"]]
    for seed in range(5):
        random.Random(seed).shuffle(flows)
        assert uids(make_traces(flows, TraceSettings())) == expected


@pytest.mark.parametrize(
    "fields",
    [
        {"window_seconds": -1}, {"window_seconds": 1e-5}, {"min_flows": 0}, {"max_flows": 0}, {"max_flows": 5000},
        {"min_flows": 10, "max_flows": 9}, {"subject": "vlan"}, {"windows": 1},
    ],
)  # fmt: skip
def test_bad_settings_are_refused(fields):
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(fields, TraceSettings)
