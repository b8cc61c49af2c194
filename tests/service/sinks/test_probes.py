"""Outputs nobody has sent anything to yet: whether the other side is there is known all the same."""

import contextlib
import logging
import socket
import time

import pytest
import trustme

from tapline.service.metrics import Metrics
from tapline.service.sinks.delivery import Delivery
from tapline.service.sinks.output_url import EveOutput, OutputError, parse_output
from tapline.service.sinks.outputs import Outputs, make_sender
from tapline.service.sinks.sender import AwayError
from tests.logged import capture_logs
from tests.service.sinks.hook import Hook
from tests.service.sinks.records import ToldSender, numbers, outputs_of, pending, sending, until


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr("tapline.service.sinks.delivery.pause_seconds", lambda failures: 0.01)
    monkeypatch.setattr("tapline.service.sinks.other_side.PROBE_SECONDS", 0.01)


def delivery_to(sender, metrics=None):
    return Delivery(EveOutput(shown="eve:x", name="x", path="x"), sender, metrics or Metrics(), None)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


async def test_what_goes_away_while_nothing_comes_is_told_once_and_so_is_its_return():
    sender, metrics = ToldSender(), Metrics()
    delivery = delivery_to(sender, metrics)
    up = metrics.output_up.labels("x")._value
    with capture_logs() as said:
        await _goes_and_comes_back(sender, delivery, up)
    events = [line["event"] for line in said]
    assert events.count("an output cannot be written") == events.count("an output is back") == 1
    assert sender.batches == []


async def _goes_and_comes_back(sender, delivery, up):
    async with sending(delivery):
        await until(lambda: sender.probes > 2)
        assert (delivery.problem, up.get()) == (None, 1)
        sender.away = "nobody there"
        await until(lambda: delivery.problem == "nobody there" and up.get() == 0)
        seen = sender.probes
        await until(lambda: sender.probes > seen + 5)
        sender.away = None
        await until(lambda: delivery.problem is None and up.get() == 1)


async def test_a_record_that_comes_while_it_is_looked_arrives():
    sender = ToldSender()
    sender.gate.clear()
    delivery = delivery_to(sender)
    async with sending(delivery):
        delivery.put(pending("alerts", 1))
        sender.gate.set()
        await until(lambda: delivery.counts.written == 1)
    assert numbers(sender.lines) == [1]


async def test_a_stop_does_not_wait_for_a_look_at_who_does_not_answer():
    sender = ToldSender()
    sender.gate.clear()
    started = time.monotonic()
    async with sending(delivery_to(sender), stop_seconds=60):
        pass
    sender.gate.set()
    assert time.monotonic() - started < 15


async def test_dead_receivers_are_a_problem_before_the_first_alert(tmp_path):
    closed = free_port()
    texts = [
        f"syslog+tcp://127.0.0.1:{closed}?records=alerts",
        f"syslog+tls://127.0.0.1:{closed}?records=alerts",
        f"http://127.0.0.1:{closed}/hook?records=alerts",
    ]
    async with outputs_of(tmp_path, *texts) as outputs:
        await until(lambda: all("refused" in (delivery.problem or "") for delivery in outputs.deliveries))


def test_a_webhook_is_connected_to_and_nothing_is_posted():
    hook = Hook()
    try:
        make_sender(parse_output(hook.url())).probe()
    finally:
        hook.stop()
    assert hook.posts == []
    with pytest.raises(AwayError, match="refused"):
        make_sender(parse_output(hook.url())).probe()


def test_a_certificate_that_nobody_signed_is_seen(tmp_path):
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ours = trustme.CA()
    ours.issue_cert("localhost").configure_cert(context)
    ours.cert_pem.write_to_path(tmp_path / "ca.pem")
    trustme.CA().cert_pem.write_to_path(tmp_path / "other.pem")
    hook = Hook(context)
    try:
        make_sender(parse_output(f"{hook.url('https')}ca={tmp_path / 'ca.pem'}")).probe()
        with pytest.raises(AwayError, match="certificate verify failed"):
            make_sender(parse_output(f"{hook.url('https')}ca={tmp_path / 'other.pem'}")).probe()
    finally:
        hook.stop()


def test_syslog_keeps_the_connection_for_what_comes():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sender = make_sender(parse_output(f"syslog+tcp://127.0.0.1:{listener.getsockname()[1]}"))
        sender.probe()
        sender.probe()
        listener.settimeout(5)
        with contextlib.closing(listener.accept()[0]):
            listener.settimeout(0)
            with pytest.raises(BlockingIOError):
                listener.accept()
        sender.close()


def test_kafka_is_asked_for_the_topic():
    confluent_kafka = pytest.importorskip("confluent_kafka")
    quiet = logging.getLogger("quiet")
    quiet.setLevel(logging.CRITICAL + 1)
    cluster = confluent_kafka.Producer({"test.mock.num.brokers": 1, "bootstrap.servers": "mock"}, logger=quiet)
    [broker] = cluster.list_topics(timeout=20).brokers.values()
    sender = make_sender(parse_output(f"kafka://{broker.host}:{broker.port}/tapline"))
    sender.probe()
    sender.close()
    away = make_sender(parse_output(f"kafka://127.0.0.1:{free_port()}/tapline?timeout_seconds=1"))
    with pytest.raises(AwayError, match=r"kafka://127\.0\.0\.1"):
        away.probe()
    away.close()


@pytest.mark.parametrize("path", ["/proc/x/eve.json", "{tmp}/file/eve.json"])
def test_a_file_that_cannot_be_written_is_refused_at_the_start(tmp_path, path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"^eve:.* cannot be written: ") as told:
        Outputs([f"eve:{path.format(tmp=tmp_path)}"], tmp_path, Metrics())
    assert "\n" not in str(told.value)
