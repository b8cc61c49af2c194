"""The WebSocket transport: Zeek's public API for outside programs, 8.0 LTS and later."""

from __future__ import annotations

import asyncio
import math
import os
import ssl
from urllib.parse import urlsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage, InvalidURI, WebSocketException
from websockets.frames import CloseCode
from websockets.uri import parse_uri

from tapline.models.foreign_text import clean
from tapline.service.sources.bus.events import BusEvent, EventError
from tapline.service.sources.bus.transport import (
    Connected,
    Disconnected,
    Receive,
    TlsFiles,
    TransportError,
    pause_seconds,
    shown_url,
)
from tapline.service.sources.bus.websocket_frames import (
    HANDSHAKE_PATH,
    event_frame,
    event_of,
    parse_frame,
    subscription_frame,
)

APPLICATION_NAME = "tapline"
MAX_FRAME_BYTES = 1 << 20
CONNECT_SECONDS = 10
PING_SECONDS = 5
"""A peer that answers no ping for this long is taken for gone: half-open connections do not hang."""

SEND_SECONDS = 10
STEADY_SECONDS = 2
"""A connection that lasted for so long was a good one: the next pause is short again."""

_TOO_LARGE = f"a frame of more than {MAX_FRAME_BYTES} bytes, which costs the connection"


class WebSocketTransport:
    """A connection to `ws://host:port` or `wss://host:port`; never more than one at a time."""

    def __init__(self, url: str, topics: list[str], tls: TlsFiles | None = None) -> None:
        self.url = shown_url(url)
        try:
            parts = urlsplit(url)
            address = url if parts.path not in ("", "/") else f"{url.rstrip('/')}{HANDSHAKE_PATH}"
            parse_uri(address)
        except (ValueError, InvalidURI):
            raise TransportError(f"{self.url}: expected ws://host:port or wss://host:port") from None
        self._address = address
        self._topics = topics
        self._ssl = _ssl_context(tls or TlsFiles()) if parts.scheme == "wss" else None
        self._doubt = ", or wants a client certificate, or speaks no TLS" if self._ssl else ", or speaks TLS (wss://)"
        self._connection: ClientConnection | None = None

    async def run(self, receive: Receive) -> None:
        """Connect, receive and reconnect until cancelled."""
        failures = 0
        clock = asyncio.get_running_loop().time
        while True:
            subscribed_at = math.inf
            try:
                async with connect(
                    self._address,
                    ssl=self._ssl,
                    additional_headers={"X-Application-Name": APPLICATION_NAME},
                    max_size=MAX_FRAME_BYTES,
                    open_timeout=CONNECT_SECONDS,
                    ping_interval=PING_SECONDS,
                    ping_timeout=PING_SECONDS,
                    close_timeout=1,
                    compression=None,
                    proxy=None,
                ) as connection:
                    await self._subscribe(connection, receive)
                    subscribed_at, self._doubt = clock(), ""
                    await self._drain(connection, receive)
            except (OSError, TimeoutError, EventError, WebSocketException) as error:
                if _is_too_large(error):
                    receive(EventError(_TOO_LARGE))
                receive(Disconnected(_reason(error, self._doubt)))
            finally:
                self._connection = None
            failures = 0 if clock() - subscribed_at >= STEADY_SECONDS else failures
            await asyncio.sleep(pause_seconds(failures))
            failures += 1

    async def _subscribe(self, connection: ClientConnection, receive: Receive) -> None:
        await connection.send(subscription_frame(self._topics), text=True)
        async with asyncio.timeout(CONNECT_SECONDS):
            frame = parse_frame(await connection.recv(decode=False))
        if frame.type != "ack":
            raise EventError(f"Zeek refused the subscription: {clean(frame.code or frame.type)}")
        self._connection = connection
        receive(Connected(frame.version))

    async def _drain(self, connection: ClientConnection, receive: Receive) -> None:
        """Take every frame at once: Zeek queues without a limit for a client that does not."""
        while True:
            text = await connection.recv(decode=False)
            try:
                frame = parse_frame(text)
                if frame.type == "error":
                    receive(EventError(f"Zeek did not take an event of ours: {clean(frame.code)}"))
                elif frame.type == "data-message":
                    receive(event_of(frame))
            except EventError as error:
                receive(error)

    async def publish(self, event: BusEvent) -> bool:
        """Send an event; False where there is no connection, or it breaks meanwhile."""
        connection = self._connection
        if connection is None:
            return False
        try:
            async with asyncio.timeout(SEND_SECONDS):
                await connection.send(event_frame(event), text=True)
        except (ConnectionClosed, TimeoutError):
            return False
        return True


def _ssl_context(tls: TlsFiles) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=tls.ca)
        if tls.certificate:
            context.load_cert_chain(tls.certificate, tls.key)
    except (OSError, ssl.SSLError) as error:
        raise TransportError(f"the TLS files for Zeek cannot be used: {error}") from None
    return context


def _is_too_large(error: Exception) -> bool:
    """Whether it was we who closed, because of a frame above the limit (RFC 6455, section 7.4.1, status 1009)."""
    return (
        isinstance(error, ConnectionClosed) and error.sent is not None and error.sent.code == CloseCode.MESSAGE_TOO_BIG
    )


def _reason(error: Exception, doubt: str) -> str:
    """Why there is no connection, in words for an operator, and without the address, which may hold a password.

    `doubt`: what else it may be that the other side hangs up, as long as it has never been otherwise.
    """
    cause = error.__cause__ if isinstance(error, ConnectionClosed | InvalidMessage) else None
    if isinstance(cause, ssl.SSLError):
        error = cause
    if isinstance(error, ssl.SSLError):
        return f"TLS failed: {(error.reason or str(error)).lower().replace('_', ' ')}"
    if _is_too_large(error):
        return _TOO_LARGE
    if isinstance(error, ConnectionClosed):
        return "the sensor closed its bus" if error.rcvd else "the connection broke or went silent"
    if isinstance(cause, EOFError | OSError) or isinstance(error, ConnectionResetError):
        return f"closed before it answered: the sensor is starting or ending{doubt}"
    if isinstance(error, InvalidHandshake):
        return "refused: that is not Zeek's WebSocket API"
    if isinstance(error, OSError) and error.errno and error.errno > 0:
        return os.strerror(error.errno).lower()
    return clean(str(error)) or type(error).__name__
