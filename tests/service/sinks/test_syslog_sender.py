"""Syslog to real receivers on loopback: framing, TLS with client certificates, slow and dying receivers."""

import asyncio
import contextlib
import re
import socket
import ssl
import threading

import msgspec
import pytest
import trustme

from tapline.service.sinks.eve_records import eve_alert, eve_flow, eve_trace
from tapline.service.sinks.output_queue import Pending, Record
from tapline.service.sinks.output_url import OutputError, parse_output
from tapline.service.sinks.sender import AwayError
from tapline.service.sinks.syslog_sender import SyslogSender
from tests.service.sinks.records import ALERT, FLOW, TRACE, VERDICT, numbered, outputs_of, pending, until

FLOWS = [Record("flows", eve_flow(1, "s", FLOW, VERDICT)), Record("traces", eve_trace(1, TRACE))]
MESSAGE = re.compile(
    rb"<(?P<pri>\d{1,3})>1 (?P<at>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}[+-]\d\d:\d\d) (?P<host>[!-~]{1,255}) tapline "
    rb"\d{1,10} (?P<id>[!-~]{1,32}) - (?P<text>\{.*\})", re.DOTALL,
)  # fmt: skip


def unframed(data):
    """The messages of octet counting (RFC 6587, 3.4.1), whole ones only."""
    found, at, length = [], 0, re.compile(rb"([1-9]\d*) ")
    while match := length.match(data, at):
        at = match.end() + int(match[1])
        if at > len(data):
            break
        found.append(bytes(data[match.end() : at]))
    return found


def numbers(messages):
    return [msgspec.json.decode(MESSAGE.fullmatch(each)["text"])["number"] for each in messages]


class Receiver:
    """Takes connections and reads them, as far as it is let."""

    def __init__(self, context=None, port=0):
        self.listener = socket.create_server(("127.0.0.1", port))
        self.port = self.listener.getsockname()[1]
        self.data = []
        self.subjects = []
        self.reads = threading.Event()
        self.reads.set()
        self._context = context
        self._connections = []
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                self._connections.append(connection)
                threading.Thread(target=self._read, args=(connection,), daemon=True).start()

    def _read(self, connection):
        with contextlib.suppress(OSError):
            if self._context is not None:
                connection = self._context.wrap_socket(connection, server_side=True)
                self._connections.append(connection)
                self.subjects.append(connection.getpeercert())
            self.data.append(bytearray())
            number = len(self.data) - 1
            while self.reads.wait(20) and (data := connection.recv(65_536)):
                self.data[number] += data

    @property
    def messages(self):
        return [message for data in self.data for message in unframed(data)]

    def stop(self):
        self.reads.set()
        if self.listener.fileno() < 0:
            return
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self._thread.join(20)
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()


@pytest.fixture
def receive():
    """Starts receivers, which are stopped at the end."""
    started = []

    def start(*args, **options):
        started.append(Receiver(*args, **options))
        return started[-1]

    yield start
    for each in started:
        each.stop()


@pytest.fixture
def connect():
    """Makes senders, which are closed at the end."""
    made = []

    def make(url):
        made.append(SyslogSender(parse_output(url)))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture(scope="module")
def ca():
    return trustme.CA()


