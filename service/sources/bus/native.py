"""The native transport: Broker's own protocol through its Python bindings.

The bindings come with Zeek or as a Debian package, not from PyPI, and speak to a Broker of their own generation: those
of Debian, Broker 1.4, do not peer with Zeek 8, whose Broker is 2.8.
"""

from __future__ import annotations

import asyncio
import importlib
import ipaddress
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

from tapline.service.sources.bus.events import Address, BusEvent, Count, EventError
from tapline.service.sources.bus.transport import (
    Connected,
    Disconnected,
    Receive,
    TlsFiles,
    TransportError,
    pause_seconds,
    shown_url,
)

DEFAULT_PORT = 9999
NO_RETRY = 0.0
QUEUED_MESSAGES = 20
"""Messages that the bindings hold for us at most, their default; what more comes waits in Broker."""


class NativeTransport:
    """A peering with `broker://host:port`, made again here when it is lost: Broker 1.4 does not do so by itself."""

    def __init__(self, url: str, topics: list[str], tls: TlsFiles | None = None) -> None:
        parts = urlsplit(url)
        if parts.scheme != "broker" or not parts.hostname:
            raise TransportError(f"{shown_url(url)}: expected broker://host:port")
        self._broker, self._events = _bindings()
        self.url = shown_url(url)
        self._host, self._port = parts.hostname, parts.port or DEFAULT_PORT
        self._topics = topics
        self._tls = tls or TlsFiles()
        self._endpoint: Any = None
        self._connected = self._was_connected = False
        self._lost = asyncio.Event()
        self._broken: Exception | None = None

    async def run(self, receive: Receive) -> None:
        """Peer, receive and peer again until cancelled."""
        endpoint = self._broker.Endpoint(self._configuration())
        statuses = endpoint.make_status_subscriber(True)
        messages = self._subscriber(endpoint)
        loop = asyncio.get_running_loop()
        loop.add_reader(statuses.fd(), self._guard, self._take_statuses, statuses, receive)
        loop.add_reader(messages.fd(), self._guard, self._take_messages, messages, receive)
        self._endpoint, self._broken = endpoint, None
        try:
            await self._keep_peering(endpoint)
        finally:
            self._endpoint, self._connected = None, False
            loop.remove_reader(statuses.fd())
            loop.remove_reader(messages.fd())
            endpoint.shutdown()

    def _subscriber(self, endpoint: Any) -> Any:
        """One for all topics, so that a sensor's events stay in their order.

        `make_subscriber` takes several topics on Pythons before 3.10 alone, hence what lies below it.
        """
        bindings = self._broker._broker
        topics = bindings.VectorTopic([self._broker.Topic(topic) for topic in self._topics])
        return self._broker.Subscriber(bindings.Endpoint.make_subscriber(endpoint, topics, QUEUED_MESSAGES))

    async def _keep_peering(self, endpoint: Any) -> None:
        failures = 0
        while True:
            self._lost.clear()
            endpoint.peer_nosync(self._host, self._port, NO_RETRY)
            await self._lost.wait()
            if self._broken is not None:
                raise TransportError("Broker's bindings failed") from self._broken
            failures = 0 if self._was_connected else failures + 1
            self._was_connected = False
            await asyncio.sleep(pause_seconds(failures))

    async def publish(self, event: BusEvent) -> bool:
        """Send an event; False where there is no peer."""
        if not self._connected:
            return False
        args = [self._outgoing(value) for value in event.args]
        self._endpoint.publish(event.topic, self._events.Event(event.name, *args))
        return True

    def _configuration(self) -> Any:
        options = self._broker.BrokerOptions()
        options.disable_ssl = self._tls == TlsFiles()
        configuration = self._broker.Configuration(options)
        for name, path in (
            ("cafile", self._tls.ca),
            ("certificate", self._tls.certificate),
            ("keyfile", self._tls.key),
        ):
            if path is not None:
                setattr(configuration, f"openssl_{name}", str(path))
        return configuration

    def _guard(self, take: Callable[[Any, Receive], None], subscriber: Any, receive: Receive) -> None:
        """Call back from the loop, where nobody hears of an error: `run` ends by it."""
        try:
            take(subscriber, receive)
        except Exception as error:
            self._broken = error
            self._lost.set()

    def _take_statuses(self, statuses: Any, receive: Receive) -> None:
        for status in statuses.poll():
            code = status.code()
            if code == self._broker.SC.PeerAdded:
                self._connected = self._was_connected = True
                receive(Connected())
            elif code in (self._broker.SC.PeerLost, self._broker.SC.PeerRemoved):
                self._gone("the peering was lost", receive)
            elif isinstance(status, self._broker.Error):
                self._gone("no peer there", receive)

    def _gone(self, reason: str, receive: Receive) -> None:
        self._connected = False
        self._lost.set()
        receive(Disconnected(reason))

    def _take_messages(self, messages: Any, receive: Receive) -> None:
        for topic, data in messages.poll():
            receive(self._event(topic, data))

    def _event(self, topic: str, data: Any) -> BusEvent | EventError:
        try:
            event = self._events.Event(data)
            return BusEvent(topic, event.name(), [self._incoming(value) for value in event.args()])
        except Exception:  # the bindings raise their own kinds for a message that is no event
            return EventError("a message without an event")

    def _incoming(self, value: Any) -> Any:
        if isinstance(value, self._broker.Count):
            return value.value
        if isinstance(value, ipaddress.IPv4Address | ipaddress.IPv6Address):
            return str(value)
        return list(map(self._incoming, value)) if isinstance(value, tuple) else value

    def _outgoing(self, value: Any) -> Any:
        if isinstance(value, Count):
            return self._broker.Count(int(value))
        if isinstance(value, Address):
            return ipaddress.ip_address(str(value))
        if isinstance(value, Sequence) and not isinstance(value, str):
            return tuple(map(self._outgoing, value))
        return value


def _bindings() -> tuple[Any, Any]:
    try:
        return importlib.import_module("broker"), importlib.import_module("broker.zeek")
    except ImportError:
        raise TransportError(
            "Broker's Python bindings are not importable here: take ws://, or install those of the sensor's Zeek"
        ) from None
