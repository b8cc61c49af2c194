"""Batches of flows (format 2): hand-made bytes become flows, packed ones come back, and what is broken costs no more
than itself."""

import base64
import gc
import pickle
import socket
import struct
import tracemalloc
import zlib

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapline.models.flow import (
    HEAD_TOKEN_COST,
    HEADS_TOKEN_BUDGET,
    MAX_COUNT,
    MAX_PAYLOAD_LENGTH,
    Flow,
    FlowError,
    PacketHead,
    check_flow,
    flow_of,
    flow_to_line,
    parse_flow,
)
from tapline.service.sources.bus.events import BusEvent, EventError, SchemaVersionError, parse_event
from tapline.service.sources.bus.flow_batches import MAX_BATCH_BYTES, BatchError, read_batch
from tapline.service.sources.bus.glances import Glance
from tapline.service.sources.bus.websocket_frames import event_frame, event_of, parse_frame
from tests.batches import FRONT, flow_text, flows_event, pack_batch, pack_flow

BY_HAND = bytes.fromhex(
    "a1000000"  # size: 120 and 41
    "01060301"  # final, TCP, Ethernet, heads `header`
    "9210bb01"  # 4242 and 443
    "00401e18240a0600fa00000000000000"  # 1,700,000,000,000,000 us, 250 us
    "05000000000000000400000000000000"  # packets
    "84030000000000002003000000000000"  # IP bytes
    "02000000000000000100000000000000"  # packets with payload
    "0a000001000000000000000000000000"
    "0a000002000000000000000000000000"
    "040302000101030000000000"  # uid 4, service 3, conn_state 2, no name, 1 length, 1 head, 3 bytes, none
    "58faffff"  # -1448
    "0c000000000000000200aabb"  # a head of 2 bytes after 12 us
    "160301"
    "43756964"
    "73736c"
    "5346"
    "00000000000000000000000000"  # of a later version
)
FLOW = Flow(
    "Cuid", 1_700_000_000_000_000, 250, "10.0.0.1", 4242, "10.0.0.2", 443, "tcp", 2, 1, [-1448], b"\x16\x03\x01", b"",
    5, 4, 900, 800, 3, "header", [PacketHead(12, b"\xaa\xbb")], "ssl", "SF", "tap-1", True,
)  # fmt: skip


def batch(data, compression=0, size=None, reserved=b"\0\0\0"):
    size = len(data) if size is None else size
    return base64.b64encode(bytes((compression,)) + reserved + struct.pack("<I", size) + data).decode()


def test_bytes_made_by_hand():
    assert len(BY_HAND) == 161
    assert read_batch(batch(BY_HAND), 1, "tap-1") == [FLOW]
    assert read_batch(batch(zlib.compress(BY_HAND * 3), 1, 3 * len(BY_HAND)), 3, "tap-1") == [FLOW] * 3
    assert pack_flow(FLOW, behind=bytes(13)) == BY_HAND


def test_an_event_of_a_batch():
    frame = event_frame(flows_event([FLOW, FLOW], 7, sensor="tap-1", shard="03"))
    event = parse_event(event_of(parse_frame(frame)))
    assert (event.topic, event.sensor, event.format, event.refused) == ("tapline/flows/03", "tap-1", 2, [])
    assert [(run.seq, list(run.flows)) for run in event.runs] == [(7, [FLOW, FLOW])]


def test_packets_are_sequences_like_lists():
    [flow] = read_batch(batch(BY_HAND), 1, "tap-1")
    assert flow.payload_lengths == [-1448] == list(flow.payload_lengths)
    assert flow.payload_lengths != [1448] != "x"
    assert (len(flow.payload_lengths), flow.payload_lengths[0], flow.payload_lengths[:5]) == (1, -1448, [-1448])
    assert [head.gap_us for head in flow.heads] == [12]
    assert flow.heads == [PacketHead(12, b"\xaa\xbb")] == list(flow.heads)
    assert (-1448 in flow.payload_lengths, repr(flow.payload_lengths)) == (True, "[-1448]")
    assert pickle.loads(pickle.dumps(flow)) == flow == FLOW
    assert msgspec.structs.replace(flow, uid="other").payload_lengths == flow.payload_lengths
    assert parse_flow(msgspec.json.encode(flow_to_line(flow))) == flow


