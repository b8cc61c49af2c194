"""One suite over both transports: flows arrive typed, gaps and faults are counted, lost connections come back."""

import asyncio
import contextlib
import time
from contextlib import asynccontextmanager

import pytest
from msgspec import structs
from websockets.asyncio.server import serve

from tapline.service.metrics import Metrics
from tapline.service.sinks.zeek_sink import ZeekSink, verdict_row
from tapline.service.sources.bus import transport
from tapline.service.sources.bus.answers import verdicts_event
from tapline.service.sources.bus.events import BusEvent, VerdictsAck
from tapline.service.sources.bus.source import STARTING_SECONDS, BusSource, make_transport
from tapline.service.sources.bus.transport import Disconnected, TlsFiles, TransportError, pause_seconds, shown_url
from tests.batches import flows_event
from tests.conftest import make_flows
from tests.logged import capture_logs
from tests.service.sources.bus.sensors import NativeSensor, WebSocketSensor, native_is_importable
from tests.service.sources.bus.test_events import FLOW, FLOW_ARGS, flow_event

SENSORS = [
    pytest.param(WebSocketSensor, id="websocket"),
    pytest.param(
        NativeSensor,
        id="native",
        marks=pytest.mark.skipif(not native_is_importable(), reason="Broker's Python bindings are not installed"),
    ),
]


@pytest.fixture(params=SENSORS)
def sensor(request):
    return request.param()


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(transport, "LONGEST_PAUSE_SECONDS", 0.3)


class Receiver:
    """A source on a sensor, and what came of it."""

    def __init__(self, url):
        self.flows = []
        self.acks = []
        self.metrics = Metrics()
        self.source = BusSource(
            make_transport(url, TlsFiles()), self.metrics, take_flow=self.flows.append, take_ack=self.acks.append
        )

    def value(self, name, **labels):
        return self.metrics.registry.get_sample_value(name, labels) or 0


async def until(condition):
    while not condition():
        await asyncio.sleep(0.01)


def play(sensor, body):
    async def main():
        async with asyncio.timeout(30), sensor.running():
            receiver = Receiver(sensor.url)
            task = asyncio.create_task(receiver.source.run())
            try:
                await sensor.wait_for_client()
                await until(lambda: receiver.source.state.connected)
                await body(receiver)
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            return receiver

    return asyncio.run(main())


def test_flows_arrive_typed_and_in_order(sensor):
    async def body(receiver):
        for seq in range(1, 51):
            await sensor.publish(flow_event(a2=seq, a4=f"C{seq}", a3=seq % 2 == 0))
        await until(lambda: len(receiver.flows) == 50)

    receiver = play(sensor, body)
    assert [flow.uid for flow in receiver.flows] == [f"C{seq}" for seq in range(1, 51)]
    assert receiver.flows[0].payload_lengths == [517, -1448, 64]
    state = receiver.source.state.sensors["tap-1"]
    assert (state.flows, state.early, state.missed) == (50, 25, 0)
    assert receiver.value("tapline_bus_flows_total", sensor="tap-1", kind="early") == 25


def test_batches_arrive_typed_and_in_order(sensor):
    sent = [structs.replace(FLOW, uid=f"C{seq}", complete=seq % 2 == 0) for seq in range(1, 151)]

    async def body(receiver):
        for first in range(0, 150, 64):
            await sensor.publish(flows_event(sent[first : first + 64], first + 1, sensor="tap-1"))
        await until(lambda: len(receiver.flows) == 150)

    with capture_logs() as said:
        receiver = play(sensor, body)
    assert receiver.flows == sent
    state = receiver.source.state.sensors["tap-1"]
    assert (state.flows, state.early, state.missed, state.format) == (150, 75, 0, 2)
    assert receiver.value("tapline_bus_flows_total", sensor="tap-1", kind="early") == 75
    [line] = [line for line in said if line["event"] == "sensor sends flows"]
    assert (line["sensor"], line["format"], line["hint"]) == ("tap-1", 2, None)


def test_no_end_marker_comes_before_the_flows(sensor):
    arrived = []

    async def body(receiver):
        receiver.source.end_marker.set = lambda: arrived.append(len(receiver.flows))
        for seq in range(1, 1001):
            await sensor.publish(flow_event(a2=seq))
        await sensor.publish(BusEvent("tapline/stats", "Tapline::finished", [1, "tap-1", 1000]))
        await until(lambda: arrived)

    play(sensor, body)
    assert arrived == [1000]


