"""The flow record's JSON form: a round trip, and one clear sentence for everything else."""

import msgspec
import pytest

from tapline.models.flow import Flow, FlowError, PacketHead, flow_of, flow_to_line, ip_protocol_number, parse_flow
from tapline.service.community_id import community_id

FLOW = Flow(
    uid="CHhAvVGS1DHFjwGM9",
    start_us=1_500_000_000_000_001,
    duration_us=12,
    orig_h="10.0.0.1",
    orig_p=1234,
    resp_h="10.0.0.2",
    resp_p=80,
    proto="tcp",
    up=1,
    down=1,
    payload_lengths=[5, -1448],
    orig_bytes=b"GET /",
    resp_bytes=b"\x00\xff",
    link_type=3,
    heads_kind="header",
    heads=[PacketHead(0, b"\x01\x02"), PacketHead(7, b"")],
)


def line(**changes):
    fields = msgspec.to_builtins(flow_to_line(FLOW, "1:x"))
    return msgspec.json.encode({**fields, **changes})


def test_json_round_trip():
    assert parse_flow(line()) == FLOW


def test_the_name_of_the_server_is_taken_back_and_may_be_absent():
    named = msgspec.structs.replace(FLOW, server_name="a" * 255)
    assert parse_flow(msgspec.json.encode(flow_to_line(named))) == named
    old = msgspec.to_builtins(flow_to_line(FLOW))
    del old["server_name"]
    assert parse_flow(msgspec.json.encode(old)) == FLOW


def test_bytes_are_lower_case_hex():
    assert flow_to_line(FLOW).resp_bytes == "00ff"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"uid": 1}, "Expected `str`, got `int` - at `$.uid`"),
        ({"colour": "red"}, "Object contains unknown field `colour`"),
        ({"orig_h": "example.org"}, "expected an IPv4 or IPv6 address - at `$.orig_h`"),
        ({"payload_lengths": [1, 0]}, "expected lengths of packets with payload, got 0 - at `$.payload_lengths`"),
        ({"payload_lengths": [2**31]}, "Expected `int` <= 2147483647 - at `$.payload_lengths[0]`"),
        ({"payload_lengths": [1] * 255}, "Expected `array` of length <= 254 - at `$.payload_lengths`"),
        ({"orig_bytes": "0"}, "Expected `str` matching regex '^([0-9a-fA-F]{2})*$' - at `$.orig_bytes`"),
        ({"orig_p": 65536}, "Expected `int` <= 65535 - at `$.orig_p`"),
        ({"proto": "300"}, "expected `tcp`, `udp`, `icmp` or an IP protocol number up to 255 - at `$.proto`"),
        ({"proto": "006"}, "expected `tcp`, `udp`, `icmp` or an IP protocol number up to 255 - at `$.proto`"),
        ({"resp_h": "fe80::1%eth0"}, "expected an IPv4 or IPv6 address - at `$.resp_h`"),
        ({"resp_h": "2001:db8::1"}, "expected two addresses of one IP version - at `$.resp_h`"),
        ({"resp_h": "10.0.0.2\0"}, "expected an IPv4 or IPv6 address - at `$.resp_h`"),
        (
            {"heads": [{"gap_us": 0, "data": "00" * 250}] * 2},
            "expected heads that fill at most 510 tokens - at `$.heads`",
        ),
        ({"start_us": 2**53 - 1}, "expected an end up to 9007199254740991 us - at `$.duration_us`"),
        ({"start_us": 2**53}, "Expected `int` <= 9007199254740991 - at `$.start_us`"),
        ({"sensor": "s" * 129}, "Expected `str` of length <= 128 - at `$.sensor`"),
        ({"server_name": "s" * 256}, "Expected `str` of length <= 255 - at `$.server_name`"),
        ({"server_name": None}, "Expected `str`, got `null` - at `$.server_name`"),
        ({"start_us": -1}, "Expected `int` >= 0 - at `$.start_us`"),
    ],
)
def test_bad_fields_are_named(changes, message):
    with pytest.raises(FlowError) as error:
        parse_flow(line(**changes))
    assert str(error.value) == message


@pytest.mark.parametrize("text", [b"{]", b"[" * 100_000, b'{"uid": "\xff"}', b""])
def test_not_json(text):
    with pytest.raises(FlowError):
        parse_flow(text)


@pytest.mark.parametrize(
    "changes",
    [{"orig_p": 70000}, {"payload_lengths": [2**31]}, {"orig_bytes": bytes(257)}, {"proto": "sctp"}, {"uid": ""}],
)
def test_flows_made_of_fields_and_flows_decoded_have_the_same_bounds(changes):
    fields = msgspec.structs.asdict(FLOW)
    assert flow_of(fields) == FLOW
    with pytest.raises(FlowError):
        flow_of({**fields, **changes})
    if "proto" not in changes:  # a field's own bounds hold wherever a flow is decoded
        with pytest.raises(msgspec.ValidationError):
            msgspec.msgpack.decode(msgspec.msgpack.encode(msgspec.structs.replace(FLOW, **changes)), type=Flow)


def test_protocol_numbers():
    assert [ip_protocol_number("icmp", address) for address in ("10.0.0.1", "fe80::1")] == [1, 58]
    assert [ip_protocol_number(proto, "10.0.0.1") for proto in ("tcp", "udp", "89")] == [6, 17, 89]


def test_community_id_of_the_specification():
    # github.com/corelight/community-id-spec, baseline: TCP 128.232.110.120:34855 -> 66.35.250.204:80
    flow = Flow("x", 0, 0, "128.232.110.120", 34855, "66.35.250.204", 80, "tcp")
    assert community_id(flow) == "1:LQU9qZlK+B5F3KDmev6m5PMibrg="
    back = Flow("x", 0, 0, "66.35.250.204", 80, "128.232.110.120", 34855, "tcp")
    assert community_id(back) == community_id(flow)