def addresses(family, size):
    return st.binary(min_size=size, max_size=size).map(lambda packed: socket.inet_ntop(family, packed))


PAIRS = st.one_of(
    st.tuples(addresses(socket.AF_INET, 4), addresses(socket.AF_INET, 4)),
    st.tuples(addresses(socket.AF_INET6, 16), addresses(socket.AF_INET6, 16)),
)
COUNTS = st.integers(0, MAX_COUNT)
LENGTHS = st.integers(-MAX_PAYLOAD_LENGTH, MAX_PAYLOAD_LENGTH).filter(bool)
NAMES = st.text(st.characters(codec="utf-8"), max_size=40)
PROTOCOLS = st.sampled_from(["tcp", "udp", "icmp", *(str(n) for n in range(256) if n not in (1, 6, 17, 58))])


@st.composite
def heads(draw):
    found, room = [], HEADS_TOKEN_BUDGET
    for size in draw(st.lists(st.integers(0, 120), max_size=30)):
        if room < HEAD_TOKEN_COST + size:
            break
        found.append(PacketHead(draw(COUNTS), draw(st.binary(min_size=size, max_size=size))))
        room -= HEAD_TOKEN_COST + size
    return found


@st.composite
def flows(draw):
    orig_h, resp_h = draw(PAIRS)
    start_us = draw(COUNTS)
    ports = st.integers(0, 65535)
    return check_flow(
        Flow(
            draw(NAMES.filter(bool)), start_us, draw(st.integers(0, MAX_COUNT - start_us)), orig_h, draw(ports), resp_h,
            draw(ports), draw(PROTOCOLS), draw(COUNTS), draw(COUNTS), draw(st.lists(LENGTHS, max_size=254)),
            draw(st.binary(max_size=256)), draw(st.binary(max_size=256)), draw(COUNTS), draw(COUNTS), draw(COUNTS),
            draw(COUNTS), draw(st.integers(0, 255)), draw(st.sampled_from(["none", "header", "full"])), draw(heads()),
            draw(NAMES), draw(NAMES), "tap", draw(st.booleans()),
            draw(st.sampled_from(["", "example.org", "2001:db8::1", "a" * 63 + ".b"])),
        )
    )  # fmt: skip


@given(st.lists(flows(), min_size=1, max_size=5), st.booleans(), st.binary(max_size=9))
def test_what_is_packed_comes_back(given_flows, compressed, behind):
    packed = pack_batch([pack_flow(flow, behind) for flow in given_flows], compressed=compressed)
    assert read_batch(packed, len(given_flows), "tap") == given_flows


def without(number):
    """Wants every flow but each so-manieth, and notes what it saw."""
    seen = []

    def wanted(glances):
        seen.extend(glances)
        return [place % number > 0 for place in range(len(glances))]

    return seen, wanted


@given(st.lists(flows(), min_size=1, max_size=7), st.integers(1, 3))
def test_what_is_not_wanted_is_seen_and_not_read(given_flows, number):
    seen, wanted = without(number)
    found = read_batch(pack_batch(map(pack_flow, given_flows)), len(given_flows), "tap", wanted)
    assert [(each.uid, each.orig_h, each.final) for each in seen] == [
        (flow.uid, flow.orig_h, flow.complete) for flow in given_flows
    ]
    for place, each in enumerate(found):
        assert each == (given_flows[place] if place % number else seen[place])


def test_what_is_not_wanted_of_a_text():
    flows = [msgspec.structs.replace(FLOW, uid=f"C{number}", complete=number > 1) for number in range(4)]
    broken = [",,", flow_text(FLOW).replace("10.0.0.1", "10.0.0"), flow_text(FLOW).replace("Cuid", 256 * "x")]
    seen, wanted = without(2)
    found = read_batch("".join(f"|{each}" for each in [*map(flow_text, flows), *broken]), 7, "tap-1", wanted)
    assert seen == [*(Glance(flow.uid, "10.0.0.1", flow.complete) for flow in flows), None, None, None]
    assert found[:4] == [seen[0], flows[1], seen[2], flows[3]]
    assert [type(each) for each in found[4:]] == [FlowError] * 3  # of what nothing is seen is read


