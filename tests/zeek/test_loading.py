"""Each documented way of loading the package serves the bus: by path and by zkg, with all of Zeek's scripts, with none,
under the Supervisor, compiled; clusters are in `test_cluster`, but one without a backend is told here what to load."""

import asyncio
import contextlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tapline.service.sources.bus.source import make_transport
from tapline.service.sources.bus.transport import Connected, TlsFiles
from tests.zeek.clusters import ROOT, STOP_SECONDS, backend_scripts, free_ports, zeek_version

pytestmark = [pytest.mark.zeek, pytest.mark.skipif(shutil.which("zeek") is None, reason="no zeek on PATH")]
needs_zkg = pytest.mark.skipif(shutil.which("zkg") is None, reason="no zkg on PATH")
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


def test_under_the_supervisor(checkout):
    manager, worker = free_ports(2)
    (checkout / "cluster.zeek").write_text(SUPERVISED.format(manager=manager, worker=worker))
    command = documented("zeek -j ./zeek/scripts cluster.zeek")
    check([*command[:2], *backend_scripts("broker"), *command[2:]], checkout)


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


@pytest.fixture
def zkg(tmp_path):
    """Installs the package with zkg from a repository in a folder of some name; gives the environment for Zeek."""

    def install(name):
        repository = tmp_path / "sources" / name
        repository.mkdir(parents=True)
        shutil.copy(ROOT / "zkg.meta", repository)
        shutil.copytree(ROOT / "zeek", repository / "zeek", ignore=shutil.ignore_patterns(".tmp", "tests"))
        git = ["git", "-c", "user.name=test", "-c", "user.email=test@localhost", "-c", "init.defaultBranch=main"]
        for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "all"]):
            subprocess.run([*git, *words], cwd=repository, check=True)
        places = {place: tmp_path / "zkg" / place for place in ("state_dir", "script_dir", "plugin_dir", "bin_dir")}
        places["script_dir"] = tmp_path / "zkg" / "site"
        for place in places.values():
            place.mkdir(parents=True)
        config = tmp_path / "zkg" / "config"
        lines = [f"{key} = {place}" for key, place in places.items()]
        config.write_text("[sources]\n[paths]\n" + "\n".join(lines) + "\n")
        zkg = ["zkg", "--configfile", str(config)]
        subprocess.run([*zkg, "install", "--force", "--skiptests", str(repository)], check=True, timeout=120)
        exports = subprocess.run([*zkg, "env"], check=True, capture_output=True, text=True, timeout=60).stdout
        code = f"{exports}\nexec {sys.executable} -c 'import os; print(os.environ[\"ZEEKPATH\"])'"
        path = subprocess.run(["sh", "-c", code], check=True, capture_output=True, text=True).stdout.strip()
        return {**os.environ, "ZEEKPATH": path}

    return install


@needs_zkg
@pytest.mark.parametrize("name", ["tapline", "a-copy-of-it"])
@pytest.mark.parametrize(
    "line", ["zeek -i eth0 local.zeek", "zeek -i eth0 -O ZAM --optimize-files=/tapline/ local.zeek"]
)
def test_by_zkg(name, line, zkg, tmp_path):
    environment = zkg(name)
    Path(tmp_path / "local.zeek").write_text("@load tapline\n")
    check(documented(line), tmp_path, environment)
