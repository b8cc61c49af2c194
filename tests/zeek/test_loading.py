"""Each documented way of loading the package serves the bus: by path, with all of Zeek's scripts, with none, under the
Supervisor, compiled. Clusters are in `test_cluster`, what zkg installs in `test_zkg`; a cluster without a backend is
told here what to load."""

import asyncio
import contextlib
import os
import shutil
import subprocess

import pytest

from tapline.service.sources.bus.source import make_transport
from tapline.service.sources.bus.transport import Connected, TlsFiles
from tests.zeek.clusters import ROOT, STOP_SECONDS, backend_arguments, backends, free_ports, zeek_version

pytestmark = [pytest.mark.zeek, pytest.mark.skipif(shutil.which("zeek") is None, reason="no zeek on PATH")]
README = (ROOT / "zeek" / "README.md").read_text()
STAYS = "exit_only_after_terminate=T"
"""In the place of an interface, which needs rights."""

DEADLINE_SECONDS = 120
SUPERVISED = """
event zeek_init()
	{{
	if ( ! Supervisor::is_supervisor() )
		return;
	local nodes = table(
		["manager"] = Supervisor::ClusterEndpoint($role=Supervisor::MANAGER, $host=127.0.0.1, $p={manager}/tcp),
		["logger"] = Supervisor::ClusterEndpoint($role=Supervisor::LOGGER, $host=127.0.0.1, $p={logger}/tcp),
		["worker"] = Supervisor::ClusterEndpoint($role=Supervisor::WORKER, $host=127.0.0.1, $p={worker}/tcp));
	for ( name in nodes )
		{{
		local said = Supervisor::create(Supervisor::NodeConfig($name=name, $cluster=nodes));
		if ( said != "" )
			Reporter::fatal(said);
		}}
	}}
"""


def documented(line):
    """A command of the package's README, in words; `-i eth0` is left out."""
    assert f"\n{line}" in README, line
    return line.replace("-i eth0 ", "").split()


async def serves(port, process):
    """Wait until the bus takes a client; a Zeek that ends before fails."""
    connected = asyncio.Event()

    def receive(incoming):
        if isinstance(incoming, Connected):
            connected.set()

    bus = asyncio.create_task(make_transport(f"ws://127.0.0.1:{port}", TlsFiles()).run(receive))
    try:
        async with asyncio.timeout(DEADLINE_SECONDS):
            while not connected.is_set():
                assert process.poll() is None, "Zeek ended"
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(connected.wait(), 0.2)
    finally:
        bus.cancel()
        await asyncio.gather(bus, return_exceptions=True)


def check(command, folder, environment=None):
    """Run a Zeek that must serve the bus, in `folder`, and stop it."""
    (port,) = free_ports(1)
    said = folder / "said"
    with said.open("w") as file:
        process = subprocess.Popen(
            [*command, f"Tapline::listen_port={port}/tcp", STAYS],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
        )
    try:
        asyncio.run(serves(port, process))
    except (AssertionError, TimeoutError):
        pytest.fail(said.read_text())
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    # a node of a cluster looks for the others before they listen
    errors = [line for line in said.read_text().splitlines() if "error" in line and "PEER_UNAVAILABLE" not in line]
    assert errors == []


@pytest.fixture
def checkout(tmp_path):
    """A folder from which the README's paths are right."""
    (tmp_path / "zeek").symlink_to(ROOT / "zeek")
    return tmp_path


@pytest.mark.parametrize(
    "line",
    [
        "zeek -i eth0 ./zeek/scripts",
        "zeek -b -i eth0 ./zeek/scripts",
        "zeek -i eth0 -O ZAM --optimize-files=zeek/scripts/ ./zeek/scripts",
    ],
)
def test_by_path(line, checkout):
    check(documented(line), checkout)


@pytest.mark.parametrize("backend", ["broker"] if zeek_version() < (8, 1) else backends())
def test_under_the_supervisor(backend, checkout):
    manager, logger, worker, xpub, xsub = free_ports(5)
    (checkout / "cluster.zeek").write_text(SUPERVISED.format(manager=manager, logger=logger, worker=worker))
    command = documented("zeek -j ./zeek/scripts cluster.zeek")
    check([*command[:2], *backend_arguments(backend, xpub, xsub), *command[2:]], checkout)


@pytest.mark.parametrize("bare", [[], ["-b"]])
def test_offline(bare, checkout):
    capture = ROOT / "zeek" / "tests" / "Traces" / "udp-dns.pcap"
    subprocess.run(["zeek", *bare, "-r", capture, "./zeek/scripts/offline.zeek"], cwd=checkout, check=True, timeout=60)
    assert '"orig_p"' in (checkout / "tapline_flow.log").read_text()


@pytest.mark.skipif(zeek_version() < (8, 1), reason="Zeek 8.0 has a backend by default")
def test_a_cluster_without_a_backend_is_told_what_to_load(checkout):
    (checkout / "cluster-layout.zeek").write_text(
        'redef Cluster::nodes = { ["manager"] = Cluster::Node($node_type=Cluster::MANAGER, $ip=127.0.0.1) };'
    )
    result = subprocess.run(
        ["zeek", "./zeek/scripts"],
        cwd=checkout,
        env={**os.environ, "CLUSTER_NODE": "manager"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode != 0
    assert "Tapline needs a cluster backend" in result.stderr
    assert "frameworks/cluster/backend/zeromq" in result.stderr


@pytest.mark.skipif(zeek_version() < (8, 1) or "zeromq" not in backends(), reason="the cluster is not ZeroMQ's")
def test_a_node_that_writes_the_logs_is_told_that_it_cannot_serve(checkout):
    (port,) = free_ports(1)
    (checkout / "cluster-layout.zeek").write_text(
        'redef Cluster::nodes = { ["manager"] = '
        f"Cluster::Node($node_type=Cluster::MANAGER, $ip=127.0.0.1, $p={port}/tcp) }};"
    )
    result = subprocess.run(
        ["zeek", "frameworks/cluster/backend/zeromq", "./zeek/scripts"],
        cwd=checkout,
        env={**os.environ, "CLUSTER_NODE": "manager"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode != 0
    assert "add a logger to the cluster" in result.stderr
