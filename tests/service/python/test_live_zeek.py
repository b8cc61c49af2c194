"""`tapline.stream` beside a real Zeek that watches the loopback interface."""

import asyncio
import os
import shutil
import socket
import subprocess

import pytest

import tapline
from tests.paths import ROOT
from tests.zeek.clusters import zeek_version

pytestmark = [
    pytest.mark.zeek,
    pytest.mark.whole,
    pytest.mark.skipif(shutil.which("zeek") is None, reason="no zeek on PATH"),
    pytest.mark.skipif(os.geteuid() != 0, reason="capturing takes root"),
]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


async def talk():
    """Flows over the loopback interface, until cancelled."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        while True:
            sender.sendto(b"hello", ("127.0.0.1", 9))
            await asyncio.sleep(0.2)


async def first(url, wanted):
    async with asyncio.timeout(120), tapline.stream(url) as live:
        talking = asyncio.ensure_future(talk())
        try:
            async for each in live:
                if wanted(each.flow):
                    return each, live.sensors[0].peer_version
        finally:
            talking.cancel()


def test_flows_of_a_live_zeek(tmp_path):
    port = free_port()
    command = ["zeek", "-C", "-i", "lo", str(ROOT / "zeek" / "scripts"), f"Tapline::listen_port={port}/tcp"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as zeek:
        try:
            found, version = asyncio.run(first(f"ws://127.0.0.1:{port}", lambda flow: flow.resp_p == 9))
        finally:
            zeek.terminate()
            zeek.wait(60)
    assert version.startswith(f"{zeek_version()[0]}.")
    assert (found.flow.proto, found.flow.orig_bytes[:5]) == ("udp", b"hello")
    assert found.verdict.model == "flow-protocols"
