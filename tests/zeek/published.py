"""What a sensor that replays a capture publishes, as a client gets it."""

import os
import runpy
import subprocess
import tempfile
import time
from pathlib import Path

from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.sync.client import connect

from tapline.service.sources.bus.answers import finished_ack_event
from tapline.service.sources.bus.events import FLOWS_TOPIC, STATS_TOPIC
from tapline.service.sources.bus.websocket_frames import (
    HANDSHAKE_PATH,
    event_frame,
    event_of,
    parse_frame,
    subscription_frame,
)
from tests.paths import ROOT
from tests.zeek.clusters import SCRIPTS, free_ports

decode_flows = runpy.run_path(str(ROOT / "docs" / "decode_flows.py"))["decode_flows"]
DEADLINE_SECONDS = 120


def published(capture, plugin=None, options=()):
    """Every publication by (uid, final), and the last counters; both without times of this machine."""
    (port,) = free_ports(1)
    environment = {name: value for name, value in os.environ.items() if name != "ZEEK_PLUGIN_PATH"}
    if plugin is not None:
        environment["ZEEK_PLUGIN_PATH"] = str(plugin)
    command = ["zeek", "-D", "-C", "-r", str(capture), str(SCRIPTS / "replay.zeek"), *options]
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "said").open("w") as said:
        process = subprocess.Popen(
            [*command, f"Tapline::listen_port={port}/tcp", "Tapline::sensor=s1"],
            cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=said, stderr=said,
        )  # fmt: skip
        try:
            found = _take_all(port, process)
            assert process.wait(DEADLINE_SECONDS) == 0, (Path(folder) / "said").read_text()
        finally:
            process.kill()
            process.wait()
    return found


def _take_all(port, process):
    deadline = time.monotonic() + DEADLINE_SECONDS
    while True:
        try:
            connection = connect(f"ws://127.0.0.1:{port}{HANDSHAKE_PATH}", compression=None, open_timeout=20)
            break
        except (OSError, InvalidHandshake):
            assert process.poll() is None, "Zeek ended"
            assert time.monotonic() < deadline, "Zeek serves no bus"
            time.sleep(0.05)
    flows, stats = {}, []
    with connection:
        connection.send(subscription_frame([FLOWS_TOPIC, STATS_TOPIC]), text=True)
        try:
            while True:
                frame = parse_frame(connection.recv(DEADLINE_SECONDS, decode=False))
                event = event_of(frame) if frame.type == "data-message" else None
                if event is None:
                    continue
                if event.name == "Tapline::flows":
                    for flow in decode_flows(event.args[4]):
                        key = (flow["uid"], bool(flow["flags"] & 1))
                        assert key not in flows, "published twice"
                        flow.pop("size", None)  # of a batch of bytes alone
                        flows[key] = flow
                elif event.name == "Tapline::stats":
                    stats = event.args
                elif event.name == "Tapline::finished":
                    connection.send(event_frame(finished_ack_event(event.args[1])), text=True)
        except ConnectionClosed:
            return flows, stats