def test_a_glance_behind_the_end_of_a_batch_sees_nothing():
    seen, wanted = without(1)
    data = changed(113, 255)
    assert [told(each) for each in read_batch(batch(data), 1, "tap-1", wanted)] == [
        "expected parts that fit into the size of the flow"
    ]
    assert seen == [None]


PARTS = ("10.0.0.1", "10.0.0.2", "1700000000000000", "c2w=", "[6146]")
BARE_NAMES = st.text(st.characters(codec="utf-8", exclude_characters=",|"), max_size=40)


@given(st.lists(st.tuples(flows(), BARE_NAMES.filter(bool), BARE_NAMES), min_size=1, max_size=5), st.booleans())
def test_what_is_written_comes_back(given_flows, straight):
    named = [
        msgspec.structs.replace(flow, uid=uid, conn_state=state, up=254 + flow.up % 9, down=254 + flow.down % 9)
        for flow, uid, state in given_flows
    ]
    text = "".join("|" + flow_text(flow, straight=straight, behind=",5,[[2]]") for flow in named)
    assert read_batch(text, len(named), "tap") == named


@pytest.mark.parametrize(
    "text",
    [
        "", "T", "," * 8, "," * 30, "T,T,a,b,c,d,e,f,1", *[flow_text(FLOW).replace(part, "x") for part in PARTS],
        flow_text(FLOW).replace("[-1448]", "1"), flow_text(FLOW).replace("[-1448]", "[[1]]"),
        flow_text(FLOW).replace("[-1448]", f"[{2**31}]"), flow_text(FLOW).replace("[-1448]", f"{[1] * 256}"),
        flow_text(FLOW).replace(",6,3,1,", ",256,3,1,"), flow_text(FLOW).replace(",6,3,1,", ",-6,3,1,"),
        flow_text(FLOW).replace("[6146]", "[6147,5000]"), flow_text(FLOW) + "]", "[" * 100_000,
    ],
)  # fmt: skip
def test_a_flow_of_text_that_is_none_costs_itself(text):
    good = flow_text(FLOW)
    found = read_batch(f"|{good}|{text}|{good}", 3, "tap-1")
    assert (found[0], found[2]) == (FLOW, FLOW)
    assert told(found[1]) == "expected a flow in text with all its parts"


def test_a_flow_of_text_out_of_bounds_costs_itself():
    bad = [msgspec.structs.replace(FLOW, uid=""), msgspec.structs.replace(FLOW, payload_lengths=[0])]
    found = read_batch("".join("|" + flow_text(flow) for flow in (FLOW, *bad)), 3, "tap-1")
    assert [*map(told, found)] == [FLOW, *map(told, map(judged, bad))]


@pytest.mark.parametrize("text", ["|", "|x", "|x|x|x", "||||||"])
def test_so_many_flows_as_the_event_tells(text):
    with pytest.raises(BatchError, match="expected as many flows as the event tells"):
        read_batch(text, 2, "tap-1")


COUNT_NAMES = (
    "start_us", "duration_us", "orig_pkts", "resp_pkts", "orig_ip_bytes", "resp_ip_bytes", "up", "down",
)  # fmt: skip
EDGES = {
    **{name: st.sampled_from([0, MAX_COUNT, MAX_COUNT + 1, 2**63, 2**64 - 1]) for name in COUNT_NAMES},
    "uid": st.sampled_from(["", "C", "C" * 128, "C" * 129, "é" * 100]),
    "service": st.sampled_from(["s" * 128, "s" * 129, "é" * 100]),
    "conn_state": st.sampled_from(["s" * 128, "s" * 129]),
    "payload_lengths": st.sampled_from([[], [0], [1, 0], [1] * 254, [1] * 255, [-(2**31)], [2**31 - 1]]),
    "orig_bytes": st.sampled_from([bytes(256), bytes(257)]),
    "resp_bytes": st.sampled_from([bytes(256), bytes(257), bytes(65535)]),
    "heads": st.sampled_from(
        [
            [PacketHead(0, bytes(500))],
            [PacketHead(0, bytes(501))],
            [PacketHead(0, b"")] * 51,
            [PacketHead(0, b"")] * 52,
            [PacketHead(MAX_COUNT, b"")],
            [PacketHead(MAX_COUNT + 1, b"")],
            [PacketHead(2**64 - 1, b""), PacketHead(0, b"")],
        ]
    ),
}


