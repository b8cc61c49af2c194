"""Fuzzes `POST /v1/classify/flows`: real flows, mutated field by field and in their structure, with addresses that stay
valid, so that what comes is mostly taken and reaches the models."""

from __future__ import annotations

import atexit
import functools
import ipaddress
import json
import math
import random
from collections.abc import Callable
from typing import Any

import msgspec
from fastapi.testclient import TestClient

from tapline.models.flow import MAX_COUNT, MAX_PAYLOAD_LENGTH, MAX_PAYLOAD_LENGTHS, flow_to_line
from tapline.service.api.app import create_app
from tapline.service.runtime import Service
from tapline.service.settings import Settings
from tapline.service.sources.capture import CaptureReader, ReadOptions
from tests.paths import DATA

CAPTURE = DATA / "captures" / "android.pcap"
MOST_FLOWS = 12
_COUNTS = ("start_us", "duration_us", "up", "down", "orig_pkts", "resp_pkts", "orig_ip_bytes", "resp_ip_bytes")
_TEXTS = ("uid", "service", "conn_state", "sensor", "community_id")
_WRONG: list[Any] = [
    None, True, -1, 1.5, 2**63, 10**400, "", "x" * 200, [], {}, [[]], {"a": {"b": {}}}, "\x00", "::1%eth0", "256.1.1.1",
    "\ud800", [None] * 300, float("nan"),
]  # fmt: skip


@functools.cache
def client() -> TestClient:
    """The API of one service, for as long as the process lives."""
    asked = TestClient(create_app(Service(Settings(history="none"))), "http://127.0.0.1")
    asked.__enter__()
    atexit.register(asked.__exit__, None, None, None)
    return asked


@functools.cache
def real_flows() -> list[dict[str, Any]]:
    """Flows of a bundled capture in JSON, with heads."""
    return [msgspec.to_builtins(flow_to_line(flow)) for flow in CaptureReader(CAPTURE, ReadOptions(heads="header"))]


def case(generator: random.Random) -> None:
    """One request.

    Raises:
        AssertionError: an answer that says something wrong; whatever the service itself raises comes out, too.
    """
    flows = [json.loads(json.dumps(generator.choice(real_flows()))) for _ in range(generator.randrange(MOST_FLOWS))]
    for flow in flows:
        for _ in range(generator.randrange(4)):
            generator.choice(_VALID)(flow, generator)
    harm = generator.choice([None, None, _wrong_value, _wrong_field, _wrong_text])
    text = json.dumps({"flows": flows}, indent=generator.choice([None, 1]), ensure_ascii=generator.random() < 0.5)
    if harm is not None:
        text = harm(flows, text, generator)
    answer = client().post(
        "/v1/classify/flows",
        content=text.encode("utf-8", "surrogatepass"),
        headers={"content-type": "application/json"},
    )
    body = answer.json()
    if answer.status_code == 200:
        _check(body, flows if harm is None else None)
    else:
        assert answer.status_code in (413, 422), (answer.status_code, text)
        assert harm is not None, (body, text)
        assert set(body) == {"error"}
        assert len(answer.content) < 4096, "the error is as long as what it is about"


def _check(body: dict[str, Any], sent: list[dict[str, Any]] | None) -> None:
    """Every flow is in the account, and every verdict is one; `sent` where it is known what was."""
    summary = body["summary"]
    left_out = summary["without_payload"] + summary["below_min_packets"]
    assert summary["failed"] == 0, "the engine failed on a flow"
    assert summary["classified"] + left_out == summary["flows"] == summary["inputs"][0]["flows"]
    assert len(body["flows"]) == summary["classified"]
    if sent is not None:
        assert summary["flows"] == len(sent)
        assert {flow["uid"] for flow in body["flows"]} <= {flow["uid"] for flow in sent}
    for found in (*body["flows"], *body["traces"]):
        assert math.isfinite(found["verdict"]["confidence"])
        assert 0 <= found["verdict"]["confidence"] <= 1
    for trace in body["traces"]:
        assert sum(flow["share"] for flow in trace["top_flows"]) <= 1.001


