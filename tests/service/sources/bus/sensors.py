"""Fake sensors, one per transport: they publish events and collect what services send. Fakes only at the socket."""

import asyncio
import ipaddress
import sys
from contextlib import asynccontextmanager, suppress

import msgspec
from websockets.asyncio.server import serve
from websockets.exceptions import ConnectionClosed

from tapline.service.sources.bus.events import BusEvent, Count
from tapline.service.sources.bus.websocket_frames import event_frame, event_of, parse_frame

DEBIAN_PACKAGES = "/usr/lib/python3/dist-packages"


class WebSocketSensor:
    """Speaks Zeek's WebSocket API on a port of 127.0.0.1."""

    def __init__(self):
        self.received = []
        self.subscriptions = []
        self.headers = []
        self.connections = {}
        self.port = 0

    @property
    def url(self):
        return f"ws://127.0.0.1:{self.port}"

    @asynccontextmanager
    async def running(self, port=0):
        async with serve(self._handle, "127.0.0.1", port) as server:
            self.port = server.sockets[0].getsockname()[1]
            yield self
            for connection in list(self.connections):
                connection.transport.abort()

    async def _handle(self, connection):
        self.headers.append(connection.request.headers)
        assert connection.request.path == "/v1/messages/json"
        topics = msgspec.json.decode(await connection.recv())
        self.subscriptions.append(topics)
        await connection.send('{"type":"ack","endpoint":"fake","version":"8.0.10"}')
        self.connections[connection] = tuple(topics)
        try:
            with suppress(ConnectionClosed):
                await self._read(connection)
        finally:
            self.connections.pop(connection, None)

    async def _read(self, connection):
        async for text in connection:
            event = event_of(parse_frame(text))
            self.received.append((event.name, plain(event.args)))
            await self.taken(event)

    async def taken(self, event):
        """Called with every event of a service; sensors of some tests answer."""

    async def send(self, text, topic=None):
        for connection in self.subscribers(topic):
            with suppress(ConnectionClosed):  # a service that goes is told nothing
                await connection.send(text)

    def subscribers(self, topic=None):
        """The connections that asked for a topic, as Zeek's by its beginning; of None all."""
        return [each for each, asked in self.connections.items() if topic is None or topic.startswith(asked)]

    async def publish(self, event: BusEvent):
        await self.send(event_frame(event).decode(), event.topic)

    async def wait_for_client(self):
        while not self.connections:
            await asyncio.sleep(0.01)

    async def cut(self):
        for connection in list(self.connections):
            connection.transport.abort()
        while self.connections:
            await asyncio.sleep(0.01)


class AcknowledgingSensor(WebSocketSensor):
    """Acknowledges every batch of verdicts, as Zeek does when it has logged them."""

    async def taken(self, event):
        if event.name in ("Tapline::verdicts", "Tapline::trace_verdicts"):
            _, batch, service, rows = event.args
            args = [Count(1), service, Count(batch), Count(len(rows))]
            await self.publish(BusEvent("tapline/acks", "Tapline::verdicts_ack", args))


class NativeSensor:
    """A Broker endpoint, as an older Zeek is one."""

    def __init__(self):
        import broker
        import broker.zeek

        self.broker, self.events = broker, broker.zeek
        self.received = []
        self.port = 0
        self.endpoint = None

    @property
    def url(self):
        return f"broker://127.0.0.1:{self.port}"

    @asynccontextmanager
    async def running(self, port=0):
        options = self.broker.BrokerOptions()
        options.disable_ssl = True
        self.endpoint = self.broker.Endpoint(self.broker.Configuration(options))
        self.subscribers = [self.endpoint.make_subscriber(f"tapline/{name}") for name in ("verdicts", "control")]
        self.port = self.endpoint.listen("127.0.0.1", port)
        task = asyncio.create_task(self._collect())
        try:
            yield self
        finally:
            task.cancel()
            self.endpoint.shutdown()

    async def _collect(self):
        while True:
            for subscriber in self.subscribers:
                for _, data in subscriber.poll():
                    event = self.events.Event(data)
                    self.received.append((event.name(), self._plain(event.args())))
            await asyncio.sleep(0.02)

    def _plain(self, value):
        if isinstance(value, list | tuple):
            return [self._plain(item) for item in value]
        if isinstance(value, self.broker.Count):
            return value.value
        return str(value) if isinstance(value, ipaddress.IPv4Address | ipaddress.IPv6Address) else value

    async def publish(self, event: BusEvent):
        args = [self._outgoing(index, value) for index, value in enumerate(event.args)]
        self.endpoint.publish(event.topic, self.events.Event(event.name, *args))

    def _outgoing(self, index, value):
        if isinstance(value, int) and not isinstance(value, bool):
            return self.broker.Count(int(value))
        return ipaddress.ip_address(value) if index in (7, 9) and isinstance(value, str) else value

    async def wait_for_client(self):
        while "tapline/acks" not in [topic.string() for topic in self.endpoint.peer_subscriptions()]:
            await asyncio.sleep(0.02)

    async def cut(self):
        self.endpoint.shutdown()


def plain(value):
    """Cells of nested vectors to plain lists; what is unset in Zeek is None."""
    if isinstance(value, dict) and value.get("@data-type") == "none":
        return None
    if isinstance(value, dict):
        return plain(value["data"])
    return [plain(item) for item in value] if isinstance(value, list) else value


def native_is_importable():
    """Whether the bindings of Broker 1 are there, in Debian's folder if not on the path.

    Those of 2.8 end the process where the fake asks for `peer_subscriptions`; `tests/zeek/test_broker_transport.py` has
    a real Zeek for them."""
    try:
        import broker
    except ImportError:
        if DEBIAN_PACKAGES not in sys.path:
            sys.path.append(DEBIAN_PACKAGES)
        try:
            import broker
        except ImportError:
            return False
        finally:
            sys.path.remove(DEBIAN_PACKAGES)
    return broker.Version.MAJOR == 1