def test_a_sensor_of_the_format_before_is_told_to_be_updated(sensor):
    async def body(receiver):
        await sensor.publish(flow_event())
        await until(lambda: receiver.flows)

    with capture_logs() as said:
        receiver = play(sensor, body)
    assert receiver.source.state.sensors["tap-1"].format == 1
    [line] = [line for line in said if line["event"] == "sensor sends flows"]
    assert line["format"] == 1
    assert line["hint"].startswith("update its tapline package")


def test_gaps_and_restarts_are_counted_per_sensor(sensor):
    async def body(receiver):
        for name, seq in (("a", 5), ("a", 6), ("b", 1), ("a", 9), ("b", 2), ("a", 1), ("a", 2)):
            await sensor.publish(flow_event(a1=name, a2=seq))
        await until(lambda: len(receiver.flows) == 7)

    receiver = play(sensor, body)
    sensors = receiver.source.state.sensors
    assert (sensors["a"].missed, sensors["a"].restarts) == (2, 1)
    assert (sensors["b"].missed, sensors["b"].restarts) == (0, 0)
    assert receiver.value("tapline_bus_missed_flows_total", sensor="a") == 2


def test_a_malformed_event_costs_one_counter(sensor):
    async def body(receiver):
        await sensor.publish(flow_event(a21="not hex"))
        await sensor.publish(flow_event(a0=2))
        await sensor.publish(BusEvent("tapline/flows/0", "Tapline::flow", FLOW_ARGS[:3]))
        await sensor.publish(flow_event())
        await until(lambda: receiver.flows)

    receiver = play(sensor, body)
    assert len(receiver.flows) == 1
    assert receiver.value("tapline_bus_refused_events_total", url=receiver.source.state.url, reason="malformed") == 2
    assert receiver.value("tapline_bus_refused_events_total", url=receiver.source.state.url, reason="version") == 1


