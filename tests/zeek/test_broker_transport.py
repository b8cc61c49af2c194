"""A Zeek peered with by Broker's own protocol, through the Python bindings: format 2 arrives as by WebSocket.

The bindings come from no package index: those of the Zeek on PATH, or of a Broker as new, must be importable. Debian's,
of Broker 1.4, do not peer with a Zeek that this package works with."""

import asyncio
import os
import shutil

import pytest

from tapline.models.verdict import Verdict
from tapline.service.metrics import Metrics
from tapline.service.sinks.zeek_sink import ZeekSink, verdict_row
from tapline.service.sources.bus.answers import verdicts_event
from tapline.service.sources.bus.source import BusSource, make_transport
from tapline.service.sources.bus.transport import TlsFiles
from tapline.service.sources.capture import CaptureReader
from tests.zeek.clusters import SCRIPTS, TRACES, backend_arguments, backends, free_ports

PLUGIN = os.environ.get("ZEEK_PLUGIN_PATH", "")


def bindings_peer():
    """Whether Broker's bindings are importable and new enough: Broker 2 is another protocol than 1."""
    try:
        from broker import Version
    except ImportError:
        return False
    return Version.MAJOR >= 2


pytestmark = [
    pytest.mark.zeek,
    pytest.mark.skipif(shutil.which("zeek") is None, reason="no zeek on PATH"),
    pytest.mark.skipif("broker" not in backends(), reason="Zeek was built without Broker"),
    pytest.mark.skipif(not bindings_peer(), reason="no Python bindings of Broker 2"),
]
CAPTURE = TRACES / "tunnel-gre.pcap"
ONLY_AT_THE_END = [f"Tapline::early_{rule}" for rule in ("packets=0", "interval=0sec", "bytes=0")]
DEADLINE_SECONDS = 60
PEERING = """
redef Broker::disable_ssl = T;
redef Tapline::listen_port = 0/tcp;

event zeek_init()
	{{
	Broker::listen("127.0.0.1", {port}/tcp);
	}}

# What starts a replay is a client of the WebSocket server; a peer is none.
event Broker::peer_added(endpoint: Broker::EndpointInfo, message: string)
	{{
	event Cluster::websocket_client_added([$id=endpoint$id, $network=endpoint$network], vector());
	}}
"""


async def replayed(folder, environment):
    """The flows of the capture and the account of their sensor, with a verdict on each taken back."""
    (port,) = free_ports(1)
    (folder / "peering.zeek").write_text(PEERING.format(port=port))
    flows, metrics = [], Metrics()
    source = BusSource(make_transport(f"broker://127.0.0.1:{port}", TlsFiles()), metrics, flows.append)
    sink = ZeekSink(source.transport, metrics, 1000, verdicts_event)
    source._take_ack = sink.acknowledge
    zeek = await asyncio.create_subprocess_exec(
        *("zeek", "-b", "-C", "-r", CAPTURE, *backend_arguments("broker", 0, 0), SCRIPTS / "replay.zeek"),
        *("./peering.zeek", "Tapline::sensor=s1", *ONLY_AT_THE_END),
        cwd=folder,
        env=environment,
    )
    tasks = [asyncio.create_task(source.run()), asyncio.create_task(sink.run())]
    try:
        async with asyncio.timeout(DEADLINE_SECONDS):
            await source.end_marker.wait()
            for flow in flows:
                sink.put(verdict_row(flow, Verdict("dns", "dns", 0.75, False, [], "m", "1")))
            while sink.pending_verdicts:
                await asyncio.sleep(0.05)
            await source.confirm_finished()
            assert await zeek.wait() == 0
    finally:
        if zeek.returncode is None:
            zeek.kill()
            await zeek.wait()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return flows, source.state.sensors["s1"]


def told(flows):
    """What tells flows apart."""
    return sorted((f.orig_h, f.orig_p, f.resp_h, f.resp_p, f.proto, list(f.payload_lengths)) for f in flows)


@pytest.mark.parametrize("plugin", ["", pytest.param(PLUGIN, marks=pytest.mark.skipif(not PLUGIN, reason="no plugin"))])
def test_batches_arrive_and_verdicts_go_back(plugin, tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "ZEEK_PLUGIN_PATH"}
    flows, account = asyncio.run(replayed(tmp_path, environment | ({"ZEEK_PLUGIN_PATH": plugin} if plugin else {})))
    expected = [flow for flow in CaptureReader(CAPTURE) if len(flow.payload_lengths)]
    assert told(flows) == told(expected)
    assert (account.format, account.flows, account.missed) == (2, len(expected), 0)
    logged = [line for line in (tmp_path / "tapline.log").read_text().splitlines() if line[0] != "#"]
    assert len(logged) == len(expected)
