"""An alert from its rule to every output: a real Zeek on one end of a wire, a real capture sent down the other."""

import json
import logging
import os
import shutil
import time

import pytest

from tapline.service.inference.repository import shipped_checkpoint
from tests.paths import DATA
from tests.service.api.served import Server
from tests.week.receivers import SyslogServer, WebhookServer, identity
from tests.zeek.wire import TAPPED, send_capture, wire

confluent_kafka = pytest.importorskip("confluent_kafka")

pytestmark = [
    pytest.mark.zeek,
    pytest.mark.whole,
    pytest.mark.skipif(shutil.which("zeek") is None, reason="no zeek on PATH"),
    pytest.mark.skipif(os.geteuid() != 0, reason="capturing takes root"),
]

RULES = """
[[rule]]
name = "names-in-the-clear"
port = 53
severity = "high"
message = "{originator} asks {responder} for names: {label}"
suppress = { seconds = 0 }
"""
QUIET = logging.getLogger("quiet")
QUIET.setLevel(logging.CRITICAL + 1)
SECONDS = 120


@pytest.fixture(autouse=True)
def tapped_wire():
    with wire():
        yield


@pytest.fixture
def cluster():
    owner = confluent_kafka.Producer({"test.mock.num.brokers": 1, "bootstrap.servers": "mock"}, logger=QUIET)
    yield ",".join(f"{broker.host}:{broker.port}" for broker in owner.list_topics(timeout=20).brokers.values())
    del owner


def in_topic(brokers, topic, count):
    consumer = confluent_kafka.Consumer(
        {"bootstrap.servers": brokers, "group.id": "g", "auto.offset.reset": "earliest"}, logger=QUIET
    )
    try:
        consumer.subscribe([topic])
        found, deadline = [], time.monotonic() + 30
        while len(found) < count and time.monotonic() < deadline:
            found += [json.loads(message.value()) for message in consumer.consume(100, 0.2) if not message.error()]
        return found
    finally:
        consumer.close()


def test_an_alert_is_in_every_output(cluster, tmp_path):
    syslog, webhook = SyslogServer(), WebhookServer()
    (tmp_path / "rules.toml").write_text(RULES)
    eve, secret = tmp_path / "eve.json", tmp_path / "secret"
    secret.write_text("a secret of the webhook")
    secret.chmod(0o600)
    flags = ["--traces", "none", "--interface", f"{TAPPED}=office", "--alerts", tmp_path / "rules.toml"]
    for output in (
        f"eve:{eve}",
        f"syslog+tcp://127.0.0.1:{syslog.port}?records=alerts",
        f"http://127.0.0.1:{webhook.port}/hook?secret_file={secret}&records=alerts",
        f"kafka://{cluster}/alerts?records=alerts",
    ):
        flags += ["--output", output]
    model = shipped_checkpoint("flow-protocols")
    with syslog.running(), webhook.running(), Server(tmp_path, model, *flags) as server:
        server.wait(lambda: connected(server))
        send_capture(DATA / "captures" / "android.pcap")
        server.wait(lambda: alerts_of(server))
        settled(server)
        kept = alerts_of(server)
        assert server.stop() == 0
    records = [json.loads(line) for line in eve.read_text().splitlines()]
    alerts = {identity(each): each for each in records if each["event_type"] == "alert"}
    assert len(alerts) > 5
    assert {alert["id"] for alert in kept} == set(alerts)
    assert set(syslog.received.alerts) == set(webhook.received.alerts) == set(alerts)
    assert {identity(each) for each in in_topic(cluster, "alerts", len(alerts))} == set(alerts)
    flows = {each["tapline"]["uid"]: each for each in records if each["event_type"] == "flow"}
    for alert in alerts.values():
        flow = flows[alert["tapline"]["uid"]]
        for key in ("community_id", "flow_id", "src_ip", "src_port", "dest_ip", "dest_port", "proto"):
            assert alert[key] == flow[key]
        assert (alert["dest_port"], alert["tapline"]["rule"]) == (53, "names-in-the-clear")
        assert alert["tapline"]["sensor"] == "office"
        assert alert["tapline"]["model"] == flow["tapline"]["model"]


def connected(server):
    return all(bus["connected"] for bus in json.loads(server.ask("GET", "/v1/live")[1])["buses"])


def alerts_of(server):
    return json.loads(server.ask("GET", "/v1/alerts?limit=1000")[1])["alerts"]


def settled(server):
    """Until no alert came for three seconds."""
    count, since = -1, time.monotonic()
    while time.monotonic() - since < 3:
        if (found := len(alerts_of(server))) != count:
            count, since = found, time.monotonic()
        time.sleep(0.2)
