"""`tapline.stream`: early and final flows of sensors with verdicts, over lost connections, and nothing left behind."""

import asyncio
import contextlib
import gc
import threading

import pytest
from msgspec import structs

import tapline
from tapline.models.checkpoint import Calibration
from tapline.models.student import Student, StudentNetwork
from tapline.service.python import live_flows
from tapline.service.sources.bus.events import BusEvent
from tapline.service.sources.bus.transport import TransportError
from tests.batches import flows_event
from tests.conftest import make_checkpoint
from tests.paths import DATA
from tests.service.sources.bus.sensors import WebSocketSensor
from tests.service.sources.bus.test_events import FLOW

pytestmark = pytest.mark.whole

SECONDS = 60
LONGER = structs.replace(FLOW, complete=True, up=3, payload_lengths=[517, -1448, 64, 9])
EARLY, FINAL = (flows_event([flow], seq, sensor="tap-1") for flow, seq in ((FLOW, 7), (LONGER, 8)))


def play(body):
    async def main():
        async with asyncio.timeout(SECONDS), WebSocketSensor().running() as sensor:
            return await body(sensor)

    return asyncio.run(main())


def engine_threads():
    return {each for each in threading.enumerate() if each.name.startswith("the engine")}


@pytest.fixture
def nothing_left():
    """Threads of engines that a test starts have ended when it does."""
    before = engine_threads()
    yield
    for thread in engine_threads() - before:
        thread.join(SECONDS)
        assert not thread.is_alive()


async def ended(sensor, before):
    """Wait until the sensor has seen the end of a stream, and every task since is over."""
    while sensor.connections or any(not task.done() for task in asyncio.all_tasks() - before):
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("cascade", [True, False])
def test_the_student_answers_where_it_may(tmp_path, nothing_left, cascade):
    sure = Student(StudentNetwork(8, 8, 16, 16), 0.5, 0.5)
    directory = make_checkpoint(tmp_path / "random" / "1", student=sure, calibration=Calibration(0.01))

    async def body(sensor):
        async with tapline.stream(sensor.url, model=directory, cascade=cascade) as live:
            await sensor.wait_for_client()
            await sensor.publish(EARLY)
            return await anext(aiter(live))

    assert play(body).verdict.by_student is cascade


def test_early_and_final_flows_come_with_verdicts(checkpoint_dir, nothing_left):
    async def body(sensor):
        before = asyncio.all_tasks()
        async with tapline.stream(sensor.url, model=checkpoint_dir) as live:
            await sensor.wait_for_client()
            await sensor.publish(EARLY)
            results = aiter(live)
            found = [await anext(results)]
            await sensor.publish(FINAL)
            found.append(await anext(results))
            assert (live.counts.flows, live.counts.delivered, live.missed) == (1, 2, 0)
            assert live.sensors[0].connected
            await results.aclose()
            assert sensor.connections  # the stream goes on
        await ended(sensor, before)
        return sensor.url, found, sensor.received

    url, found, received = play(body)
    assert [(each.source, each.flow.uid, each.flow.complete, each.verdict.final) for each in found] == [
        (url, "CUid", False, False),
        (url, "CUid", True, True),
    ]
    (expected,) = tapline.load(checkpoint_dir).predict([found[1].flow])
    assert found[1].verdict == expected
    assert received == []  # nothing is sent back


def test_a_loop_without_a_block_ends_what_it_started(checkpoint_dir, nothing_left):
    async def body(sensor):
        before = asyncio.all_tasks()
        async with contextlib.aclosing(aiter(tapline.stream(sensor.url, model=checkpoint_dir))) as results:
            waiting = asyncio.ensure_future(anext(results))
            await sensor.wait_for_client()
            await sensor.publish(EARLY)
            assert (await waiting).flow.uid == "CUid"
        await ended(sensor, before)

    play(body)


