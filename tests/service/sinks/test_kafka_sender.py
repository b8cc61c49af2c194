"""Kafka, on the mock cluster that librdkafka has in itself."""

import logging
import subprocess
import sys

import pytest

from tapline.service.sinks.kafka_sender import KafkaSender
from tapline.service.sinks.output_queue import Record
from tapline.service.sinks.output_url import OutputError, parse_output
from tapline.service.sinks.sender import AwayError
from tests.service.sinks.records import numbered, numbers, outputs_of, pending, until

confluent_kafka = pytest.importorskip("confluent_kafka")

QUIET = logging.getLogger("quiet")
QUIET.setLevel(logging.CRITICAL + 1)


@pytest.fixture
def cluster():
    """A cluster that lives as long as its producer, and the address of its brokers."""
    owner = confluent_kafka.Producer({"test.mock.num.brokers": 2, "bootstrap.servers": "mock"}, logger=QUIET)
    brokers = owner.list_topics(timeout=20).brokers.values()
    yield ",".join(f"{broker.host}:{broker.port}" for broker in brokers)
    del owner


def consumed(brokers, topic, count):
    consumer = confluent_kafka.Consumer(
        {"bootstrap.servers": brokers, "group.id": "g", "auto.offset.reset": "earliest"}, logger=QUIET
    )
    try:
        consumer.subscribe([topic])
        found = []
        for _ in range(200):
            if len(found) >= count:
                break
            found += [message for message in consumer.consume(count, 0.1) if message.error() is None]
        return found
    finally:
        consumer.close()


def test_records_are_in_the_topic_under_their_keys(cluster):
    sender = KafkaSender(parse_output(f"kafka://{cluster}/tapline"))
    records = [
        Record("flows", b'{"number":0,"community_id":"1:a=","src_ip":"10.0.0.1"}'),
        Record("traces", b'{"number":1,"src_ip":"10.0.0.1"}'),
        Record("traces", b'{"number":2,"dest_ip":"10.0.0.2"}'),
        Record("alerts", b'{"number":3}'),
    ]
    assert sender.send(records) == []
    sender.close()
    found = {message.value(): message.key() for message in consumed(cluster, "tapline", 4)}
    assert found == dict(zip([each.line for each in records], [b"1:a=", b"10.0.0.1", b"10.0.0.2", None], strict=True))


async def test_records_arrive_through_a_delivery(cluster, tmp_path):
    async with outputs_of(tmp_path, f"kafka://{cluster}/tapline.flows") as outputs:
        (delivery,) = outputs.deliveries
        for number in range(2500):
            delivery.put(pending("flows", number))
        await until(lambda: delivery.counts.written == 2500)
    found = consumed(cluster, "tapline.flows", 2500)
    assert sorted(numbers(message.value() for message in found)) == list(range(2500))


def test_what_is_too_large_is_refused_and_costs_no_other(cluster, tmp_path):
    config = tmp_path / "kafka.properties"
    config.write_text("# of the tests\n\nmessage.max.bytes=2000\n")
    sender = KafkaSender(parse_output(f"kafka://{cluster}/tapline?config_file={config}"))
    large = Record("flows", b'{"number":1,"pad":"%b"}' % (b"x" * 3000))
    assert sender.send([numbered("flows", 0), large, numbered("flows", 2)]) == [large]
    assert sorted(numbers(message.value() for message in consumed(cluster, "tapline", 2))) == [0, 2]


async def test_brokers_that_are_away_are_said_and_the_spool_keeps_records(tmp_path):
    url = "kafka://127.0.0.1:9/tapline?timeout_seconds=0.3"
    async with outputs_of(tmp_path, url) as outputs:
        (delivery,) = outputs.deliveries
        for number in range(10):
            delivery.put(pending("flows", number))
        await until(lambda: delivery.problem is not None)
        assert delivery.problem.startswith("kafka://127.0.0.1:9/tapline: ")
        await until(lambda: delivery.spooled == 10)
    assert (delivery.counts.written, delivery.counts.dropped) == (0, 0)


@pytest.mark.parametrize("config", [None, "test.mock.broker.rtt=x\n"])
def test_a_sender_reconnects_by_its_files(cluster, tmp_path, config):
    path = tmp_path / "kafka.properties"
    path.write_text("")
    sender = KafkaSender(parse_output(f"kafka://{cluster}/tapline?config_file={path}"))
    if config is None:
        path.unlink()
    else:
        path.write_text(config)
    sender.reopen()
    with pytest.raises(AwayError, match=r"config_file|broker"):
        sender.send([numbered("flows", 0)])
    path.write_text("")
    assert sender.send([numbered("flows", 0)]) == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [("no equals sign hunter2", "line 1: expected key=value"), ("no.such.property=hunter2", "no.such.property")],
)
def test_a_config_file_that_is_wrong_is_told_without_its_values(tmp_path, text, problem):
    (tmp_path / "kafka.properties").write_text(text)
    with pytest.raises(OutputError, match=problem) as error:
        KafkaSender(parse_output(f"kafka://h/t?config_file={tmp_path / 'kafka.properties'}"))
    assert "hunter2" not in str(error.value)


def test_tls_files_are_librdkafkas(tmp_path):
    with pytest.raises(OutputError, match=r"ssl\.ca\.location"):
        KafkaSender(parse_output(f"kafka+tls://h/t?ca={tmp_path / 'missing.pem'}"))


def test_without_the_extra_it_says_how_to_add_it():
    code = """
import sys
sys.modules["confluent_kafka"] = None
from tapline.service.sinks.output_url import OutputError, parse_output
from tapline.service.sinks.outputs import make_sender
try:
    make_sender(parse_output("kafka://h/t"))
except OutputError as error:
    print(error)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout.startswith("kafka://h/t needs confluent-kafka: ")
    assert "kafka]" in found.stdout
