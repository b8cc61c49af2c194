"""`tapline watch` beside another service: it writes nothing back to the sensor unless it is asked to."""

import asyncio
import io
import re
import signal
import sys
from types import SimpleNamespace

import pytest

from tapline.models.verdict import Verdict
from tapline.service.command.console import Cleaned, make_console
from tapline.service.command.watch import FEWEST_VERDICTS, View
from tapline.service.sources.bus.events import BusEvent
from tapline.service.sources.bus.source import BusState, SensorState
from tapline.service.sources.capture import read_capture
from tests.batches import flows_event
from tests.paths import ROOT
from tests.service.command.cli_runner import CODE
from tests.service.history.test_alerts import alert
from tests.service.sources.bus.sensors import WebSocketSensor
from tests.service.sources.bus.test_events import FLOW

pytestmark = pytest.mark.whole


async def watch(sensor, options):
    """What the sensor gets from a watch that sees one flow."""
    async with asyncio.timeout(120), sensor.running():
        command = [sys.executable, "-c", CODE, "watch", "--zeek", sensor.url, *options]
        process = await asyncio.create_subprocess_exec(
            *command, cwd=ROOT, stdout=asyncio.subprocess.PIPE, stdin=asyncio.subprocess.DEVNULL
        )
        await sensor.wait_for_client()
        await sensor.publish(flows_event([FLOW], 7, sensor="tap-1"))
        await sensor.publish(BusEvent("tapline/stats", "Tapline::finished", [1, "tap-1", 1]))
        acknowledged = 0
        while not any(name == "Tapline::finished_ack" for name, _ in sensor.received):
            await asyncio.sleep(0.02)
            for name, arguments in sensor.received[acknowledged:]:
                if name == "Tapline::verdicts":
                    _, batch, service, rows = arguments
                    ack = BusEvent("tapline/acks", "Tapline::verdicts_ack", [1, service, batch, len(rows)])
                    await sensor.publish(ack)
            acknowledged = len(sensor.received)
        process.terminate()
        output, _ = await process.communicate()
        assert process.returncode == 0
        assert "1 flows, 1 verdicts" in output.decode()
    return [name for name, _ in sensor.received]


def test_of_many_sensors_the_first_are_shown_and_those_that_are_away_before_them():
    there = BusState("ws://192.0.2.1:1", connected=True, peer_version="8.0.10")
    there.sensors = {f"worker-{number}": SensorState() for number in range(20)}
    away = BusState("ws://192.0.2.2:1", reason="connection refused")
    sensors = [SimpleNamespace(source=SimpleNamespace(state=state)) for state in (there, away)]
    table = View()._sensors(SimpleNamespace(sensors=SimpleNamespace(sensors=sensors)))
    file = io.StringIO()
    make_console(file, width=80).print(table)
    lines = file.getvalue().splitlines()
    assert len(lines) == 8
    assert lines[1].startswith("ws://192.0.2.2:1")
    assert lines[6].startswith("worker-4")
    assert lines[7].startswith("… and 15 more")


@pytest.mark.parametrize(
    ("options", "expected"),
    [([], ["Tapline::finished_ack"]), (["--return-verdicts"], ["Tapline::verdicts", "Tapline::finished_ack"])],
)
def test_verdicts_go_back_only_when_asked(checkpoint_dir, options, expected):
    options = [*options, "--checkpoint", str(checkpoint_dir), "--traces", "none"]
    assert asyncio.run(watch(WebSocketSensor(), options)) == expected


async def watch_until_a_verdict(sensor):
    """The output of a watch that is ended while the window of its only flow is open."""
    async with asyncio.timeout(120), sensor.running():
        command = [sys.executable, "-c", CODE, "watch", "--zeek", sensor.url, "--return-verdicts"]
        process = await asyncio.create_subprocess_exec(
            *command, cwd=ROOT, stdout=asyncio.subprocess.PIPE, stdin=asyncio.subprocess.DEVNULL
        )
        await sensor.wait_for_client()
        await sensor.publish(flows_event([FLOW], 7, sensor="tap-1"))
        while not any(name == "Tapline::verdicts" for name, _ in sensor.received):
            await asyncio.sleep(0.02)
        process.send_signal(signal.SIGINT)
        output, _ = await process.communicate()
        assert process.returncode == 0
        return output.decode()


def test_ctrl_c_gives_the_open_windows_their_verdicts():
    shown = asyncio.run(watch_until_a_verdict(WebSocketSensor())).partition("Traces that were open")[2]
    assert "2001:db8::2" in shown
    assert "by intrusion" in shown
    assert "by iot-devices" in shown


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("lines", [1, 10, 30])
def test_rows_fit_the_lines_and_no_port_is_cut(width, lines):
    view = View()
    flows = [flow for flow in read_capture(ROOT / "tests" / "data" / "captures" / "android.pcap") if flow.up]
    for flow in flows:
        view.flow("", flow, Verdict("unknown", "TLS", 0.5, True, [], "flow-protocols", "2"))
    file = io.StringIO()
    make_console(file, width=width).print(view._verdicts(lines, width))
    drawn = file.getvalue().splitlines()
    assert len(drawn) <= max(lines, 1 + 3 * FEWEST_VERDICTS)
    text = re.sub(r"\s+", " ", file.getvalue())
    newest = flows[-min(FEWEST_VERDICTS, len(flows)) :]
    for flow in newest:
        for port in (flow.orig_p, flow.resp_p) if flow.proto in ("tcp", "udp") else ():
            assert re.search(rf":{port}\b", text)


def test_the_newest_alerts_stand_in_a_line_each():
    view = View()
    for number in range(5):
        view.alert(alert(f"a{number}", message=f"SSH {number} on a port that is long " * 4, severity="high"))
    file = io.StringIO()
    make_console(file, width=60).print(Cleaned(view._alerts()))
    lines = file.getvalue().splitlines()
    assert len(lines) == 3
    assert lines[0].strip() == "alerts 5"
    assert lines[1].startswith("22:13:20 high ssh-elsewhere: SSH 4 on a port")
    assert "SSH 3" in lines[2]
