"""Frames of the bus: events with fields out of bounds, of other types, nested, and frames that are spoiled as bytes.

Whatever comes in, the source refuses and counts it, never fails by it, and a flow that it takes can be encoded, named
and returned.
"""

from __future__ import annotations

import random
from typing import Any

import msgspec

from tapline.models.encode import Mm4flowFeatures, encode
from tapline.models.flow import Flow, check_flow, flow_to_line, parse_flow
from tapline.models.packet_tokens import encode_packets
from tapline.models.verdict import Verdict
from tapline.service.metrics import Metrics
from tapline.service.sinks.zeek_sink import verdict_row
from tapline.service.sources.bus.answers import verdicts_event
from tapline.service.sources.bus.events import BusEvent, EventError
from tapline.service.sources.bus.source import MAX_SENSORS, MAX_TOPICS, BusSource
from tapline.service.sources.bus.websocket_frames import event_frame, event_of, parse_frame
from tests.fuzz.mutation import EDGES, spoil
from tests.logged import capture_logs

FLOW = [
    1, "tap-1", 7, False, "CUid", 1_700_000_000_000_000, 250, "10.0.0.1", 4242, "10.0.0.2", 443, "tcp", "ssl", "SF",
    5, 4, 900, 800, 2, 1, "517,-1448,64", "160301", "", 3, "header", "0:aabb;12:cc",
]  # fmt: skip
EVENTS = [
    ("tapline/flows/0", "Tapline::flow", FLOW),
    ("tapline/stats", "Tapline::stats", [1, "tap-1", *range(13), 0.5]),
    ("tapline/stats", "Tapline::finished", [1, "tap-1", 9]),
    ("tapline/acks", "Tapline::verdicts_ack", [1, "me", 3, 50]),
]
TEXTS = (
    "", "x" * 129, "x" * 100_000, "fe80::1%eth0", "::1", "2001:db8::1", "10.0.0.01", "1,2,,3", "0", "-0", "1e5", "true",
    "[1]", "٣", "\x00", "\x1b[2J", "0:" + "ab" * 600, "-1:ab", "zz", "sctp", "255", "256", "none", "full", "NaN",
)  # fmt: skip
NUMBERS = (*EDGES, -1, -(2**63), 10**400, 0.5, -0.0, 1e308)
VERDICT = Verdict("dns", "dns", 0.5, False, [], "model", "1", True)


class NoTransport:
    """Stands where a connection would be."""

    url = "ws://192.0.2.1:1"


_metrics = Metrics()


def case(random: random.Random) -> None:
    """Give one source some frames, most of them wrong."""
    flows: list[Flow] = []
    source = BusSource(NoTransport(), _metrics, flows.append)  # type: ignore[arg-type]
    with capture_logs():
        for _ in range(20):
            source._receive(_incoming(frame(random)))
    assert source.state.faults == 0
    assert len(source.state.sensors) <= MAX_SENSORS + 1
    assert all(len(sensor.last_seq) <= MAX_TOPICS for sensor in source.state.sensors.values())
    for flow in flows:
        check_flow(flow)
        assert parse_flow(msgspec.json.encode(flow_to_line(flow))) == flow
        event_frame(verdicts_event("me", 1, [verdict_row(flow, VERDICT)]))
    encode(flows, Mm4flowFeatures())
    encode_packets(flows)


def _incoming(text: bytes) -> BusEvent | EventError:
    try:
        return event_of(parse_frame(text))
    except EventError as error:
        return error


def frame(random: random.Random) -> bytes:
    """A frame, most likely a wrong one."""
    topic, name, args = random.choice(EVENTS)
    args = list(args)
    for _ in range(random.choice((0, 1, 1, 1, 3))):
        _change(args, random)
    if random.random() < 0.1:
        topic = random.choice(TEXTS)
    text = msgspec.json.encode(
        {"type": "data-message", "topic": topic, "data": [{"data": 1}, {"data": 1}, _vector(name, args)]}
    )
    if random.random() < 0.05:
        text = text.replace(b'"tap-1"', b"[" * 5000 + b"1" + b"]" * 5000)
    return spoil(text, random) if random.random() < 0.3 else text


def _vector(name: str, args: list[Any]) -> dict[str, Any]:
    return {"data": [{"data": name}, {"data": [{"data": arg} for arg in args]}]}


def _change(args: list[Any], random: random.Random) -> None:
    if not args:
        return
    place = random.randrange(len(args))
    how = random.randrange(5)
    if how == 0:
        args[place] = msgspec.Raw(str(random.choice(NUMBERS)).encode())
    elif how == 1:
        args[place] = random.choice(TEXTS)
    elif how == 2:
        args[place] = random.choice((None, True, [], [[1]], {"a": 1}))
    elif how == 3:
        del args[place]
    else:
        args.insert(place, random.choice(TEXTS))
