"""Events of the bus: literal ones become records, and every fault is named without a word of its content."""

import pytest

from tapline.models.flow import PacketHead
from tapline.service.sources.bus.answers import VerdictRow, finished_ack_event, verdicts_event
from tapline.service.sources.bus.events import (
    BusEvent,
    EventError,
    Finished,
    SchemaVersionError,
    Stats,
    VerdictsAck,
    parse_event,
)
from tapline.service.sources.bus.websocket_frames import event_frame, event_of, parse_frame

FLOW_ARGS = [
    1, "tap-1", 7, False, "CUid", 1_700_000_000_000_000, 250, "2001:db8::2", 4242, "2001:db8::1", 443, "tcp", "ssl",
    "SF", 5, 4, 900, 800, 2, 1, "517,-1448,64", "160301", "", 3, "header", "0:aabb;12:cc",
]  # fmt: skip


def flow_event(**changes):
    args = list(FLOW_ARGS)
    for index, value in changes.items():
        args[int(index[1:])] = value
    return BusEvent("tapline/flows/0", "Tapline::flow", args)


FLOW = parse_event(flow_event()).runs[0].flows[0]


def test_a_flow():
    event = parse_event(flow_event())
    assert (event.topic, event.sensor, event.format, event.refused) == ("tapline/flows/0", "tap-1", 1, ())
    [run] = event.runs
    [flow] = run.flows
    assert (run.seq, flow.sensor, flow.complete) == (7, "tap-1", False)
    assert (flow.uid, flow.start_us, flow.duration_us) == ("CUid", 1_700_000_000_000_000, 250)
    assert (flow.orig_h, flow.orig_p, flow.resp_h, flow.resp_p) == ("2001:db8::2", 4242, "2001:db8::1", 443)
    assert (flow.payload_lengths, flow.up, flow.down) == ([517, -1448, 64], 2, 1)
    assert (flow.orig_bytes, flow.resp_bytes) == (b"\x16\x03\x01", b"")
    assert flow.heads == [PacketHead(0, b"\xaa\xbb"), PacketHead(12, b"\xcc")]
    assert (flow.service, flow.conn_state, flow.orig_ip_bytes, flow.resp_pkts) == ("ssl", "SF", 900, 4)


def test_other_events():
    stats = BusEvent("t", "Tapline::stats", [1, "s", *range(13), -1.0])
    assert parse_event(stats) == Stats("s", *range(13), -1.0)
    assert parse_event(BusEvent("t", "Tapline::finished", [1, "s", 9])) == Finished("s", 9)
    assert parse_event(BusEvent("t", "Tapline::verdicts_ack", [1, "me", 3, 50])) == VerdictsAck("me", 3, 50)
    assert parse_event(BusEvent("t", "Other::event", [])) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"a1": 5}, "Tapline::flow: Expected `str`, got `int` - at `sensor`"),
        ({"a3": 1}, "Tapline::flow: Expected `bool`, got `int` - at `final`"),
        ({"a5": True}, "Tapline::flow: Expected `int`, got `bool` - at `start_us`"),
        ({"a5": -1}, "Tapline::flow: Expected `int` >= 0 - at `start_us`"),
        ({"a20": "1;2"}, "payload_lengths: not numbers with commas between them"),
        ({"a20": "1,0"}, "Tapline::flow: expected lengths of packets with payload, got 0 - at `$.payload_lengths`"),
        ({"a20": "1,4294967296"}, "payload_lengths: Expected `int` <= 2147483647 - at `$[1]`"),
        ({"a20": ",".join(["1"] * 255)}, "payload_lengths: Expected `array` of length <= 254"),
        ({"a21": "zz"}, "orig_bytes: not hex"),
        ({"a22": "00" * 257}, "resp_bytes: more than 256 bytes"),
        ({"a24": "all"}, "Tapline::flow: Invalid value - at `heads_kind`"),
        ({"a2": 10**400}, "Tapline::flow: Expected `int` <= 9007199254740991 - at `seq`"),
        ({"a4": "C" * 129}, "Tapline::flow: Expected `str` of length <= 128 - at `uid`"),
        ({"a4": ""}, "Tapline::flow: Expected `str` of length >= 1 - at `uid`"),
        ({"a7": "fe80::1%eth0"}, "Tapline::flow: expected an IPv4 or IPv6 address - at `$.orig_h`"),
        ({"a9": "example.org"}, "Tapline::flow: expected an IPv4 or IPv6 address - at `$.resp_h`"),
        ({"a8": 70000}, "Tapline::flow: Expected `int` <= 65535 - at `orig_p`"),
        (
            {"a11": "sctp"},
            "Tapline::flow: expected `tcp`, `udp`, `icmp` or an IP protocol number up to 255 - at `$.proto`",
        ),
        ({"a20": "[" * 100_000}, "payload_lengths: Expected `int`, got `array` - at `$[0]`"),
        ({"a25": "aabb"}, "heads: not gap_us:hex with semicolons between them"),
        ({"a25": "-1:aa"}, "heads: not gap_us:hex with semicolons between them"),
        ({"a25": ";".join(["0:" + "00" * 245] * 3)}, "heads: more than fill 510 tokens"),
    ],
)
def test_faults_are_named(changes, message):
    with pytest.raises(EventError) as error:
        parse_event(flow_event(**changes))
    assert str(error.value) == message


def test_too_few_fields():
    with pytest.raises(EventError, match="25 fields instead of 26"):
        parse_event(BusEvent("t", "Tapline::flow", FLOW_ARGS[:-1]))
    with pytest.raises(EventError, match="no schema version"):
        parse_event(BusEvent("t", "Tapline::flow", []))


def test_another_schema_version_is_refused_with_a_sentence():
    with pytest.raises(SchemaVersionError, match="Tapline::flow of schema version 2: this service reads version 1"):
        parse_event(flow_event(a0=2))
    with pytest.raises(SchemaVersionError, match="of schema version unknown to us"):
        parse_event(flow_event(a0=10**5000))


def test_outgoing_verdicts_as_zeek_reads_them():
    row = VerdictRow("C1", "1:x", "10.0.0.1", 1, "10.0.0.2", 2, "udp", "dns", 0.5, False, True, "m", "1")
    frame = parse_frame(event_frame(verdicts_event("me", 4, [row])))
    assert (frame.type, frame.topic) == ("data-message", "tapline/verdicts")
    event = event_of(frame)
    assert (event.name, event.args[:3]) == ("Tapline::verdicts", [1, 4, "me"])
    kinds = [cell["@data-type"] for cell in event.args[3][0]["data"]]
    assert kinds == [
        "string", "string", "address", "count", "address", "count", "string", "string", "real", "boolean", "boolean",
        "string", "string",
    ]  # fmt: skip


def test_the_confirmation_of_the_end():
    event = event_of(parse_frame(event_frame(finished_ack_event("tap-1"))))
    assert (event.topic, event.name, list(event.args)) == ("tapline/control", "Tapline::finished_ack", [1, "tap-1"])


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"{",
        b"[" * 100_000,
        b'{"type":"ack","data":' + b'[{"data":' * 5000,
        b'{"type":5}',
        b"\xff\xfe",
        b'{"type":"data-message","data":[{"data":1}]}',
    ],
)
def test_frames_that_are_none(text):
    with pytest.raises(EventError):
        event_of(parse_frame(text))
