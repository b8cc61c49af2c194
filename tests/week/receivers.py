"""What a security team has at the other end: a syslog server and a webhook's, on loopback; both can go away."""

from __future__ import annotations

import contextlib
import http.server
import re
import socket
import socketserver
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import msgspec

_LENGTH = re.compile(rb"(\d{1,7}) ")
_ID = re.compile(rb"\{.*\}\s*$", re.DOTALL)


class Received:
    """Records by their kind and identity, and how often each came; shared by threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.alerts: Counter[str] = Counter()
        self.unreadable = 0

    def alert(self, name: str) -> None:
        """Note an alert."""
        with self._lock:
            self.alerts[name] += 1


class SyslogServer:
    """Takes messages of RFC 5424 with the octet counting of RFC 6587 over TCP."""

    def __init__(self) -> None:
        self.received = Received()
        self.port = free_port()

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Listen while the block runs, on the same port each time; connections end with it."""
        received, open_sockets = self.received, set()

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                open_sockets.add(self.request)
                while length := _read_length(self.rfile):
                    message = self.rfile.read(length)
                    if len(message) < length:
                        return
                    found = _ID.search(message)
                    if found is None:
                        received.unreadable += 1
                    else:
                        received.alert(identity(msgspec.json.decode(found[0])))

        with _serving(_Threading(("127.0.0.1", self.port), Handler), open_sockets):
            yield


class WebhookServer:
    """Takes batches of JSON records by POST."""

    def __init__(self) -> None:
        self.received = Received()
        self.port = free_port()

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Listen while the block runs, on the same port each time; connections end with it."""
        received, open_sockets = self.received, set()

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                open_sockets.add(self.request)
                body = self.rfile.read(int(self.headers["content-length"]))
                for record in _records(msgspec.json.decode(body)):
                    received.alert(identity(record))
                self.send_response(204)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        with _serving(_Threading(("127.0.0.1", self.port), Handler), open_sockets):
            yield


class _Threading(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that broke is what the week is about."""


@contextlib.contextmanager
def _serving(server: _Threading, open_sockets: set[socket.socket]) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        for each in open_sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


def identity(record: dict[str, Any]) -> str:
    """What names an alert, in whatever record it stands."""
    inner = record.get("tapline", {})
    return str(record.get("id") or inner.get("alert_id") or inner["id"])


def _records(body: Any) -> list[dict[str, Any]]:
    return body["records"] if isinstance(body, dict) and "records" in body else body


def _read_length(stream: Any) -> int:
    digits = b""
    while (letter := stream.read(1)) and letter != b" ":
        digits += letter
    return int(digits) if letter else 0


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