@given(st.lists(st.fixed_dictionaries({}, optional=EDGES), min_size=1, max_size=4))
def test_what_is_refused_is_what_the_one_validator_refuses(changes):
    given_flows = [msgspec.structs.replace(FLOW, **change) for change in changes]
    found = read_batch(pack_batch(map(pack_flow, given_flows)), len(given_flows), "tap-1")
    assert list(map(told, found)) == list(map(told, map(judged, given_flows)))


def judged(flow):
    try:
        return flow_of(msgspec.to_builtins(flow, builtin_types=(bytes,)))
    except FlowError as error:
        return error


def told(found):
    return str(found) if isinstance(found, FlowError) else found


def changed(offset, *values):
    data = bytearray(BY_HAND)
    data[offset : offset + len(values)] = bytes(values)
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (changed(7, 3), "Invalid enum value '' - at `$.heads_kind`"),
        (changed(112, 255), "expected parts that fit into the size of the flow"),
        (changed(113, 255), "expected parts that fit into the size of the flow"),
        (changed(114, 255, 255), "expected parts that fit into the size of the flow"),
        (changed(132, 0, 4), "expected parts that fit into the size of the flow"),  # the size of the head
        (changed(111, 255), "expected parts that fit into the size of the flow"),
        (changed(120, 0, 0, 0, 0), "expected lengths of packets with payload, got 0 - at `$.payload_lengths`"),
        (changed(108, 0), "Expected `str` of length >= 1 - at `$.uid`"),
    ],
)
def test_a_flow_out_of_bounds_costs_itself(data, message):
    found = read_batch(batch(BY_HAND + data + BY_HAND), 3, "tap-1")
    assert found[0] == found[2] == FLOW
    assert told(found[1]) == message
    event = parse_event(BusEvent("t", "Tapline::flows", [2, "tap-1", 5, 3, batch(BY_HAND + data + BY_HAND)]))
    assert [(run.seq, len(run.flows)) for run in event.runs] == [(5, 1), (7, 1)]
    assert [str(error) for error in event.refused] == [f"Tapline::flows: {message}"]


def test_what_later_versions_may_set_is_passed_over():
    assert read_batch(batch(changed(4, 0xFD), reserved=b"\1\2\3"), 1, "tap-1") == [FLOW]
    assert read_batch(batch(changed(118, 1, 1)), 1, "tap-1") == [FLOW]
    assert read_batch(batch(changed(80, *range(12))), 1, "tap-1") == [FLOW]  # behind an IPv4 address


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"example.org", "example.org"),
        (b"2001:db8::1", "2001:db8::1"),
        (b"a b", ""),
        (b"\x1b[2J", ""),
        (b"\xff\xfe", ""),
        (b"<script>", ""),
    ],
)
def test_names_of_servers_are_host_names_or_addresses(raw, text):
    named = FRONT.pack(120 + 1 + len(raw), *FRONT.unpack(BY_HAND[:120])[1:17], 1, 0, 0, len(raw), 0, 0, 0, 0) + b"C"
    [flow] = read_batch(batch(named + raw), 1, "tap-1")
    assert flow.server_name == text


def test_text_that_is_not_utf8_is_marked():
    [flow] = read_batch(batch(BY_HAND.replace(b"ssl", b"s\xffl")), 1, "tap-1")
    assert flow.service == "s\N{REPLACEMENT CHARACTER}l"


BOMB = zlib.compress(bytes(64 << 20), 9)
WHOLE = zlib.compress(BY_HAND)