def test_a_loop_that_is_broken_off_and_forgotten_ends_too(checkpoint_dir, nothing_left):
    async def body(sensor):
        async def first():
            async for live in tapline.stream(sensor.url, model=checkpoint_dir):
                return live

        before = asyncio.all_tasks()
        task = asyncio.ensure_future(first())
        await sensor.wait_for_client()
        await sensor.publish(EARLY)
        assert (await task).flow.uid == "CUid"
        gc.collect()
        await ended(sensor, before)

    play(body)


def test_a_lost_connection_is_made_again(checkpoint_dir):
    async def body(sensor):
        async with tapline.stream(sensor.url, model=checkpoint_dir) as live:
            results = aiter(live)
            for event in (EARLY, FINAL):
                await sensor.wait_for_client()
                await sensor.publish(event)
                found = await anext(results)
                await sensor.cut()
            assert live.sensors[0].connections >= 2
            return found.flow

    assert play(body).complete


def test_several_sensors_and_a_model_that_is_loaded(checkpoint_dir):
    model = tapline.load(checkpoint_dir)

    async def body(first):
        async with (
            WebSocketSensor().running() as second,
            tapline.stream([first.url, second.url], model=model) as live,
        ):
            results = aiter(live)
            for sensor in (first, second):
                await sensor.wait_for_client()
                await sensor.publish(EARLY)
                assert (await anext(results)).source == sensor.url

    play(body)
    assert model.predict([]) == []  # ending the stream leaves the model alone
    assert len(model.embed(tapline.read(DATA / "captures" / "android.pcap"))) == 69


def test_what_is_not_taken_is_bounded_and_counted(checkpoint_dir, monkeypatch):
    monkeypatch.setattr(live_flows, "HELD_RESULTS", 3)

    async def body(sensor):
        async with tapline.stream(sensor.url, model=checkpoint_dir) as live:
            await sensor.wait_for_client()
            await sensor.publish(flows_event([structs.replace(FLOW, uid=f"C{number}") for number in range(5)], 1))
            while live.counts.delivered < 5:
                await asyncio.sleep(0.01)
            assert live.missed == 2
            return [(await anext(aiter(live))).flow.uid for _ in range(3)]

    assert play(body) == ["C2", "C3", "C4"]


def test_who_waits_hears_of_the_end(checkpoint_dir):
    async def body(sensor):
        live = tapline.stream(sensor.url, model=checkpoint_dir)

        async def take():
            return [each async for each in live]

        task = asyncio.ensure_future(take())
        await sensor.wait_for_client()
        await live.aclose()
        return await task

    assert play(body) == []


def test_the_end_marker_of_a_sensor_is_answered(checkpoint_dir):
    async def body(sensor):
        async with tapline.stream(sensor.url, model=checkpoint_dir):
            await sensor.wait_for_client()
            await sensor.publish(BusEvent("tapline/stats", "Tapline::finished", [1, "tap-1", 1]))
            while not sensor.received:
                await asyncio.sleep(0.01)
            return sensor.received

    assert [name for name, _ in play(body)] == ["Tapline::finished_ack"]


@pytest.mark.parametrize("urls", ["http://127.0.0.1:1", ["ws://127.0.0.1:1", "ws://127.0.0.1:1"]])
def test_a_url_that_cannot_be_used_is_refused(checkpoint_dir, urls):
    async def body(sensor):
        async with tapline.stream(urls, model=checkpoint_dir):
            pass

    with pytest.raises(TransportError):
        play(body)


def test_a_stream_is_started_once(checkpoint_dir):
    async def body(sensor):
        live = tapline.stream(sensor.url, model=checkpoint_dir)
        assert repr(live) == "<Stream of 1 sensor, not started>"  # a URL may hold a password
        async with live:
            assert repr(live) == "<Stream of 1 sensor, running>"
        assert repr(live) == "<Stream of 1 sensor, ended>"
        assert [each async for each in live] == []
        with pytest.raises(RuntimeError, match="started once"):
            await live.__aenter__()

    play(body)
