"""Bodies of flows that are read piece by piece: any pieces give the same; faults, sizes and counts have bounds."""

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapline.models.flow import parse_flow
from tapline.service.api.bodies import MAX_FLOW_BYTES, FlowsBody
from tapline.service.api.desk import Desk
from tapline.service.api.errors import ApiError
from tapline.service.api.schemas import MAX_FLOWS

FLOW = {
    "uid": 'a"{[\\', "start_us": 1, "orig_h": "192.0.2.1", "orig_p": 1, "resp_h": "192.0.2.2", "resp_p": 2,
    "proto": "tcp", "heads_kind": "header", "heads": [{"gap_us": 0, "data": "00"}, {"gap_us": 1, "data": "0102"}],
    "service": "}]ü",
}  # fmt: skip
TEXT = json.dumps(FLOW)


def read(*pieces):
    body = FlowsBody()
    for piece in pieces:
        body.feed(piece)
    return body.end()


def message(*pieces):
    with pytest.raises(ApiError) as caught:
        read(*pieces)
    assert caught.value.status_code == 422
    return caught.value.detail


@given(st.lists(st.integers(1, 50), min_size=1), st.booleans(), st.integers(0, 3))
def test_the_pieces_do_not_matter(steps, ascii_only, count):
    text = json.dumps({"flows": [FLOW] * count}, ensure_ascii=ascii_only, indent=1).encode()
    pieces, at = [], 0
    while at < len(text):
        step = steps[len(pieces) % len(steps)]
        pieces.append(text[at : at + step])
        at += step
    assert read(*pieces) == [parse_flow(TEXT)] * count


@pytest.mark.parametrize(
    "body",
    [
        "", "null", "[]", "{}", '{"flows": 5}', '{"flows": null}', '{"flows": {}}', '{"flow": []}', '{"flows": []',
        '{"flows": []}}', '{"flows": []} x', '{"flows": [], "more": 1}', "\ufeff" + '{"flows": []}', '{"flows": [1]}',
        '{"flows": [%s,]}', '{"flows": [,%s]}', '{"flows": [%s %s]}', '{"flows": [%s', '{"flows": [%s]',
        '{"flows": ["%s"]}',
        '{"flows": [[%s]]}', '{"flows": [{"uid": {"uid": {"uid": {}}}}]}', '{"flows": [{]}', '{"flows": [{"uid": "]}',
    ],
)  # fmt: skip
def test_what_is_no_list_of_flows(body):
    assert message(body.replace("%s", TEXT).encode())


def test_faults_are_named_and_no_more_than_a_few_looked_for():
    bad = TEXT.replace('"orig_p": 1', '"orig_p": 70000')
    assert message(f'{{"flows": [{TEXT}, {bad}, {TEXT}]}}'.encode()).startswith("flows.1: Expected `int` <= 65535")
    body = FlowsBody()
    with pytest.raises(ApiError) as caught:
        body.feed(('{"flows": [' + ", ".join([bad] * 100)).encode())  # and goes on for ever
    assert [part.split(":")[0] for part in caught.value.detail.split("; ")] == [f"flows.{index}" for index in range(5)]
    assert body.flows == []


def test_bounds():
    long = TEXT.replace('"tcp"', '"' + "x" * MAX_FLOW_BYTES + '"')
    assert "at most 64 KiB" in message(f'{{"flows": [{long}]}}'.encode())
    assert "at most 64 KiB" in message(b'{"flows": [' + b"0, " * MAX_FLOW_BYTES)
    assert "at most 64 KiB" in message(b'{"flows": [' + b"[" * MAX_FLOW_BYTES)
    assert message(b" " * MAX_FLOW_BYTES + b" ")
    assert message(b'{"flows": []' + b" " * MAX_FLOW_BYTES + b" ")
    many = [f'{{"flows": [{TEXT}'.encode(), *[f", {TEXT}".encode()] * MAX_FLOWS]
    assert f"at most {MAX_FLOWS} flows" in message(*many, b"]}")
    assert len(read(*many[:-1], b"]}")) == MAX_FLOWS
    assert message(TEXT.encode("utf-16")) == message(b"no")
    assert message(b'{"flows": [' + TEXT.encode("iso-8859-1").replace(rb"\u00fc", b"\xfc") + b"]}").startswith(
        "flows.0: "
    )


def test_deep_nesting_costs_its_flow_alone():
    deep = '{"uid": ' + "[" * 30_000 + "]" * 30_000 + "}"
    assert message(f'{{"flows": [{deep}]}}'.encode()).startswith("flows.0: ")


def test_text_that_is_built_to_be_slow_is_not():
    """No pattern goes back over what it has read: the work follows the size."""
    for piece in (b'{"', b'"\\', b'{"a":"', b"{}", b'{"a":{', b'\\"'):
        assert message(b'{"flows": [{' + piece * (MAX_FLOW_BYTES // len(piece)))


def test_bodies_in_memory_have_a_bound():
    desk = Desk(100)
    with desk.seat() as seat:
        seat.hold(60)
        with desk.seat() as other:
            other.hold(40)
            with pytest.raises(ApiError, match="come again"):
                other.hold(1)
        seat.hold(40)
    assert desk.held_bytes == 0
    desk.close()


def test_whatever_comes_is_read_or_refused():
    generator = random.Random(5)
    alphabet = b'{}[]",:\\ \n0a\xff'
    refused = 0
    for _ in range(300):
        try:
            read(b'{"flows": [', bytes(generator.choices(alphabet, k=generator.randrange(60))))
        except ApiError:
            refused += 1
    assert refused > 250