@pytest.mark.parametrize(
    ("packed", "message"),
    [
        ("", "expected 8 bytes before the flows"),
        ("AAAA", "expected 8 bytes before the flows"),
        ("*" * 16, "expected base64 with padding"),
        ("é" * 16, "expected base64 with padding"),
        (batch(BY_HAND)[:-1], "expected base64 with padding"),
        (batch(BY_HAND) + "\n", "expected base64 with padding"),
        ("A" * (2 * MAX_BATCH_BYTES + 4), "expected a batch of at most 2097152 characters"),
        (batch(BY_HAND, 2), "expected compression 0 or 1"),
        (batch(BY_HAND, 1), "expected data compressed by zlib"),
        (batch(WHOLE[:-1], 1, len(BY_HAND)), "expected one whole stream of zlib"),
        (batch(WHOLE + b"x", 1, len(BY_HAND)), "expected one whole stream of zlib"),
        (batch(b"", 1, 0), "expected one whole stream of zlib"),
        (batch(WHOLE, 1, len(BY_HAND) - 1), "expected flows of the size that the batch tells"),
        (batch(WHOLE, 1, len(BY_HAND) + 1), "expected flows of the size that the batch tells"),
        (batch(BOMB, 1, MAX_BATCH_BYTES), "expected flows of the size that the batch tells"),
        (batch(BY_HAND, 0, MAX_BATCH_BYTES + 1), "expected a size of at most 1048576 bytes"),
        (batch(BY_HAND[:-1]), "expected flows that fill the batch end to end"),
        (batch(BY_HAND + b"\0"), "expected flows that fill the batch end to end"),
        (batch(changed(0, 119)), "expected flows that fill the batch end to end"),
        (batch(changed(0, 0)), "expected flows that fill the batch end to end"),
        (batch(changed(0, 162)), "expected flows that fill the batch end to end"),
        (batch(b""), "expected as many flows as the event tells"),
        (batch(BY_HAND * 2), "expected as many flows as the event tells"),
    ],
)
def test_a_broken_batch_costs_itself(packed, message):
    with pytest.raises(BatchError) as error:
        read_batch(packed, 1, "tap-1")
    assert str(error.value) == message
    with pytest.raises(EventError, match=f"^Tapline::flows: {message}$"):
        parse_event(BusEvent("t", "Tapline::flows", [2, "tap-1", 1, 1, packed]))


def test_a_bomb_is_not_unpacked():
    tracemalloc.start()
    try:
        with pytest.raises(BatchError):
            read_batch(batch(BOMB, 1, 100), 1, "tap-1")
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([2, "s", 1, 0, ""], "Tapline::flows: Expected `int` >= 1 - at `flows`"),
        ([2, "s", 1, 65, ""], "Tapline::flows: Expected `int` <= 64 - at `flows`"),
        ([2, "s", 2**53, 1, ""], "Tapline::flows: Expected `int` <= 9007199254740991 - at `seq`"),
        ([2, "s", 1, 1, 5], "Tapline::flows: Expected `str`, got `int` - at `packed`"),
        ([2, "s", 1, 1], "Tapline::flows: 4 fields instead of 5"),
    ],
)
def test_faults_of_the_event_are_named(args, message):
    with pytest.raises(EventError) as error:
        parse_event(BusEvent("t", "Tapline::flows", args))
    assert str(error.value) == message


def test_another_version_is_refused():
    with pytest.raises(SchemaVersionError, match="Tapline::flows of schema version 3: this service reads version 2"):
        parse_event(BusEvent("t", "Tapline::flows", [3, "s", 1, 1, ""]))


def test_no_object_for_each_packet():
    long = msgspec.structs.replace(FLOW, payload_lengths=[1000] * 254, heads=[PacketHead(5000, b"")] * 51)
    packed = pack_batch([pack_flow(long)] * 64)
    flows_read = read_batch(packed, 64, "tap-1")
    assert not any(
        isinstance(found, list | PacketHead | np.ndarray) for flow in flows_read for found in gc.get_referents(flow)
    )
