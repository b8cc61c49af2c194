"""The output `https`: batches of records as JSON, each signed as Standard Webhooks (standardwebhooks.com) has it."""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import hmac
import http.client
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tapline.installation import version
from tapline.service.sinks.client_tls import client_tls
from tapline.service.sinks.output_queue import Record
from tapline.service.sinks.output_url import OutputError, WebhookOutput
from tapline.service.sinks.sender import AwayError, reason_of

SECRET_PREFIX = "whsec_"
MIN_SECRET_BYTES = 16

REFUSALS = frozenset({400, 413, 422})
"""What says that a batch will never be taken as it is: it is halved until the record that is at fault stands alone."""


class WebhookSender:
    """Posts batches, each over a connection of its own, within `timeout_seconds`; as of `sender.Sender`.

    Redirects are not followed: they would take records and signatures where nobody said that they go.
    """

    batch_records = 500
    batch_bytes = 1 << 19
    gather_seconds = 1.0

    def __init__(self, output: WebhookOutput) -> None:
        """
        Raises:
            OutputError: a file of TLS, or that of the secret, cannot be read.
        """
        self._output = output
        self._key()
        if output.https:
            client_tls(output)

    def send(self, records: Sequence[Record]) -> Sequence[Record]:
        """Post records; those that the server refuses for what is in them.

        Raises:
            AwayError: it cannot be reached, took too long, or answered in another way than it should.
        """
        refused: list[Record] = []
        waiting = [records]
        while waiting:
            batch = waiting.pop()
            try:
                status, retry_after = self._post(b'{"records":[' + b",".join([each.line for each in batch]) + b"]}")
            except AwayError as error:
                raise AwayError(str(error), _all_of([*waiting, batch, refused])) from None
            if status in REFUSALS and len(batch) == 1:
                refused += batch
            elif status in REFUSALS:
                middle = len(batch) // 2
                waiting += [batch[middle:], batch[:middle]]
            elif not 200 <= status < 300:
                rest = _all_of([*waiting, batch, refused])
                raise AwayError(f"{self._output.shown}: {_problem(status)}", rest, retry_after)
        return refused

    def probe(self) -> None:
        """Connect, over TLS too, and close; nothing is posted.

        Raises:
            AwayError: the server cannot be reached.
        """
        try:
            with self._connection() as connection:
                connection.connect()
        except (OSError, OutputError) as error:
            raise self._away(error) from None

    def reopen(self) -> None:
        """Nothing stays open."""

    def close(self) -> None:
        """Nothing stays open."""

    def _post(self, body: bytes) -> tuple[int, float]:
        """The status of the answer, and the seconds that it asks for before the next try."""
        try:
            with self._connection() as connection:
                connection.request("POST", self._output.path, body, self._headers(body))
                answer = connection.getresponse()
                wanted = answer.headers.get("Retry-After", "")
                return answer.status, float(wanted) if wanted.isascii() and wanted.isdigit() else 0.0
        except (OSError, http.client.HTTPException, OutputError) as error:
            raise self._away(error) from None

    def _away(self, error: Exception) -> AwayError:
        reason = reason_of(error) if isinstance(error, OSError) else str(error) or type(error).__name__
        return AwayError(f"{self._output.shown}: {reason}")

    @contextlib.contextmanager
    def _connection(self) -> Iterator[http.client.HTTPConnection]:
        """A connection that is cut off when its time is over, however slowly the other side sends.

        Raises:
            TimeoutError: it was cut off.
        """
        output = self._output
        seconds = output.timeout_seconds
        if output.https:
            context = client_tls(output)
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                output.host, output.port, timeout=seconds, context=context
            )
        else:
            connection = http.client.HTTPConnection(output.host, output.port, timeout=seconds)
        late = threading.Event()

        def cut_off() -> None:
            late.set()
            if connection.sock is not None:
                with contextlib.suppress(OSError):
                    connection.sock.shutdown(socket.SHUT_RDWR)

        timer = threading.Timer(seconds, cut_off)
        timer.daemon = True
        timer.start()
        try:
            yield connection
            answered = not late.is_set()  # what was cut off looks like an answer that has come to its end
        except (OSError, http.client.HTTPException):
            answered = False
            if not late.is_set():
                raise
        finally:
            timer.cancel()
            connection.close()
        if not answered:
            raise TimeoutError(f"no answer within {seconds:g} s")

    def _headers(self, body: bytes) -> dict[str, str]:
        identifier = (
            f"msg_{hashlib.sha256(body).hexdigest()[:32]}"  # the same batch has the same, however often it comes
        )
        at = int(time.time())
        headers = {
            "Content-Type": "application/json",
            "User-Agent": f"tapline/{version()}",
            "webhook-id": identifier,
            "webhook-timestamp": str(at),
        }
        if key := self._key():
            headers["webhook-signature"] = f"v1,{signature(key, identifier, at, body)}"
        return headers

    def _key(self) -> bytes:
        """The key that signs, as it is in its file now; empty where nothing is signed."""
        name = self._output.secret_file
        if name is None:
            return b""
        try:
            text = Path(name).read_text("ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = reason_of(error) if isinstance(error, OSError) else "expected ASCII"
            raise OutputError(f"{self._output.name}: secret_file={name} cannot be read: {reason}") from None
        key = text.encode()
        if text.startswith(SECRET_PREFIX):
            try:
                key = base64.b64decode(text.removeprefix(SECRET_PREFIX), validate=True)
            except binascii.Error:
                raise OutputError(f"{self._output.name}: expected base64 after {SECRET_PREFIX} in {name}") from None
        if len(key) < MIN_SECRET_BYTES:
            raise OutputError(f"{self._output.name}: expected a secret of {MIN_SECRET_BYTES} bytes or more in {name}")
        return key


def signature(key: bytes, identifier: str, at: int, body: bytes) -> str:
    """HMAC-SHA256 in base64 over `IDENTIFIER.TIMESTAMP.BODY`, the time in whole seconds since 1970."""
    signed = f"{identifier}.{at}.".encode() + body
    return base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()


def _all_of(batches: Sequence[Sequence[Record]]) -> list[Record]:
    return [record for batch in reversed(batches) for record in batch]


def _problem(status: int) -> str:
    if 300 <= status < 400:
        return f"the server answers {status}: redirects are not followed, give the address that it leads to"
    return f"the server answers {status}"
