"""The native transport: Broker's own protocol through its Python bindings, for sensors older than Zeek 8.

The bindings come with Zeek or as a Debian package, not from PyPI, and speak to a Broker of their own generation.
"""

from __future__ import annotations

import asyncio
import importlib
import ipaddress
import random
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from service.sources.bus.events import Address, BusEvent, Count, EventError
from service.sources.bus.transport import (
    LONGEST_PAUSE_SECONDS,
    Connected,
    Disconnected,
    Receive,
    TlsFiles,
    TransportError,
)

DEFAULT_PORT = 9999


class NativeTransport:
    """A peering with `broker://host:port`; Broker itself makes it again when it is lost."""

    def __init__(self, url: str, topics: list[str], tls: TlsFiles | None = None) -> None:
        parts = urlsplit(url)
        if parts.scheme != "broker" or not parts.hostname:
            raise TransportError(f"{url}: expected broker://host:port")
        self._broker, self._events = _bindings()
        self.url = url
        self._host, self._port = parts.hostname, parts.port or DEFAULT_PORT
        self._topics = topics
        self._tls = tls or TlsFiles()
        self._endpoint: Any = None
        self._connected = False

    async def run(self, receive: Receive) -> None:
        """Peer, receive and let Broker peer again until cancelled."""
        endpoint = self._broker.Endpoint(self._configuration())
        statuses = endpoint.make_status_subscriber(True)
        messages = endpoint.make_subscriber(self._topics[0])
        for topic in self._topics[1:]:
            messages.add_topic(topic, True)
        loop = asyncio.get_running_loop()
        loop.add_reader(statuses.fd(), self._take_statuses, statuses, receive)
        loop.add_reader(messages.fd(), self._take_messages, messages, receive)
        self._endpoint = endpoint
        try:
            pause = random.uniform(1.0, LONGEST_PAUSE_SECONDS / 5)  # Broker's own pause is fixed: jitter it per process
            endpoint.peer_nosync(self._host, self._port, pause)
            await loop.create_future()
        finally:
            self._endpoint, self._connected = None, False
            loop.remove_reader(statuses.fd())
            loop.remove_reader(messages.fd())
            await asyncio.to_thread(endpoint.shutdown)

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

    def _take_statuses(self, statuses: Any, receive: Receive) -> None:
        for status in statuses.poll():
            code = status.code()
            if code == self._broker.SC.PeerAdded:
                self._connected = True
                receive(Connected())
            elif code in (self._broker.SC.PeerLost, self._broker.SC.PeerRemoved):
                self._connected = False
                receive(Disconnected("the peering was lost"))
            elif isinstance(status, self._broker.Error):
                receive(Disconnected("no peer there"))

    def _take_messages(self, messages: Any, receive: Receive) -> None:
        for topic, data in messages.poll():
            try:
                event = self._events.Event(data)
                receive(BusEvent(topic, event.name(), [self._incoming(value) for value in event.args()]))
            except Exception:  # the bindings raise their own kinds for a message that is no event
                receive(EventError("a message without an event"))

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