@pytest.fixture
def tls(ca, tmp_path):
    """The context of a receiver that wants a client's certificate, and the parameters of a sender that has one."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("localhost").configure_cert(context)
    ca.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    client = ca.issue_cert("sensor.example.org")
    client.private_key_and_cert_chain_pem.write_to_path(tmp_path / "client.pem")
    return context, f"?ca={tmp_path / 'ca.pem'}&cert={tmp_path / 'client.pem'}"


async def test_messages_are_those_of_the_standard(receive, connect):
    receiver = receive()
    sender = connect(f"syslog+tcp://127.0.0.1:{receiver.port}?facility=local4")
    alerts = [
        Record("alerts", eve_alert(msgspec.structs.replace(ALERT, severity=severity)))
        for severity in ("critical", "high", "medium", "low")
    ]
    records = [*FLOWS, *alerts]
    assert sender.send(records) == ()
    await until(lambda: len(receiver.messages) == len(records))
    found = [MESSAGE.fullmatch(message) for message in receiver.messages]
    assert all(found)
    assert [match["text"] for match in found] == [record.line for record in records]
    assert [int(match["pri"]) - 20 * 8 for match in found] == [6, 6, 2, 3, 4, 5]
    assert [match["id"] for match in found] == [b"flow", b"tapline_trace", *[b"alert"] * 4]
    assert found[2]["at"] == b"2023-11-14T22:13:23.000001+00:00"


async def test_lengths_are_counted_in_octets(receive, connect):
    receiver = receive()
    records = [Record("flows", eve_flow(1, "ü" * 20, FLOW, VERDICT)), numbered("flows", 1)]
    connect(f"syslog+tcp://127.0.0.1:{receiver.port}").send(records)
    await until(lambda: len(receiver.messages) == 2)
    assert numbers(receiver.messages[1:]) == [1]


async def test_datagrams_hold_one_message_each(connect):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        receiver.settimeout(20)
        too_large = Record("flows", numbered("flows", 1).line[:-1] + b',"pad":"' + b"x" * 65_507 + b'"}')
        records = [numbered("flows", 0), too_large, numbered("flows", 2)]
        sender = connect(f"syslog+udp://127.0.0.1:{receiver.getsockname()[1]}")
        assert sender.send(records) == [too_large]
        assert numbers([receiver.recv(65_536) for _ in range(2)]) == [0, 2]


async def test_tls_shows_a_certificate_and_closes_in_order(receive, connect, tls):
    context, parameters = tls
    receiver = receive(context)
    sender = connect(f"syslog+tls://localhost:{receiver.port}{parameters}")
    sender.send([numbered("flows", 0)])
    sender.send([numbered("flows", 1)])
    sender.close()
    await until(lambda: len(receiver.messages) == 2)
    assert len(receiver.data) == 1  # one connection
    assert receiver.subjects[0]["subjectAltName"] == (("DNS", "sensor.example.org"),)


@pytest.mark.parametrize(
    ("host", "wrong", "reason"),
    [("localhost", "ca", "certificate verify failed"), ("127.0.0.1", "name", "certificate verify failed")],
)
def test_a_receiver_that_is_not_the_right_one_gets_nothing(receive, connect, tls, tmp_path, host, wrong, reason):
    context, parameters = tls
    if wrong == "ca":
        trustme.CA().cert_pem.write_to_path(tmp_path / "ca.pem")
    receiver = receive(context)
    with pytest.raises(AwayError, match=reason):
        connect(f"syslog+tls://{host}:{receiver.port}{parameters}").send([numbered("flows", 0)])
    assert receiver.messages == []


async def test_a_client_without_a_certificate_is_refused_and_told(receive, tls, tmp_path):
    """In TLS 1.3 the sender hears of it only after its first message."""
    context, parameters = tls
    receiver = receive(context)
    url = f"syslog+tls://localhost:{receiver.port}{parameters.partition('&')[0]}&timeout_seconds=1"
    async with outputs_of(tmp_path, url, stop_seconds=1) as outputs:
        (delivery,) = outputs.deliveries
        for number in range(1000):
            delivery.put(pending("flows", number))
            await until(lambda expected=number + 1: delivery.counts.written >= expected or delivery.problem)
            if delivery.problem is not None:
                break
            await asyncio.sleep(0.01)
        assert delivery.problem is not None
    assert receiver.messages == []


@pytest.mark.parametrize("parameter", ["ca", "cert"])
def test_files_that_are_none_are_told_at_the_start(tmp_path, parameter):
    (tmp_path / "bad.pem").write_text("no PEM")
    for name in ("bad.pem", "missing.pem"):
        with pytest.raises(OutputError, match=f"{parameter}.*PEM file"):
            SyslogSender(parse_output(f"syslog+tls://localhost:6514?{parameter}={tmp_path / name}"))


def test_a_key_with_a_password_asks_nobody(tmp_path, ca):
    from cryptography.hazmat.primitives import serialization

    issued = ca.issue_cert("a.example.org")
    key = serialization.load_pem_private_key(issued.private_key_pem.bytes(), None)
    (tmp_path / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"hunter2"),
        )
    )
    issued.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    with pytest.raises(OutputError, match="give one without"):
        SyslogSender(parse_output(f"syslog+tls://h?cert={tmp_path / 'cert.pem'}&key={tmp_path / 'key.pem'}"))


def test_nobody_there_is_said(connect):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(AwayError, match=f"syslog\\+tcp://127.0.0.1:{port}: connection refused"):
        connect(f"syslog+tcp://127.0.0.1:{port}").send([numbered("flows", 0)])
    with pytest.raises(AwayError, match=r"not known|resolution|No address"):
        connect("syslog+tcp://nowhere.invalid").send([numbered("flows", 0)])


async def test_a_receiver_that_comes_back_gets_what_the_spool_kept(receive, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    url = f"syslog+tcp://127.0.0.1:{port}"
    async with outputs_of(tmp_path, url) as outputs:
        (delivery,) = outputs.deliveries
        for number in range(100):
            delivery.put(pending("flows", number))
        await until(lambda: delivery.spooled == 100)
    receiver = receive(port=port)
    async with outputs_of(tmp_path, url) as outputs:
        await until(lambda: outputs.deliveries[0].counts.written == 100)
    await until(lambda: len(receiver.messages) == 100)
    assert numbers(receiver.messages) == list(range(100))


async def test_a_connection_that_was_closed_is_noticed_before_a_batch(receive, connect):
    receiver = receive()
    sender = connect(f"syslog+tcp://127.0.0.1:{receiver.port}")
    sender.send([numbered("flows", 0)])
    await until(lambda: len(receiver.messages) == 1)
    receiver.stop()
    again = receive(port=receiver.port)
    sender.send([numbered("flows", 1)])
    await until(lambda: len(again.messages) == 1)
    assert numbers(again.messages) == [1]


def test_a_receiver_that_does_not_read_is_given_up_in_time(receive, connect):
    receiver = receive()
    receiver.reads.clear()
    sender = connect(f"syslog+tcp://127.0.0.1:{receiver.port}?timeout_seconds=0.3")
    large = Record("flows", numbered("flows", 0).line[:-1] + b',"pad":"' + b"x" * (1 << 20) + b'"}')
    with pytest.raises(AwayError, match="timed out"):
        sender.send([large] * 100)


async def test_a_slow_receiver_gets_everything_in_the_end(receive, tmp_path):
    receiver = receive()
    receiver.reads.clear()
    async with outputs_of(tmp_path, f"syslog+tcp://127.0.0.1:{receiver.port}?timeout_seconds=20") as outputs:
        (delivery,) = outputs.deliveries
        pad = b',"pad":"' + b"x" * 10_000 + b'"}'
        for number in range(2000):
            line = numbered("flows", number).line[:-1] + pad
            delivery.put(Pending.of(Record("flows", line)))
        await until(lambda: delivery.counts.written > 0)
        assert delivery.counts.written < 2000
        receiver.reads.set()
        await until(lambda: delivery.counts.written == 2000)
    await until(lambda: b'"number":1999,' in receiver.data[0][-20_000:] and receiver.data[0].endswith(b"}"))
    assert numbers(receiver.messages) == list(range(2000))
