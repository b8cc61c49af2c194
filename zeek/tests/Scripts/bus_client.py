"""A small bus client for the tests: prints each event as a line of JSON, answers the end marker, sends verdicts.

A batch of flows is printed without its packed argument, then each of its flows as an event `Tapline::flow`: with the
arguments of version 1, and the server's name behind them.

usage: bus_client.py PORT TOPIC... [--verdicts] [--traces] [--record FILE] [--drain] [--seconds N]
                     [--lines] [--earlier] [--ca FILE] [--certificate FILE]
"""

from __future__ import annotations

import argparse
import json
import runpy
import ssl
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

decode_flows = runpy.run_path(str(Path(__file__).resolve().parents[3] / "docs" / "decode_flows.py"))["decode_flows"]

VERSION = 1
LINES_VERSION = 2
PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmp"}
HEADS_KINDS = ["none", "header", "full"]
SERVICE = "test-1"
TRACE_SERVICE = "test-2"


def tagged(kind: str, value: Any) -> dict[str, Any]:
    """A value as Zeek's JSON has it."""
    return {"@data-type": kind, "data": value}


def event_frame(topic: str, name: str, arguments: list[dict[str, Any]]) -> str:
    """An event as a client sends it."""
    body = [
        tagged("count", 1),
        tagged("count", 1),
        tagged("vector", [tagged("string", name), tagged("vector", arguments)]),
    ]
    return json.dumps({"type": "data-message", "topic": topic, "@data-type": "vector", "data": body})


def flows_of(batch: list[Any]) -> Iterator[list[Any]]:
    """The flows of a batch, each with the arguments that version 1 gave it and the server's name."""
    version, sensor, seq, count, packed = batch
    flows = list(decode_flows(packed))
    if len(flows) != count:
        sys.exit(f"a batch of {count} flows holds {len(flows)}")
    for i, f in enumerate(flows):
        heads = ";".join(f"{gap_us}:{head.hex()}" for gap_us, head in f["heads"])
        yield [
            *(version, sensor, seq + i, bool(f["flags"] & 1), f["uid"], f["start_us"], f["duration_us"]),
            *(str(f["orig_h"]), f["orig_p"], str(f["resp_h"]), f["resp_p"]),
            *(PROTOCOLS.get(f["protocol"], str(f["protocol"])), f["service"], f["conn_state"]),
            *(f["orig_pkts"], f["resp_pkts"], f["orig_ip_bytes"], f["resp_ip_bytes"], f["up"], f["down"]),
            *(",".join(map(str, f["payload_lengths"])), f["orig_bytes"].hex(), f["resp_bytes"].hex()),
            *(f["link_type"], HEADS_KINDS[f["heads_kind"]], heads, f["server_name"]),
        ]


def verdict_of(flow: list[Any]) -> dict[str, Any]:
    """A verdict on a flow event's arguments: what a service would send, with a label by its responder's port."""
    values = [
        tagged("string", flow[4]),
        tagged("string", f"1:{flow[7]}-{flow[9]}"),
        tagged("address", flow[7]),
        tagged("count", flow[8]),
        tagged("address", flow[9]),
        tagged("count", flow[10]),
        tagged("string", flow[11]),
        tagged("string", f"port-{flow[10]}"),
        tagged("real", 0.75),
        tagged("boolean", flow[10] == 53),
        tagged("boolean", flow[3]),
        tagged("string", "test-model"),
        tagged("string", "3"),
    ]
    return tagged("vector", values)


def line_of(verdict: dict[str, Any]) -> dict[str, Any]:
    """The same in a line."""
    values = [value["data"] for value in verdict["data"]]
    return tagged("string", "|".join("FT"[value] if isinstance(value, bool) else str(value) for value in values))


def trace_verdict_of(flow: list[Any], earlier: bool = False) -> dict[str, Any]:
    """A verdict on the trace of a flow's originator, as a service would send one, with a label by the flow's port.

    Suspicion is told of all but port 123; an `earlier` service knows of none.
    """
    values = [
        tagged("string", flow[7]),
        tagged("string", "originator"),
        tagged("count", flow[5]),
        tagged("count", flow[5] + 600_000_000),
        tagged("count", 2),
        tagged("count", 1),
        tagged("string", f"port-{flow[10]}"),
        tagged("real", 0.95),
        tagged("boolean", flow[10] == 53),
        tagged("boolean", flow[3]),
        tagged("vector", [tagged("string", flow[4]), tagged("string", "C2")]),
        tagged("vector", [tagged("real", 0.75), tagged("real", 0.25)]),
        tagged("string", "test-traces"),
        tagged("string", "4"),
    ]
    if not earlier:
        is_bad = flow[10] in (22, 53)
        told = [tagged("real", 0.97 if is_bad else 0.25), tagged("boolean", is_bad)]
        values += [tagged("none", {}), tagged("none", {})] if flow[10] == 123 else told
    return tagged("vector", values)


