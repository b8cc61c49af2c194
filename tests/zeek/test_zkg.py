"""What `zkg install` leaves serves the bus: with the plugin where it can be built, with the scripts alone where not."""

import asyncio
import shutil
import subprocess
from pathlib import Path

import pytest

from tapline.service.metrics import Metrics
from tapline.service.sources.bus.source import BusSource, make_transport
from tapline.service.sources.bus.transport import TlsFiles
from tapline.service.sources.capture import CaptureReader
from tests.zeek.clusters import TRACES, free_ports
from tests.zeek.test_loading import check, documented
from tests.zeek.zkg import COMPILERS, install, path_without

pytestmark = [
    pytest.mark.zeek,
    pytest.mark.skipif(shutil.which("zeek") is None, reason="no zeek on PATH"),
    pytest.mark.skipif(shutil.which("zkg") is None, reason="no zkg on PATH"),
]
NATIVE = "Tapline::Native"
CAPTURE = TRACES / "tunnel-gre.pcap"
ONLY_AT_THE_END = [f"Tapline::early_{rule}" for rule in ("packets=0", "interval=0sec", "bytes=0")]
REPLAY_SECONDS = 120


def serves_by_zkg(line, folder, environment):
    """Run a documented command in `folder` with what zkg installed, and wait until it serves."""
    Path(folder / "local.zeek").write_text("@load tapline\n")
    check(documented(line), folder, environment)


def plugins(environment):
    """What Zeek says of its plugins."""
    return subprocess.run(["zeek", "-N", NATIVE], env=environment, capture_output=True, text=True, timeout=60).stdout


@pytest.mark.parametrize(
    "line", ["zeek -i eth0 local.zeek", "zeek -i eth0 -O ZAM --optimize-files=/tapline/ local.zeek"]
)
def test_with_the_plugin(line, with_plugin, tmp_path):
    assert NATIVE in plugins(with_plugin)
    serves_by_zkg(line, tmp_path, with_plugin)


async def replayed(folder, environment):
    """The flows of the capture, over the bus of what zkg installed."""
    (port,) = free_ports(1)
    flows = []
    source = BusSource(make_transport(f"ws://127.0.0.1:{port}", TlsFiles()), Metrics(), flows.append)
    receiving = asyncio.create_task(source.run())
    zeek = await asyncio.create_subprocess_exec(
        *("zeek", "-C", "-r", CAPTURE, "tapline/replay", f"Tapline::listen_port={port}/tcp", *ONLY_AT_THE_END),
        cwd=folder,
        env=environment,
    )
    try:
        async with asyncio.timeout(REPLAY_SECONDS):
            await source.end_marker.wait()
            await source.confirm_finished()
            assert await zeek.wait() == 0
    finally:
        if zeek.returncode is None:
            zeek.kill()
            await zeek.wait()
        receiving.cancel()
        await asyncio.gather(receiving, return_exceptions=True)
    return flows


def told(flows):
    """What tells flows apart."""
    return sorted((f.orig_h, f.orig_p, f.resp_h, f.resp_p, f.proto, list(f.payload_lengths)) for f in flows)


def test_the_plugin_publishes_a_captures_flows(with_plugin, tmp_path):
    expected = [flow for flow in CaptureReader(CAPTURE) if len(flow.payload_lengths)]
    assert told(asyncio.run(replayed(tmp_path, with_plugin))) == told(expected)


@pytest.mark.parametrize("name", ["tapline", "a-copy-of-it"])
@pytest.mark.parametrize("missing", [("cmake",), COMPILERS], ids=["no CMake", "no compiler"])
def test_without_what_it_takes_to_build_the_plugin(name, missing, tmp_path):
    environment = install(tmp_path, name, path_without(missing, tmp_path / "programs"))
    (log,) = (tmp_path / "zkg" / "state_dir").rglob("*build.log")
    assert "Tapline's plugin is not built" in log.read_text()
    assert NATIVE not in plugins(environment)
    serves_by_zkg("zeek -i eth0 local.zeek", tmp_path, environment)
