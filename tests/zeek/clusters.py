"""A Zeek cluster of processes on the loopback interface, by Broker or by ZeroMQ, in which two workers read captures."""

import contextlib
import os
import shutil
import socket
import subprocess

from tests.paths import ROOT

SCRIPTS = ROOT / "zeek" / "scripts"
TRACES = ROOT / "zeek" / "tests" / "Traces"
CAPTURES = {"worker-1": TRACES / "tcp-http.pcap", "worker-2": TRACES / "tunnel-gre.pcap"}
TYPES = {"logger": "LOGGER", "manager": "MANAGER", "proxy": "PROXY", "worker-1": "WORKER", "worker-2": "WORKER"}
STOP_SECONDS = 20

BACKENDS = {
    "broker": ["frameworks/cluster/backend/broker"],
    "zeromq": ["frameworks/cluster/backend/zeromq"],
}
"""What to load for a cluster's backend, since Zeek 8.1; 8.0 is a Broker cluster unless ZeroMQ is told to connect."""


def zeek_version():
    """Zeek's version as (8, 0); (0, 0) without Zeek."""
    if shutil.which("zeek") is None:
        return 0, 0
    said = subprocess.run(["zeek", "--version"], capture_output=True, text=True, check=True).stdout.split()[-1]
    major, minor, *_ = said.split(".")
    return int(major), int(minor)


def has_plugin():
    """Whether Zeek has the package's plugin, as where ZEEK_PLUGIN_PATH names its folder."""
    if shutil.which("zeek") is None:
        return False
    return subprocess.run(["zeek", "-N", "Tapline::Native"], capture_output=True).returncode == 0


def backends():
    """The backends that Zeek was built with, of those here."""
    if shutil.which("zeek") is None:
        return ["zeromq"]
    plugins = subprocess.run(["zeek", "-N"], capture_output=True, text=True, check=True).stdout
    return [name for name in BACKENDS if f"Cluster_Backend_{name}".lower() in plugins.lower()]


def backend_arguments(backend, xpub, xsub):
    """What to load and to set for a backend, by Zeek's version; ZeroMQ's exchange has the two ports."""
    if backend == "broker":
        return [] if zeek_version() < (8, 1) else BACKENDS[backend]
    scripts = ["frameworks/cluster/backend/zeromq/connect"] if zeek_version() < (8, 1) else BACKENDS[backend]
    return scripts + [
        f"Cluster::Backend::ZeroMQ::{name}_endpoint=tcp://127.0.0.1:{port}"
        for name, port in (
            ("listen_xpub", xpub),
            ("connect_xsub", xpub),
            ("listen_xsub", xsub),
            ("connect_xpub", xsub),
        )
    ]


def free_ports(count):
    """Ports of 127.0.0.1 that were free just now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in sockets]


class Cluster:
    """Nodes below `folder`; `port` is where services connect."""

    def __init__(self, folder, backend, scripts=(str(SCRIPTS),)):
        self.folder = folder
        ports = dict(zip([*TYPES, "bus", "xpub", "xsub"], free_ports(len(TYPES) + 3), strict=True))
        self.port = ports["bus"]
        self._layout = _layout(ports)
        self._arguments = [
            *backend_arguments(backend, ports["xpub"], ports["xsub"]),
            *scripts,
            str(ROOT / "tests" / "zeek" / "play.zeek"),
            f"Tapline::listen_port={self.port}/tcp",
            "Tapline::sensor=s1",
        ]
        self._nodes = {}

    def start(self, *names):
        """Start these nodes, all by default."""
        for name in names or TYPES:
            place = self.folder / name
            place.mkdir(exist_ok=True)
            (place / "cluster-layout.zeek").write_text(self._layout)
            capture = ["-C", "-r", str(CAPTURES[name])] if name in CAPTURES else []
            with (place / "said").open("w") as said:
                self._nodes[name] = subprocess.Popen(
                    ["zeek", *capture, *self._arguments],
                    cwd=place,
                    env={**os.environ, "CLUSTER_NODE": name},
                    stdin=subprocess.DEVNULL,
                    stdout=said,
                    stderr=said,
                )

    def said(self):
        """What the nodes have written to their terminals, for a failed test."""
        return {name: (self.folder / name / "said").read_text() for name in self._nodes}

    def died(self):
        """The nodes that are not there any more."""
        return [name for name, process in self._nodes.items() if process.poll() is not None]

    @contextlib.contextmanager
    def stopped_at_the_end(self):
        """Stop all nodes at the end, the workers first and the logger last."""
        try:
            yield self
        finally:
            for name in sorted(self._nodes, key=[*TYPES].index, reverse=True):
                self._nodes[name].terminate()
                try:
                    self._nodes[name].wait(STOP_SECONDS)
                except subprocess.TimeoutExpired:
                    self._nodes[name].kill()
                    self._nodes[name].wait()

    def lines(self, node, log):
        """The entries of a node's log in Zeek's own format, by field."""
        path = self.folder / node / log
        rows = [line.split("\t") for line in path.read_text().splitlines()] if path.exists() else []
        names = next((row[1:] for row in rows if row[0] == "#fields"), [])
        return [dict(zip(names, row, strict=True)) for row in rows if row[0][:1] != "#" and len(row) == len(names)]


def _layout(ports):
    nodes = [
        f'\t["{name}"] = Cluster::Node($node_type=Cluster::{kind}, $ip=127.0.0.1, $p={ports[name]}/tcp'
        + (")," if kind == "MANAGER" else ', $manager="manager"),')
        for name, kind in TYPES.items()
    ]
    return "redef Cluster::nodes = {\n" + "\n".join(nodes) + "\n};\nredef Cluster::manager_is_logger = F;\n"