class Client:
    """One connection to Zeek, and what to do with what it sends."""

    def __init__(self, connection: ClientConnection, options: argparse.Namespace, record: TextIO | None) -> None:
        self.connection = connection
        self.options = options
        self.record = record
        self.batch = {"verdicts": 0, "verdict_lines": 0, "trace_verdicts": 0}
        self.unacknowledged = 0
        self.end: list[Any] | None = None

    def send(self, frame: str) -> None:
        self.note("client", frame)
        self.connection.send(frame)

    def note(self, side: str, frame: str) -> None:
        if self.record is not None:
            self.record.write(json.dumps({"from": side, "frame": frame}) + "\n")
            self.record.flush()

    def send_verdicts(self, kind: str, service: str, verdict: dict[str, Any]) -> None:
        """A batch of one verdict; the first two go out twice, as after a lost acknowledgement."""
        self.batch[kind] += 1
        arguments = [
            tagged("count", LINES_VERSION if kind == "verdict_lines" else VERSION),
            tagged("count", self.batch[kind]),
            tagged("string", service),
            verdict if kind == "verdict_lines" else tagged("vector", [verdict]),
        ]
        frame = event_frame("tapline/verdicts", f"Tapline::{kind}", arguments)
        for _ in range(2 if self.batch[kind] <= 2 else 1):
            self.unacknowledged += 1
            self.send(frame)

    def handle(self, topic: str, name: str, arguments: list[Any]) -> None:
        """Print an event and answer it."""
        if not self.options.drain:
            shown = arguments[:-1] if name == "Tapline::flows" else arguments
            print(json.dumps([topic, name, *shown]), flush=True)
        if name == "Tapline::flows":
            for flow in flows_of(arguments):
                self.handle(topic, "Tapline::flow", flow)
        elif name == "Tapline::flow":
            if self.options.lines:
                self.send_verdicts("verdict_lines", SERVICE, line_of(verdict_of(arguments)))
            elif self.options.verdicts:
                self.send_verdicts("verdicts", SERVICE, verdict_of(arguments))
            if self.options.traces:
                self.send_verdicts("trace_verdicts", TRACE_SERVICE, trace_verdict_of(arguments, self.options.earlier))
        elif name == "Tapline::verdicts_ack":
            self.unacknowledged -= 1
        elif name == "Tapline::finished":
            self.end = [tagged("count", VERSION), tagged("string", arguments[1])]
        if self.end is not None and self.unacknowledged == 0:
            self.send(event_frame("tapline/control", "Tapline::finished_ack", self.end))
            self.end = None

    def run(self) -> None:
        """Read until Zeek closes the connection or the time is over."""
        self.send(json.dumps(self.options.topics))
        deadline = time.monotonic() + self.options.seconds
        try:
            while (left := deadline - time.monotonic()) > 0:
                frame = self.connection.recv(timeout=left)
                if self.options.drain and '"Tapline::finished"' not in frame:
                    continue
                self.note("zeek", frame)
                message = json.loads(frame)
                if message["type"] != "data-message":
                    continue
                name, arguments = (part["data"] for part in message["data"][2]["data"][:2])
                self.handle(message["topic"], name, [argument["data"] for argument in arguments])
        except (ConnectionClosed, TimeoutError):
            pass


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=lambda text: int(text.split("/")[0]))
    parser.add_argument("topics", nargs="+")
    parser.add_argument("--verdicts", action="store_true")
    parser.add_argument("--lines", action="store_true", help="verdicts in lines")
    parser.add_argument("--traces", action="store_true")
    parser.add_argument("--earlier", action="store_true", help="as a service that knows of no suspicion")
    parser.add_argument("--drain", action="store_true")
    parser.add_argument("--record", type=argparse.FileType("w"))
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--ca", help="speak TLS and trust this CA")
    parser.add_argument("--certificate", help="certificate and key of the client")
    options = parser.parse_args()
    context = None
    if options.ca:
        context = ssl.create_default_context(cafile=options.ca)
        if options.certificate:
            context.load_cert_chain(options.certificate)
    deadline = time.monotonic() + options.seconds
    while True:
        try:
            with connect(
                f"{'wss' if context else 'ws'}://127.0.0.1:{options.port}/v1/messages/json",
                ssl=context,
                additional_headers={"X-Application-Name": "tapline-test"},
                max_size=None,
            ) as connection:
                Client(connection, options, options.record).run()
            return
        except OSError:
            if time.monotonic() > deadline:
                sys.exit("no Zeek listens there")
            time.sleep(0.1)


if __name__ == "__main__":
    main()
