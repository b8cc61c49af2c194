"""`tapline watch` beside another service: it writes nothing back to the sensor unless it is asked to."""

import asyncio
import sys

import pytest

from service.sources.bus.events import BusEvent
from tests.service.cli_runner import CODE, ROOT
from tests.service.sources.bus.sensors import WebSocketSensor
from tests.service.sources.bus.test_events import flow_event


async def watch(sensor, options):
    """What the sensor gets from a watch that sees one flow."""
    async with asyncio.timeout(120), sensor.running():
        command = [sys.executable, "-c", CODE, "watch", "--zeek", sensor.url, *options]
        process = await asyncio.create_subprocess_exec(
            *command, cwd=ROOT, stdout=asyncio.subprocess.PIPE, stdin=asyncio.subprocess.DEVNULL
        )
        await sensor.wait_for_client()
        await sensor.publish(flow_event())
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


@pytest.mark.parametrize(
    ("options", "expected"),
    [([], ["Tapline::finished_ack"]), (["--return-verdicts"], ["Tapline::verdicts", "Tapline::finished_ack"])],
)
def test_verdicts_go_back_only_when_asked(checkpoint_dir, options, expected):
    options = [*options, "--checkpoint", str(checkpoint_dir), "--trace-checkpoint", "none"]
    assert asyncio.run(watch(WebSocketSensor(), options)) == expected