def _address(flow: dict[str, Any], generator: random.Random) -> None:
    if generator.random() < 0.5:
        ends = [str(ipaddress.IPv4Address(generator.choice([0, 2**32 - 1, generator.getrandbits(32)]))) for _ in "ab"]
    else:
        numbers = [generator.choice([0, 1, 0xFFFF << 32 | 1, 2**128 - 1, generator.getrandbits(128)]) for _ in "ab"]
        form = generator.choice(["compressed", "exploded"])
        ends = [getattr(ipaddress.IPv6Address(number), form) for number in numbers]
    flow["orig_h"], flow["resp_h"] = (end.upper() if generator.random() < 0.2 else end for end in ends)


def _port(flow: dict[str, Any], generator: random.Random) -> None:
    flow[generator.choice(["orig_p", "resp_p"])] = generator.choice([0, 53, 443, 65535, generator.randrange(65536)])


def _protocol(flow: dict[str, Any], generator: random.Random) -> None:
    flow["proto"] = generator.choice(["tcp", "udp", "icmp", "0", "255", str(generator.randrange(256))])


def _count(flow: dict[str, Any], generator: random.Random) -> None:
    flow["start_us"] = flow["duration_us"] = 0  # their sum has a bound, too
    flow[generator.choice(_COUNTS)] = generator.choice([0, 1, MAX_COUNT, generator.randrange(MAX_COUNT)])


def _lengths(flow: dict[str, Any], generator: random.Random) -> None:
    most = generator.choice([1, 1500, 65536, MAX_PAYLOAD_LENGTH])
    count = generator.choice([0, 1, 3, MAX_PAYLOAD_LENGTHS])
    flow["payload_lengths"] = [generator.choice([1, -1]) * generator.randint(1, most) for _ in range(count)]


def _content(flow: dict[str, Any], generator: random.Random) -> None:
    flow[generator.choice(["orig_bytes", "resp_bytes"])] = generator.randbytes(generator.choice([0, 1, 256])).hex()


def _heads(flow: dict[str, Any], generator: random.Random) -> None:
    flow["heads_kind"] = generator.choice(["none", "header", "full"])
    sizes = generator.choice([[], [500], [0], [41] * 10, [0] * 51, [generator.randrange(200)]])
    heads = [{"gap_us": generator.choice([0, MAX_COUNT]), "data": generator.randbytes(size).hex()} for size in sizes]
    flow["heads"] = heads
    flow["link_type"] = generator.randrange(256)


def _text(flow: dict[str, Any], generator: random.Random) -> None:
    flow[generator.choice(_TEXTS)] = generator.choice(
        ["a", "x" * 128, "ü\u202e\x1b[31m", "[red]", "=1+1", '"\\', "\U0001f600"]
    )


def _less(flow: dict[str, Any], generator: random.Random) -> None:
    needed = ("uid", "start_us", "orig_h", "orig_p", "resp_h", "resp_p", "proto")
    flow.pop(generator.choice([name for name in flow if name not in needed] or ["none"]), None)


_VALID: list[Callable[[dict[str, Any], random.Random], None]] = [
    _address, _port, _protocol, _count, _lengths, _content, _heads, _text, _less,
]  # fmt: skip


def _wrong_value(flows: list[dict[str, Any]], text: str, generator: random.Random) -> str:
    if not flows:
        return json.dumps({"flows": generator.choice(_WRONG)})
    flow = generator.choice(flows)
    flow[generator.choice(list(flow))] = generator.choice(_WRONG)
    return json.dumps({"flows": flows})


def _wrong_field(flows: list[dict[str, Any]], text: str, generator: random.Random) -> str:
    parts: list[Any] = [*flows, *generator.sample(_WRONG, 2)]
    generator.shuffle(parts)
    return json.dumps(generator.choice([{"flows": parts}, parts, {"flows": flows, "more": 1}, {"flow": flows}]))


def _wrong_text(flows: list[dict[str, Any]], text: str, generator: random.Random) -> str:
    for _ in range(generator.randint(1, 3)):
        at, until = sorted((generator.randrange(len(text) + 1), generator.randrange(len(text) + 1)))
        piece = generator.choice(["", "{", "}", "[", "]", '"', ",", "\\", "0", "null", text[at : at + 40], "[" * 5000])
        text = text[:at] + piece + text[at if generator.random() < 0.7 else until :]
    return text
