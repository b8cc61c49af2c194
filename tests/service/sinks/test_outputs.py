"""Outputs of a service: who is told what, SIGHUP and restarts of real processes, and that others cost nothing."""

import asyncio
import json
import os
import signal
import subprocess
import sys

import msgspec
import pytest

from tapline.service.live.observer import Observer
from tapline.service.metrics import Metrics
from tapline.service.sinks.output_url import OutputError
from tapline.service.sinks.outputs import Outputs
from tests.logged import capture_logs
from tests.paths import DATA
from tests.service.api.served import Server
from tests.service.sinks.records import ALERT, FLOW, TRACE, VERDICT, outputs_of, until

ANDROID = DATA / "captures" / "android.pcap"
FLAGS = ("--history", "none", "--replay", ANDROID, "--speed", 0)
NO_TERMINAL = "import os; os.setsid()"
A_TERMINAL = "import fcntl, os, termios; os.setsid(); ends = os.openpty(); fcntl.ioctl(ends[1], termios.TIOCSCTTY, 0)"

EARLY = msgspec.structs.replace(VERDICT, final=False)
EARLY_TRACE = msgspec.structs.replace(TRACE, verdict=msgspec.structs.replace(TRACE.verdict, final=False))


def kinds(path):
    """Of each line its kind, and whether it is final."""
    found = [json.loads(line) for line in path.read_text().splitlines()]
    return [(record["event_type"], record["tapline"].get("final", True)) for record in found]


async def test_each_output_gets_what_it_asked_for(tmp_path):
    texts = [
        f"eve:{tmp_path / 'all.json'}",
        f"eve:{tmp_path / 'final.json'}?early=no",
        f"eve:{tmp_path / 'alerts.json'}?records=alerts",
    ]
    async with outputs_of(tmp_path, *texts) as outputs:
        for verdict in (EARLY, VERDICT, None):
            outputs.flow("s", FLOW, verdict)
        outputs.trace(EARLY_TRACE)
        outputs.trace(TRACE)
        outputs.alert(ALERT)
        await until(lambda: [each.queued for each in outputs.deliveries] == [0, 0, 0])
    final = [("alert", True), ("tapline_trace", True), ("flow", True)]
    assert sorted(kinds(tmp_path / "all.json")) == sorted([*final, ("tapline_trace", False), ("flow", False)])
    assert sorted(kinds(tmp_path / "final.json")) == sorted(final)
    assert kinds(tmp_path / "alerts.json") == final[:1]


def test_outputs_are_an_observer(tmp_path):
    outputs = Outputs([], tmp_path, Metrics())
    assert all(callable(getattr(outputs, name)) for name in ("flow", "trace", "alert") if hasattr(Observer, name))
    outputs.flow("s", FLOW, VERDICT)
    outputs.alert(ALERT)
    assert list(tmp_path.iterdir()) == []


async def test_a_spool_that_no_output_has_any_more_is_told(tmp_path):
    async with outputs_of(tmp_path, "syslog+tcp://127.0.0.1:9") as outputs:
        outputs.alert(ALERT)
        await until(lambda: outputs.deliveries[0].spooled == 1)
    with capture_logs() as said:
        Outputs([], tmp_path, Metrics())
    assert ["not set any more" in str(line) for line in said] == [True]


