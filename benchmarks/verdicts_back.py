"""Verdicts that are sent back to a Zeek without packets: instructions of each, by valgrind's callgrind."""

from __future__ import annotations

import base64
import os
import random
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from websockets.exceptions import InvalidHandshake
from websockets.sync.client import ClientConnection, connect
from zeek_runs import CONNECT_SECONDS, SCRIPTS, TOTAL, free_port

from tapline.service.sources.bus.answers import VerdictRow
from tapline.service.sources.bus.events import ACKS_TOPIC, BusEvent
from tapline.service.sources.bus.websocket_frames import (
    HANDSHAKE_PATH,
    event_frame,
    event_of,
    parse_frame,
    subscription_frame,
)

BATCH_VERDICTS = 100
BATCHES = (5, 45)
IN_FLIGHT = 8
"""As the service sends them."""

MakeEvent = Callable[[str, int, Sequence[VerdictRow]], BusEvent]


def per_verdict(make_event: MakeEvent, plugin: Path | None) -> tuple[float, float]:
    """Instructions of Zeek and bytes on the bus for each verdict: the slope between two numbers of batches.

    `make_event`: of a form of verdicts. `plugin`: its folder, None for scripts.
    """
    (few, few_bytes), (many, many_bytes) = (_counted(make_event, plugin, batches) for batches in BATCHES)
    verdicts = (BATCHES[1] - BATCHES[0]) * BATCH_VERDICTS
    return (many - few) / verdicts, (many_bytes - few_bytes) / verdicts


def _rows(chance: random.Random) -> list[VerdictRow]:
    def octet() -> int:
        return chance.randrange(256)

    return [
        VerdictRow(
            f"C{chance.getrandbits(96):x}"[:18], f"1:{base64.b64encode(chance.randbytes(20)).decode()}",
            f"10.{octet()}.{octet()}.7", chance.randrange(65536), f"192.168.{octet()}.9", 443, "tcp",
            chance.choice(["TLS", "QUIC", "DNS", "HTTP", "Amazon"]), chance.random(), chance.random() < 0.1, True,
            "flow-protocols", "2",
        )
        for _ in range(BATCH_VERDICTS)
    ]  # fmt: skip


def _connected(port: int, zeek: subprocess.Popen[bytes]) -> ClientConnection:
    deadline = time.monotonic() + CONNECT_SECONDS
    while True:
        try:
            return connect(
                f"ws://127.0.0.1:{port}{HANDSHAKE_PATH}", compression=None, ping_interval=None, open_timeout=60
            )
        except (OSError, InvalidHandshake):
            if zeek.poll() is not None or time.monotonic() > deadline:
                raise SystemExit("zeek did not start") from None
            time.sleep(0.2)


def _counted(make_event: MakeEvent, plugin: Path | None, batches: int) -> tuple[int, int]:
    """Instructions of a Zeek that takes so many batches, its start among them, and the bytes of the frames."""
    chance, port = random.Random(0), free_port()
    environment = {name: value for name, value in os.environ.items() if name != "ZEEK_PLUGIN_PATH"}
    if plugin:
        environment["ZEEK_PLUGIN_PATH"] = str(plugin)
    with tempfile.TemporaryDirectory() as folder:
        profile = Path(folder) / "callgrind.out"
        command = [
            "valgrind", "--tool=callgrind", f"--callgrind-out-file={profile}", "zeek", "-D", str(SCRIPTS),
            "exit_only_after_terminate=T", f"Tapline::listen_port={port}/tcp", "Tapline::stats_interval=0sec",
        ]  # fmt: skip
        with (Path(folder) / "said").open("w") as said:
            zeek = subprocess.Popen(command, cwd=folder, env=environment, stdout=said, stderr=said)
        try:
            with _connected(port, zeek) as connection:
                size = _send(connection, make_event, batches, chance)
                zeek.terminate()
                zeek.wait(120)
        finally:
            zeek.kill()
            zeek.wait()
        lines = [line for line in (Path(folder) / "tapline.log").read_text().splitlines() if not line.startswith("#")]
        if len(lines) != batches * BATCH_VERDICTS:
            raise SystemExit(f"{len(lines)} verdicts are in tapline.log, not {batches * BATCH_VERDICTS}")
        return int(TOTAL.findall(profile.read_text())[-1]), size


def _send(connection: ClientConnection, make_event: MakeEvent, batches: int, chance: random.Random) -> int:
    """Send batches and wait for their acknowledgements; gives the bytes of the frames."""
    connection.send(subscription_frame([ACKS_TOPIC]), text=True)
    size = sent = acknowledged = 0
    while acknowledged < batches:
        while sent < batches and sent - acknowledged < IN_FLIGHT:
            sent += 1
            text = event_frame(make_event("benchmark", sent, _rows(chance)))
            connection.send(text, text=True)
            size += len(text)
        frame = parse_frame(connection.recv(timeout=300, decode=False))
        if frame.type == "data-message" and event_of(frame).name == "Tapline::verdicts_ack":
            acknowledged += 1
    return size
