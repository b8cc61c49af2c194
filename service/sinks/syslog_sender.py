"""The output `syslog+udp`, `syslog+tcp` and `syslog+tls`: a record a message, as RFC 5424 has it, in JSON."""

from __future__ import annotations

import os
import select
import socket
import ssl
from collections.abc import Sequence

import msgspec

from tapline.service.sinks.client_tls import client_tls
from tapline.service.sinks.output_queue import Record
from tapline.service.sinks.output_url import OutputError, SyslogOutput
from tapline.service.sinks.sender import AwayError, reason_of

FACILITIES = {"user": 1, "daemon": 3, "auth": 4, **{f"local{number}": 16 + number for number in range(8)}}

ALERT_SEVERITY = {1: 2, 2: 3, 3: 4, 4: 5}
"""Of alerts by their severity in EVE: critical, error, warning, notice (RFC 5424, 6.2.1)."""

INFORMATIONAL = 6

APP_NAME = "tapline"
MAX_DATAGRAM_BYTES = 65_507
"""Beyond, IPv4 has no room (RFC 5426, 3.2)."""


class _Severity(msgspec.Struct):
    severity: int = 3


class _Head(msgspec.Struct):
    """What of a record goes into the head of its message."""

    timestamp: str
    event_type: str
    alert: _Severity | None = None


_HEAD = msgspec.json.Decoder(_Head)


class SyslogSender:
    """Sends messages over one connection, which is made again where it breaks; as of `sender.Sender`.

    Syslog has no acknowledgement: what the network had taken and the receiver had not when it went away is lost, and
    nobody can count it (RFC 5424, 8.5). A connection that the receiver has closed is noticed before a batch is sent.
    """

    batch_records = 500
    batch_bytes = 1 << 19
    gather_seconds = 0.25

    def __init__(self, output: SyslogOutput) -> None:
        """
        Raises:
            OutputError: a file of TLS cannot be read.
        """
        self._output = output
        self._facility = FACILITIES[output.facility]
        self._host = _printable(socket.gethostname(), 255)
        self._process = str(os.getpid())
        self._socket: socket.socket | None = None
        if output.transport == "tls":
            client_tls(output)

    def send(self, records: Sequence[Record]) -> Sequence[Record]:
        """Send a message for each record; those that no datagram has room for are refused.

        Raises:
            AwayError: the receiver cannot be reached, or did not take all of it in time.
        """
        try:
            connection = self._connected()
            if self._output.transport == "udp":
                return self._send_datagrams(connection, records)
            frames = [b"%d %b" % (len(message), message) for message in map(self._message, records)]  # RFC 6587, 3.4.1
            connection.sendall(b"".join(frames))
        except (OSError, OutputError) as error:
            raise self._away(error) from None
        return ()

    def probe(self) -> None:
        """Connect, where no connection is open, and keep it; of UDP this says no more than that the name is known.

        Raises:
            AwayError: the receiver cannot be reached.
        """
        try:
            self._connected()
        except (OSError, OutputError) as error:
            raise self._away(error) from None

    def _away(self, error: OSError | OutputError) -> AwayError:
        self.reopen()
        reason = reason_of(error) if isinstance(error, OSError) else str(error)
        return AwayError(f"{self._output.shown}: {reason}")

    def reopen(self) -> None:
        """Connect anew before the next message, by the files of TLS as they are then."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def close(self) -> None:
        """Close the connection in order: over TLS the receiver is told (RFC 5425, 4.4)."""
        if isinstance(self._socket, ssl.SSLSocket):
            try:
                self._socket.settimeout(1)
                self._socket.unwrap()
            except (OSError, ValueError):
                pass  # it is gone already
        self.reopen()

    def _send_datagrams(self, connection: socket.socket, records: Sequence[Record]) -> list[Record]:
        refused = []
        for record in records:
            message = self._message(record)
            if len(message) > MAX_DATAGRAM_BYTES:
                refused.append(record)
            else:
                connection.send(message)
        return refused

    def _connected(self) -> socket.socket:
        if self._socket is not None and self._is_closed(self._socket):
            self.reopen()
        if self._socket is None:
            self._socket = self._connect()
        return self._socket

    def _connect(self) -> socket.socket:
        output = self._output
        if output.transport == "udp":
            family, kind, _, _, address = socket.getaddrinfo(output.host, output.port, type=socket.SOCK_DGRAM)[0]
            datagrams = socket.socket(family, kind)
            datagrams.settimeout(output.timeout_seconds)
            datagrams.connect(address)
            return datagrams
        plain = socket.create_connection((output.host, output.port), output.timeout_seconds)
        try:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            return client_tls(output).wrap_socket(plain, server_hostname=output.host) if self._is_tls else plain
        except BaseException:
            plain.close()
            raise

    @property
    def _is_tls(self) -> bool:
        return self._output.transport == "tls"

    def _is_closed(self, connection: socket.socket) -> bool:
        """Whether the receiver has closed the connection; a receiver of syslog says nothing else."""
        if self._output.transport == "udp":
            return False
        connection.settimeout(0)
        try:
            return bool(select.select([connection], [], [], 0)[0]) and not connection.recv(4096)
        except (BlockingIOError, ssl.SSLWantReadError):
            return False
        except OSError:
            return True
        finally:
            connection.settimeout(self._output.timeout_seconds)

    def _message(self, record: Record) -> bytes:
        """`<PRI>1 TIMESTAMP HOSTNAME APP-NAME PROCID MSGID STRUCTURED-DATA MSG` (RFC 5424, 6)."""
        head = _HEAD.decode(record.line)
        severity = ALERT_SEVERITY.get(head.alert.severity, INFORMATIONAL) if head.alert else INFORMATIONAL
        at = f"{head.timestamp[:-2]}:{head.timestamp[-2:]}"  # an offset has a colon here
        start = f"<{self._facility * 8 + severity}>1 {at} {self._host} {APP_NAME} {self._process} {head.event_type} - "
        return start.encode("ascii") + record.line


def _printable(text: str, limit: int) -> str:
    """The text in the characters that fields of a message may have, `-` where there are none (RFC 5424, 6)."""
    return "".join(char for char in text if "!" <= char <= "~")[:limit] or "-"
