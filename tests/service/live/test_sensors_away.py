"""Ready only with a sensor: one that is away beyond the grace time is said, and the bus of a Zeek of ours has a lasting
name."""

import asyncio

import pytest

from tapline.service.runtime import Service
from tapline.service.settings import Settings
from tests.service.sources.bus.sensors import WebSocketSensor

pytestmark = pytest.mark.whole


def service(checkpoint_dir, tmp_path, urls, grace_seconds):
    return Service(
        Settings(
            checkpoint=checkpoint_dir, traces=["none"], zeek=urls, sensor_grace_seconds=grace_seconds, data_dir=tmp_path
        )
    )


async def until(condition):
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


def test_without_any_sensor_it_is_not_ready_after_the_grace_time(checkpoint_dir, tmp_path):
    async def main():
        sensor = WebSocketSensor()
        async with sensor.running():
            pass  # now it has a port
        running = service(checkpoint_dir, tmp_path, ["ws://127.0.0.1:9", sensor.url], 0)
        async with running.running():
            await until(lambda: running.not_ready() is not None)
            assert running.not_ready().startswith("no sensor is connected; ws://127.0.0.1:")
            async with sensor.running(sensor.port):
                await until(lambda: running.not_ready() is None)  # one of two is enough
            await until(lambda: running.not_ready() is not None)

    asyncio.run(main())


def test_within_the_grace_time_it_is_ready(checkpoint_dir, tmp_path):
    async def main():
        running = service(checkpoint_dir, tmp_path, ["ws://127.0.0.1:9"], 3600)
        async with running.running():
            await until(lambda: "refused" in running.sensors.sensors[0].source.state.reason)
            assert running.not_ready() is None

    asyncio.run(main())


def test_without_live_traffic_no_sensor_is_missed(checkpoint_dir, tmp_path):
    assert service(checkpoint_dir, tmp_path, [], 0).not_ready() is None
