"""The deadlines of a connection, on a clock of the test's own and a transport that records."""

import pytest
import uvicorn
from uvicorn.server import ServerState

from tapline.service.api import http_protocol
from tapline.service.api.http_protocol import DeadlineProtocol, Deadlines

SECONDS, RATE = 10, 100
BODY = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n"


class Transport:
    """What the protocol sees of a socket."""

    def __init__(self):
        self.written = b""
        self.unsent = 0
        self.ended = None

    def get_extra_info(self, name, default=None):
        return default

    def get_write_buffer_size(self):
        return self.unsent

    def write(self, data):
        self.written += data

    def close(self):
        self.ended = self.ended or "closed"

    def abort(self):
        self.ended = "aborted"

    def is_closing(self):
        return self.ended is not None

    def pause_reading(self):
        pass

    resume_reading = pause_reading


class Task:
    """A task that is never done."""

    def add_done_callback(self, done):
        pass


class Loop:
    """An event loop of which only the clock is asked, and tasks are not run."""

    now = 0.0

    def time(self):
        return self.now

    def create_task(self, work):
        work.close()
        return Task()


class Connection:
    """A connection of a protocol, with the time that passes."""

    def __init__(self, state=None):
        async def app(scope, receive, send):
            raise AssertionError("no task runs here")

        self.loop, self.transport = Loop(), Transport()
        config = uvicorn.Config(app, lifespan="off", ws="none")
        deadlines = Deadlines(SECONDS, RATE)
        self.protocol = DeadlineProtocol(config, state or ServerState(), {}, _loop=self.loop, deadlines=deadlines)
        self.protocol.connection_made(self.transport)

    def wait(self, seconds, data=b""):
        """Let time pass and checks run, and something come at the end of every second."""
        for _ in range(seconds):
            self.loop.now += 1
            self.protocol.check()
            if data:
                self.protocol.data_received(data)
        return self.transport.ended


@pytest.fixture
def connection():
    return Connection()


def test_a_head_has_its_time_and_no_more(connection):
    connection.protocol.data_received(BODY[:30])
    assert connection.wait(SECONDS - 1) is None
    assert connection.wait(1) == "closed"
    assert connection.transport.written.startswith(b"HTTP/1.1 408")


def test_a_head_in_drops_gains_no_time(connection):
    connection.protocol.data_received(b"GET / HTTP/1.1\r\nX: ")
    assert connection.wait(SECONDS, b"x") == "closed"


def test_silence_is_closed_in_silence(connection):
    assert connection.wait(SECONDS) == "closed"
    assert connection.transport.written == b""


def test_a_body_may_take_long_if_it_comes_fast_enough(connection):
    connection.protocol.data_received(BODY)
    assert connection.wait(20 * SECONDS, bytes(RATE + 20)) is None
    assert connection.wait(3 * SECONDS, bytes(RATE // 2)) == "closed"
    assert connection.transport.written.startswith(b"HTTP/1.1 408")
    assert connection.protocol.cycle.disconnected


def test_the_time_that_the_service_takes_is_not_the_clients(connection):
    connection.protocol.data_received(BODY + bytes(70_000))  # more than is taken in unread
    assert connection.protocol.flow.read_paused
    assert connection.wait(5 * SECONDS) is None


def test_an_answer_must_be_read(connection):
    connection.transport.unsent = 50_000
    assert connection.wait(SECONDS) is None
    for _ in range(20):
        connection.transport.unsent -= SECONDS * RATE + 1
        assert connection.wait(SECONDS) is None
    assert connection.wait(2 * SECONDS) == "aborted"


def test_an_answer_that_is_read_bit_by_bit_while_more_of_it_comes(connection):
    connection.transport.unsent = 60_000
    for _ in range(20):
        connection.protocol.resume_writing()  # it was read, and written again
        assert connection.wait(SECONDS // 2) is None


def test_of_too_many_connections_the_longest_idle_makes_room(monkeypatch):
    monkeypatch.setattr(http_protocol, "MAX_CONNECTIONS", 3)
    state = ServerState()
    busy, *idle = [Connection(state) for _ in range(3)]
    busy.protocol.data_received(BODY)
    busy.wait(1)
    idle[1].protocol._mark.at = -5.0
    another = Connection(state)
    assert [found.transport.ended for found in (busy, *idle, another)] == [None, None, "aborted", None]
