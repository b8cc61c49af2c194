"""What Zeek counted as published is what the service took and what it says that it missed, whatever is killed: a real
Zeek on one end of a wire, a capture sent down the other again and again, with the plugin and without.

What kills cost is named: a service that is not there misses what is published meanwhile, by Zeek's counters; a Zeek
that is killed takes with it what it had not published yet, of which nobody has a count."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import threading
import time

import pytest

from tapline.service.sources.bus.events import BusEvent
from tapline.service.sources.bus.source import make_transport
from tapline.service.sources.bus.transport import Connected, Disconnected, TlsFiles
from tests.paths import DATA
from tests.service.api.served import Server
from tests.zeek.clusters import SCRIPTS, STOP_SECONDS, free_ports
from tests.zeek.wire import TAPPED, send_capture, wire
from tests.zeek.zkg import environment_with

pytestmark = [
    pytest.mark.zeek,
    pytest.mark.whole,
    pytest.mark.skipif(shutil.which("zeek") is None, reason="no zeek on PATH"),
    pytest.mark.skipif(os.geteuid() != 0, reason="capturing takes root"),
]

CAPTURE = DATA / "captures" / "android.pcap"
OPTIONS = [
    "Tapline::sensor=s1",
    "Tapline::stats_interval=0.5sec",
    *(f"{protocol}_inactivity_timeout=2sec" for protocol in ("tcp", "udp", "icmp")),
]
"""So that all that is sent has been published within seconds."""

SETTLED_SECONDS = 5
DEADLINE_SECONDS = 120


class Zeek:
    """A Zeek on the wire that can be killed and started again at the same port."""

    def __init__(self, folder, arguments, environment):
        (self.port,) = free_ports(1)
        self._folder = folder
        self._command = ["zeek", "-C", "-i", TAPPED, *arguments, f"Tapline::listen_port={self.port}/tcp", *OPTIONS]
        self._environment = environment
        self._process = None

    def start(self):
        place = self._folder / f"zeek-{time.monotonic_ns()}"
        place.mkdir()
        with (place / "said").open("w") as said:
            self._process = subprocess.Popen(
                self._command, cwd=place, env=self._environment, stdin=subprocess.DEVNULL, stdout=said, stderr=said
            )

    def kill(self):
        self._process.kill()
        self._process.wait(STOP_SECONDS)

    @contextlib.contextmanager
    def running(self):
        self.start()
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.kill()


class Observer:
    """A client of the bus beside the service: the numbers of the flows that it was sent, and Zeek's count of them."""

    def __init__(self, port):
        self._transport = make_transport(f"ws://127.0.0.1:{port}", TlsFiles())
        self.connected = False
        self.counted = 0
        self.numbers = []

    def _receive(self, incoming):
        if isinstance(incoming, Connected):
            self.connected = True
            self.counted, self.numbers = 0, []
        elif isinstance(incoming, Disconnected):
            self.connected = False
        elif isinstance(incoming, BusEvent) and incoming.name == "Tapline::flows":
            _, _, first, flows, _ = incoming.args
            self.numbers += range(first, first + flows)
        elif isinstance(incoming, BusEvent) and incoming.name == "Tapline::stats":
            self.counted = incoming.args[3]

    @contextlib.contextmanager
    def running(self):
        loop = asyncio.new_event_loop()

        async def receive():
            await self._transport.run(self._receive)

        task = loop.create_task(receive())
        thread = threading.Thread(target=lambda: loop.run_until_complete(asyncio.wait([task])))
        thread.start()
        try:
            yield
        finally:
            loop.call_soon_threadsafe(task.cancel)
            thread.join()
            loop.close()

    def settled(self):
        """Zeek's count, once it has not grown for some seconds."""
        count, since = -1, time.monotonic()
        deadline = since + DEADLINE_SECONDS
        while time.monotonic() - since < SETTLED_SECONDS:
            assert time.monotonic() < deadline, "Zeek does not come to rest"
            if self.counted != count:
                count, since = self.counted, time.monotonic()
            time.sleep(0.1)
        return count


def account(service):
    """The service's account of the sensor; None before it heard of it."""
    (bus,) = json.loads(service.ask("GET", "/v1/live")[1])["buses"]
    return bus, next((sensor for sensor in bus["sensors"] if sensor["name"] == "s1"), None)


def taken(service):
    """Flows that the service took, and those it says that it missed."""
    _, sensor = account(service)
    return (sensor["flows"], sensor["missed"]) if sensor else (0, 0)


@contextlib.contextmanager
def traffic():
    """The capture goes down the wire twice meanwhile, to its end."""
    thread = threading.Thread(target=lambda: [send_capture(CAPTURE) for _ in range(2)])
    thread.start()
    yield
    thread.join()


@pytest.fixture(params=["plugin", "scripts"])
def zeek(request, tmp_path):
    if request.param == "plugin":
        environment = request.getfixturevalue("with_plugin")
        return Zeek(tmp_path, ["tapline"], environment)
    return Zeek(tmp_path, [str(SCRIPTS)], environment_with(os.environ["PATH"]))


@pytest.fixture(autouse=True)
def tapped_wire():
    with wire():
        yield


def test_counts_are_equal_through_kills(zeek, checkpoint_dir, tmp_path):
    observer = Observer(zeek.port)
    flags = ["--traces", "none", "--zeek", f"ws://127.0.0.1:{zeek.port}"]
    with zeek.running(), observer.running():
        with Server(tmp_path, checkpoint_dir, *flags) as service:
            service.wait(lambda: observer.connected and account(service)[0]["connected"])
            send_capture(CAPTURE)
            first = observer.settled()
            assert first > 50
            assert observer.numbers == list(range(1, first + 1))
            assert taken(service) == (first, 0)
            with traffic():
                service.wait(lambda: taken(service)[0] > first)
                before_the_kill, missed = taken(service)
                service.process.kill()
        second = observer.settled()
        assert observer.numbers == list(range(1, second + 1))
        assert missed == 0
        assert first < before_the_kill < second  # the rest was published while no service was there
        with Server(tmp_path, checkpoint_dir, *flags) as service:
            service.wait(lambda: account(service)[0]["connected"])
            send_capture(CAPTURE)
            third = observer.settled()
            assert observer.numbers == list(range(1, third + 1))
            flows, missed = taken(service)
            assert flows == third - second
            assert 0 < missed <= second - first  # what was published while no service was there, and a second before
            with traffic():
                service.wait(lambda: taken(service)[0] > third - second)
                zeek.kill()
                service.wait(lambda: not observer.connected and not account(service)[0]["connected"])
            counted = int(account(service)[1]["zeek"]["seq"])
            until_the_kill = sum(taken(service))
            assert counted - second <= until_the_kill - missed  # what it had not published died with Zeek
            zeek.start()
            service.wait(lambda: observer.connected and account(service)[0]["connected"])
            send_capture(CAPTURE)
            fourth = observer.settled()
            assert observer.numbers == list(range(1, fourth + 1))
            assert sum(taken(service)) - until_the_kill == fourth
            assert account(service)[1]["restarts"] == 1
            assert service.stop() == 0
