"""Numbers of sensors over a restart of the service: what was published meanwhile counts as missed."""

import asyncio

import pytest

from tapline.service.live.kept_numbers import FILE_NAME, KeptNumbers
from tapline.service.process.data_directory import DataDirectoryError
from tapline.service.runtime import Service
from tapline.service.settings import Settings
from tests.batches import flows_event
from tests.conftest import make_flows
from tests.logged import capture_logs
from tests.service.sources.bus.sensors import WebSocketSensor

NUMBERS = {"ws://a:1": {"tap": {"tapline/flows/0": 7, "tapline/flows/1": 9}}}


def test_what_is_saved_is_loaded(tmp_path):
    numbers = KeptNumbers(tmp_path / FILE_NAME)
    assert numbers.load() == {}
    numbers.save(NUMBERS)
    assert KeptNumbers(tmp_path / FILE_NAME).load() == NUMBERS
    assert (tmp_path / FILE_NAME).stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"ws://a:1": {"tap": {"tapline/flows/0": "7"}}}'])
def test_a_file_that_is_none_costs_the_account_alone(tmp_path, text):
    (tmp_path / FILE_NAME).write_text(text)
    with capture_logs() as said:
        assert KeptNumbers(tmp_path / FILE_NAME).load() == {}
    assert [line["event"] for line in said] == ["numbers of sensors cannot be read"]


def test_a_full_disk_is_told_once(tmp_path):
    numbers = KeptNumbers(tmp_path / "none" / FILE_NAME)
    with capture_logs() as said:
        numbers.save(NUMBERS)
        numbers.save(NUMBERS)
        (tmp_path / "none").mkdir()
        numbers.save(NUMBERS)
    assert [line["event"] for line in said] == ["numbers of sensors cannot be saved"]
    assert numbers.load() == NUMBERS


def run_of_a_service(settings, sensor, first):
    """A run while which a sensor publishes ten flows, from this number on; what is missed by then."""

    async def main():
        service = Service(settings)
        async with sensor.running(sensor.port), service.running():
            await sensor.wait_for_client()
            await sensor.publish(flows_event(make_flows(10), first))
            [bus] = service.sensors.sensors
            async with asyncio.timeout(60):
                while not bus.source.state.sensors:
                    await asyncio.sleep(0.01)
            return bus.source.state.sensors["tap-a"].missed

    return asyncio.run(main())


@pytest.mark.whole
def test_what_was_published_between_two_runs_is_missed(checkpoint_dir, tmp_path):
    sensor = WebSocketSensor()

    async def find_port():
        async with sensor.running():
            pass

    asyncio.run(find_port())
    settings = Settings(
        checkpoint=checkpoint_dir, traces=["none"], zeek=[sensor.url], data_dir=tmp_path, history="sqlite"
    )
    assert run_of_a_service(settings, sensor, first=5) == 0  # the first time nobody knows what was before
    assert run_of_a_service(settings, sensor, first=20) == 5
    kept_nowhere = settings.model_copy(update={"history": "none"})
    assert run_of_a_service(kept_nowhere, sensor, first=100) == 0
    assert run_of_a_service(settings, sensor, first=110) == 80


@pytest.mark.whole
@pytest.mark.parametrize("history", ["sqlite", "sqlite:///{}/elsewhere.db"])
def test_one_service_at_a_time_has_a_data_directory(checkpoint_dir, tmp_path, history):
    settings = Settings(checkpoint=checkpoint_dir, traces=["none"], data_dir=tmp_path, history=history.format(tmp_path))
    first = Service(settings)
    with pytest.raises(DataDirectoryError, match="give this one a --data-dir of its own"):
        Service(settings)
    first.data.release()