def test_verdicts_go_back_in_batches_and_are_acknowledged(sensor):
    async def body(receiver):
        sink = ZeekSink(receiver.source.transport, receiver.metrics, 1000, verdicts_event)
        receiver.source._take_ack = sink.acknowledge
        task = asyncio.create_task(sink.run())
        verdict = make_verdict()
        for flow in make_flows(250):
            sink.put(verdict_row(flow, verdict))
        await until(lambda: len(sensor.received) == 3)
        assert sink.pending_verdicts == 250
        for name, (version, batch, service, rows) in list(sensor.received):
            assert (name, version, service) == ("Tapline::verdicts", 1, sink.service)
            await sensor.publish(BusEvent("tapline/acks", "Tapline::verdicts_ack", [1, service, batch, len(rows)]))
        await until(lambda: sink.pending_verdicts == 0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    receiver = play(sensor, body)
    assert [len(args[3]) for _, args in sensor.received] == [100, 100, 50]
    assert sensor.received[0][1][3][0][:3] == ["F0", sensor.received[0][1][3][0][1], "10.0.0.1"]
    assert receiver.value("tapline_verdicts_returned_total", url=receiver.source.state.url) == 250


def make_verdict():
    from tapline.models.verdict import Verdict

    return Verdict("dns", "dns", 0.75, False, [], "m", "1")


def test_a_lost_connection_comes_back(sensor):
    async def main():
        async with asyncio.timeout(40):
            async with sensor.running():
                receiver = Receiver(sensor.url)
                task = asyncio.create_task(receiver.source.run())
                await sensor.wait_for_client()
                await until(lambda: receiver.source.state.connected)
                await sensor.publish(flow_event(a2=1))
                await until(lambda: receiver.flows)
                port = sensor.port
                await sensor.cut()
                await until(lambda: not receiver.source.state.connected or receiver.source.state.connections > 1)
            async with sensor.running(port):
                await sensor.wait_for_client()
                await until(lambda: receiver.source.state.connected)
                await sensor.publish(flow_event(a2=11))
                await until(lambda: len(receiver.flows) == 2)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            return receiver

    receiver = asyncio.run(main())
    assert receiver.source.state.connections >= 2
    assert receiver.source.state.sensors["tap-1"].missed == 9


def test_the_end_marker_is_answered(sensor):
    async def body(receiver):
        await sensor.publish(BusEvent("tapline/stats", "Tapline::finished", [1, "tap-1", 3]))
        await receiver.source.end_marker.wait()
        await asyncio.sleep(0.2)  # the native transport subscribes both ways on its own time
        await receiver.source.confirm_finished()
        await until(lambda: sensor.received)

    play(sensor, body)
    assert sensor.received == [("Tapline::finished_ack", [1, "tap-1"])]


def test_websocket_names_itself_and_subscribes_to_its_shards():
    sensor = WebSocketSensor()

    async def main():
        async with asyncio.timeout(20), sensor.running():
            bus = make_transport(sensor.url, TlsFiles(), ["3"])
            task = asyncio.create_task(bus.run(lambda incoming: None))
            await sensor.wait_for_client()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    asyncio.run(main())
    assert sensor.headers[0]["X-Application-Name"] == "tapline"
    assert sensor.subscriptions == [["tapline/flows/3", "tapline/stats", "tapline/acks"]]


def test_how_far_behind_a_sensor_is():
    sensor = WebSocketSensor()

    async def body(receiver):
        at_us = time.time_ns() // 1000 - 5_000_000
        await sensor.publish(BusEvent("tapline/stats", "Tapline::stats", [1, "tap-1", at_us, *[0] * 12, -1.0]))
        await until(lambda: receiver.source.state.sensors)

    lag_seconds = play(sensor, body).source.state.sensors["tap-1"].lag_seconds
    assert 5 <= lag_seconds < 60


def test_broken_frames_do_not_end_the_session():
    sensor = WebSocketSensor()

    async def body(receiver):
        for text in ("{", "[]", '{"type":"error","code":"deserialization_failed","context":"x"}', "{}"):
            await sensor.send(text)
        await sensor.publish(flow_event())
        await until(lambda: receiver.flows)

    receiver = play(sensor, body)
    assert receiver.source.state.malformed == 4
    assert receiver.source.state.connections == 1


def test_something_else_on_the_port():
    async def main():
        async def refuse(reader, writer):
            writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
            writer.close()

        server = await asyncio.start_server(refuse, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        receiver = Receiver(f"ws://127.0.0.1:{port}")
        task = asyncio.create_task(receiver.source.run())
        async with asyncio.timeout(20):
            await until(lambda: "not Zeek" in receiver.source.state.reason)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        server.close()
        return receiver.source.state

    assert not asyncio.run(main()).connected


def reasons(scheme, server, count=1):
    """What an operator is told of a connection that fails, or ends; `server()` listens while it is entered."""

    async def main():
        told, enough = [], asyncio.Event()

        def receive(incoming):
            if isinstance(incoming, Disconnected):
                told.append(incoming.reason)
            if len(told) == count:
                enough.set()

        async with asyncio.timeout(30), server() as listening:
            port = listening.sockets[0].getsockname()[1]
            task = asyncio.create_task(make_transport(f"{scheme}://127.0.0.1:{port}", TlsFiles()).run(receive))
            await enough.wait()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        return told

    return asyncio.run(main())


@asynccontextmanager
async def hanging_up():
    async def hang_up(reader, writer):
        writer.close()

    async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as server:
        yield server


def test_a_sensor_that_hangs_up_is_not_taken_for_one_that_wants_a_certificate():
    (reason,) = reasons("ws", hanging_up)
    assert reason == "closed before it answered: the sensor is starting or ending, or speaks TLS (wss://)"
    (reason,) = reasons("wss", hanging_up)
    assert reason.startswith(
        "closed before it answered: the sensor is starting or ending, or wants a client certificate"
    )


def test_the_end_of_a_sensors_bus_is_called_that():
    async def session(connection):
        await connection.recv()
        await connection.send('{"type":"ack","endpoint":"fake","version":"8.0.10"}')
        await connection.close()

    requests = []

    async def answer_once(connection, request):
        requests.append(request)
        if len(requests) > 1:
            connection.transport.abort()

    def server():
        return serve(session, "127.0.0.1", 0, process_request=answer_once)

    assert reasons("ws", server, count=2) == [
        "the sensor closed its bus",
        "closed before it answered: the sensor is starting or ending",
    ]


@pytest.mark.parametrize("url", ["http://x:1", "ws://", "tcp://x", "broker:", "ws://[x", "ws://x:99999"])
def test_bad_addresses(url):
    with pytest.raises(TransportError, match="expected"):
        make_transport(url, TlsFiles())


SECRETS = ["ws://user:s3cret@h:1", "ws://user:s3/cret@h:1", "ws://s3cret@h:1", "tcp://u:s3cret@h", "ws://u:a?s3cret@h"]


@pytest.mark.parametrize("url", [*SECRETS, "ws://h:1/?token=s3cret", "ws://u:s3cret@[h", "u:s3cret@h:1"])
def test_no_password_of_an_address_is_shown(url):
    shown = shown_url(url)
    with contextlib.suppress(TransportError):
        shown += make_transport(url, TlsFiles()).url
    assert "cret" not in shown


@pytest.mark.parametrize("url", ["ws://s3cret@h:1", "ws://u:s3cret@[h", "tcp://u:s3cret@h", "ws://u:s3/cret@h:1"])
def test_no_password_of_a_refused_address_is_shown(url):
    with pytest.raises(TransportError, match="expected ws://host:port") as refused:
        make_transport(url, TlsFiles())
    assert "cret" not in str(refused.value)


def test_what_an_address_shows():
    shown = {
        "ws://h:1": "ws://h:1",
        "ws://h:1/": "ws://h:1",
        "wss://user:s3cret@[::1]:27759/bus?x=1#y": "wss://[::1]:27759/bus",
        "ws://u:s3/cret@h": "ws://...",
        "nonsense": "...",
    }
    assert {url: shown_url(url) for url in shown} == shown


def test_a_password_reaches_the_sensor():
    sensor = WebSocketSensor()

    async def main():
        async with asyncio.timeout(20), sensor.running():
            bus = make_transport(sensor.url.replace("//", "//user:s3cret@"), TlsFiles())
            task = asyncio.create_task(bus.run(lambda incoming: None))
            await sensor.wait_for_client()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    asyncio.run(main())
    assert sensor.headers[0]["Authorization"] == "Basic dXNlcjpzM2NyZXQ="


def test_tls_files_that_cannot_be_used(tmp_path):
    with pytest.raises(TransportError, match="the TLS files for Zeek cannot be used"):
        make_transport("wss://127.0.0.1:1", TlsFiles(ca=tmp_path / "missing.pem"))


def test_pauses_grow_are_capped_and_jittered(monkeypatch):
    monkeypatch.setattr(transport, "LONGEST_PAUSE_SECONDS", 15.0)
    samples = [[pause_seconds(failures) for _ in range(200)] for failures in (0, 3, 50)]
    assert max(samples[0]) <= 0.25
    assert 1 < max(samples[1]) <= 2
    assert 10 < max(samples[2]) <= 15
    assert len(set(samples[2])) > 100


def test_the_spool_is_bounded_and_loses_the_oldest():
    class Away:
        url = "ws://away"

        async def publish(self, event):
            return False

    async def main():
        metrics = Metrics()
        sink = ZeekSink(Away(), metrics, 5, verdicts_event)
        for flow in make_flows(8):
            sink.put(verdict_row(flow, make_verdict()))
        assert sink.pending_verdicts == 5
        assert [row.uid for row in sink._waiting] == ["F3", "F4", "F5", "F6", "F7"]
        sink.acknowledge(VerdictsAck("someone else", 1, 5))
        assert sink.pending_verdicts == 5
        return metrics.registry.get_sample_value("tapline_verdicts_lost_total", {"url": "ws://away"})

    assert asyncio.run(main()) == 3


def test_unacknowledged_batches_are_sent_again_after_a_reconnection():
    sensor = WebSocketSensor()

    async def body(receiver):
        sink = ZeekSink(receiver.source.transport, receiver.metrics, 1000, verdicts_event)
        receiver.source._on_connected = sink.resend_all
        task = asyncio.create_task(sink.run())
        sink.put(verdict_row(make_flows(1)[0], make_verdict()))
        await until(lambda: len(sensor.received) == 1)
        await sensor.cut()
        await until(lambda: len(sensor.received) == 2)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    play(sensor, body)
    assert sensor.received[0] == sensor.received[1]


def test_a_sensor_that_still_starts_is_no_warning():
    source = Receiver("ws://127.0.0.1:9").source
    with capture_logs() as said:
        source._receive(Disconnected("connection refused"))
        source.state.away_since -= STARTING_SECONDS
        source._receive(Disconnected("connection refused"))
    assert [(line["log_level"], line["event"]) for line in said] == [
        ("info", "sensor not connected yet"),
        ("warning", "sensor not connected, trying again"),
    ]
