"""The documented decoder gives the flows of a batch as they were packed, and says what is wrong with a broken one."""

import ast
import asyncio
import base64
import json
import runpy
import subprocess
import sys

import pytest

from tapline.models.flow import Flow, PacketHead
from tapline.service.sources.bus.websocket_frames import event_frame
from tests.batches import flow_event, flow_text, flows_event, pack_batch, pack_flow
from tests.paths import ROOT
from tests.service.sources.bus.sensors import WebSocketSensor

DECODER = ROOT / "docs" / "decode_flows.py"
decode_flows = runpy.run_path(str(DECODER))["decode_flows"]

FIRST = Flow(
    "Cuid", 1_700_000_000_000_000, 250, "10.0.0.1", 4242, "10.0.0.2", 443, "tcp", 2, 1, [517, -1448], b"\x16\x03\x01",
    b"\xff", 5, 4, 900, 800, 3, "header", [PacketHead(0, b"\xaa\xbb"), PacketHead(12, b"\xcc")], "ssl", "SF", "tap-1",
    True, "a.example",
)  # fmt: skip
SECOND = Flow("C2", 1, 2**40, "2001:db8::1", 128, "2001:db8::2", 129, "icmp")


@pytest.mark.parametrize("compressed", [False, True])
def test_a_batch(compressed):
    batch = pack_batch([pack_flow(FIRST, b"of a later version"), pack_flow(SECOND)], compressed=compressed)
    first, second = decode_flows(batch)
    assert {**first, "orig_h": str(first["orig_h"]), "resp_h": str(first["resp_h"])} == {
        "size": 120 + 2 * 4 + 2 * 10 + 3 + 4 + 4 + 3 + 2 + 9 + 18,
        "flags": 1,
        "protocol": 6,
        "link_type": 3,
        "heads_kind": 1,
        "orig_h": "10.0.0.1",
        "orig_p": 4242,
        "resp_h": "10.0.0.2",
        "resp_p": 443,
        "start_us": 1_700_000_000_000_000,
        "duration_us": 250,
        "orig_pkts": 5,
        "resp_pkts": 4,
        "orig_ip_bytes": 900,
        "resp_ip_bytes": 800,
        "up": 2,
        "down": 1,
        "uid": "Cuid",
        "service": "ssl",
        "conn_state": "SF",
        "server_name": "a.example",
        "payload_lengths": (517, -1448),
        "heads": [(0, b"\xaa\xbb"), (12, b"\xcc")],
        "orig_bytes": b"\x16\x03\x01",
        "resp_bytes": b"\xff",
    }
    assert (str(second["orig_h"]), second["duration_us"], second["flags"]) == ("2001:db8::1", 2**40, 3)


@pytest.mark.parametrize("straight", [True, False])
def test_a_batch_of_text(straight):
    packed = list(decode_flows(pack_batch(map(pack_flow, [FIRST, SECOND]))))
    text = "".join("|" + flow_text(flow, straight=straight, behind=",7,[8]") for flow in (FIRST, SECOND))
    for of_bytes, of_text in zip(packed, decode_flows(text), strict=True):
        del of_bytes["size"]
        assert of_text == of_bytes


def lines(text):
    return [json.loads(line) for line in text.splitlines()]


def test_messages_on_the_standard_input():
    sent = [
        b'{"type":"ack","endpoint":"x","version":"8.0.10"}',
        event_frame(flow_event(FIRST, 1)),  # format 1: none of its business
        event_frame(flows_event([FIRST, SECOND], 2)),
        event_frame(flows_event([SECOND], 4, text=True)),
    ]
    done = subprocess.run(
        [sys.executable, DECODER], input=b"\n".join(sent), capture_output=True, check=True, timeout=60
    )
    assert [flow["uid"] for flow in lines(done.stdout)] == ["Cuid", "C2", "C2"]
    first = lines(done.stdout)[0]
    assert (first["payload_lengths"], first["heads"], first["orig_bytes"]) == (
        [517, -1448], [[0, "aabb"], [12, "cc"]], "160301",
    )  # fmt: skip


def test_a_live_socket():
    async def main():
        async with asyncio.timeout(60), WebSocketSensor().running() as sensor:
            command = [sys.executable, str(DECODER), sensor.url]
            reader = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
            try:
                await sensor.wait_for_client()
                await sensor.publish(flows_event([FIRST], 1))
                return json.loads(await reader.stdout.readline()), sensor.subscriptions
            finally:
                reader.kill()
                await reader.wait()

    flow, subscriptions = asyncio.run(main())
    assert (flow["uid"], flow["server_name"]) == ("Cuid", "a.example")
    assert subscriptions == [["tapline/flows/"]]


def test_it_is_short():
    tree = ast.parse(DECODER.read_text())
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    assert sum(node.end_lineno - node.lineno + 1 for node in functions) <= 60


@pytest.mark.parametrize(
    ("offset", "value", "problem"),
    [
        (0, 2, "compression 2"),
        (4, 0, "has"),
        (8, 119, "119 bytes"),
        (8 + 108, 255, "are needed"),
    ],
)
def test_a_broken_batch(offset, value, problem):
    batch = bytearray(base64.b64decode(pack_batch([pack_flow(FIRST)], compressed=False)))
    batch[offset] = value
    with pytest.raises(ValueError, match=problem):
        list(decode_flows(base64.b64encode(batch).decode()))