async def test_a_process_that_is_killed_leaves_its_spool_to_the_next(serve, tmp_path):
    hook = serve()
    url = f"{hook.url()}name=soc"
    hook.answers = lambda _: (503, {})
    code = f"""
import asyncio, os, signal
from pathlib import Path
from tests.service.sinks.records import ALERT, outputs_of, until

async def main():
    async with outputs_of(Path({str(tmp_path)!r}), {url!r}) as outputs:
        for _ in range(100):
            outputs.alert(ALERT)
        await until(lambda: outputs.deliveries[0].spooled == 100)
        os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""
    killed = await asyncio.to_thread(subprocess.run, [sys.executable, "-c", code], timeout=120)
    assert killed.returncode == -signal.SIGKILL
    before, hook.answers = len(hook.posts), lambda _: (200, {})
    async with outputs_of(tmp_path, url) as outputs:
        (delivery,) = outputs.deliveries
        assert delivery.counts.recovered == 100
        await until(lambda: delivery.counts.written == 100)
    assert sum(len(found) for *_, found in hook.posts[before:]) == 100


async def test_two_services_do_not_share_a_spool(tmp_path):
    async with outputs_of(tmp_path, "syslog+tcp://127.0.0.1:9"):
        with pytest.raises(OutputError, match="another service uses"):
            Outputs(["syslog+tcp://127.0.0.1:9"], tmp_path, Metrics())


@pytest.mark.whole
def test_a_service_writes_reopens_keeps_what_is_away_and_sends_it_after_a_restart(serve, tmp_path, checkpoint_dir):
    eve = tmp_path / "eve.json"
    hook = serve()
    hook.answers = lambda _: (503, {})
    flags = (*FLAGS, "--output", f"eve:{eve}", "--output", f"{hook.url()}name=soc")
    with Server(tmp_path, checkpoint_dir, *flags, before=NO_TERMINAL) as server:

        def state(name):
            outputs = json.loads(server.ask("GET", "/v1/live")[1])["outputs"]
            return next(each for each in outputs if each["name"] == name)

        server.wait(lambda: "replay finished" in server.log)
        given = server.wait(lambda: (found := state(f"eve:{eve}"))["queued"] == 0 and found["written"] and found)
        server.wait(lambda: state("soc")["problem"] == f"http://localhost:{hook.server_port}: the server answers 503")
        server.wait(lambda: state("soc")["spooled"] == given["written"])
        metrics = server.ask("GET", "/metrics")[1].decode()
        assert f'tapline_output_records_total{{outcome="written",output="eve:{eve}"}} {given["written"]}.0' in metrics
        assert 'tapline_output_up{output="soc"} 0.0' in metrics
        page = server.ask("GET", "/health")[1].decode()
        assert all(text in page for text in (f"eve:{eve}", "takes what comes", "the server answers 503"))
        eve.rename(tmp_path / "eve.json.1")
        server.process.send_signal(signal.SIGHUP)
        server.wait(lambda: "event=reopening" in server.log)
        assert server.answers("/readyz")  # an output that is away is no reason to send no work here
        assert server.stop() == 0
    lines = (tmp_path / "eve.json.1").read_text().splitlines()
    assert len(lines) == given["written"]
    assert {json.loads(line)["event_type"] for line in lines} == {"flow", "tapline_trace"}
    assert '"an output cannot be written"' in server.log
    before, hook.answers = len(hook.posts), lambda _: (200, {})
    with Server(tmp_path, checkpoint_dir, *flags[:2], *flags[-2:], before=NO_TERMINAL) as server:
        server.wait(lambda: state("soc")["written"] == given["written"])
        assert server.stop() == 0
    sent = [record for *_, body, _ in hook.posts[before:] for record in json.loads(body)["records"]]
    assert sorted(map(json.dumps, sent)) == sorted(json.dumps(json.loads(line)) for line in lines)


@pytest.mark.whole
def test_the_end_of_a_terminal_still_ends_a_service(tmp_path, checkpoint_dir):
    with Server(tmp_path, checkpoint_dir, "--history", "none", "--dashboard", "off", before=A_TERMINAL) as server:
        server.process.send_signal(signal.SIGHUP)
        assert server.process.wait(60) == 0
        assert "signal=SIGHUP" in server.log


@pytest.mark.parametrize(
    ("output", "problem"),
    [
        ("eve:/a?kep=3", "--output: eve:/a: unknown parameter kep, did you mean keep?"),
        ("https://h/a?secret_file=/missing", "https://h:443: secret_file=/missing cannot be read"),
    ],
)
def test_an_output_that_is_wrong_is_told_and_nothing_starts(tmp_path, output, problem):
    code = "from tapline.service.command.cli import main; main()"
    command = [sys.executable, "-c", code, "serve", "--port", "0", "--output", output, "--history", "none"]
    environment = {**os.environ, "XDG_DATA_HOME": str(tmp_path)}
    found = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert found.returncode == 2
    assert problem in found.stderr


def test_a_service_without_outputs_loads_none_of_it():
    code = """
import sys
import tapline, tapline.service.api.server
senders = [name for name in sys.modules if name.startswith("tapline.service.sinks.") and "sender" in name]
print(sorted(senders), "confluent_kafka" in sys.modules, "tapline.service.sinks.eve_file" in sys.modules)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert found.stdout == "['tapline.service.sinks.sender'] False False\n"


async def test_an_output_that_hangs_holds_up_no_other(serve, tmp_path):
    hook = serve()
    hook.answers = lambda _: (None, {})
    texts = [f"{hook.url()}timeout_seconds=20", f"eve:{tmp_path / 'eve.json'}"]
    async with outputs_of(tmp_path, *texts, stop_seconds=0.1) as outputs:
        hangs, eve = outputs.deliveries
        for _ in range(2000):
            outputs.flow("s", FLOW, VERDICT)
        await until(lambda: eve.counts.written == 2000)
        assert (hangs.counts.written, hangs.queued) == (0, 2000)
    assert hangs.spooled == 2000
    hook.hang.set()
