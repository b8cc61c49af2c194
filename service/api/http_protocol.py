"""HTTP/1.1 connections that end when their peer keeps them waiting: uvicorn's protocol with deadlines.

Requests themselves, and what becomes of one whose client is gone, belong to the application (`wanted`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Literal

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from tapline.service.api.errors import error_response
from tapline.service.log_lines import log

MAX_CONNECTIONS = 512
"""Beyond, the connection that has waited longest without a request makes room for the new one."""

LINGER_SECONDS = 2
"""How long the rest of a body may still come after its request was answered; closing at once would take the answer
from a client that is still sending."""

Phase = Literal["head", "body", "rest", "answer"]
"""What a connection waits for: the head of a request, its body, the rest of a body that was answered already, or the
client to read what was answered. What the service itself takes its time for is none of them."""

_TOLD = {
    "head": "no request came",
    "body": "the body came too slowly",
    "rest": "the body did not end after the answer",
    "answer": "the answer was not read",
}


@dataclass(frozen=True)
class Deadlines:
    """How long a connection waits: `seconds` for a head, and for every `seconds * bytes_per_second` of a body and of an
    answer."""

    seconds: float
    bytes_per_second: int

    def limit_seconds(self, phase: Phase) -> float:
        """How long a phase may last, or go without progress."""
        return min(LINGER_SECONDS, self.seconds) if phase == "rest" else self.seconds


@dataclass
class _Mark:
    """A moment in a phase: how many bytes had passed by then."""

    phase: Phase
    at: float
    passed_bytes: int


class DeadlineProtocol(H11Protocol):
    """One connection. The server calls `check` about once a second."""

    def __init__(self, *args: Any, deadlines: Deadlines, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._deadlines = deadlines
        self._received_bytes = 0
        self._mark: _Mark | None = None

    def connection_made(self, transport: Any) -> None:
        """Take a connection; where there are too many, one without a request makes room."""
        super().connection_made(transport)
        self._mark = _Mark("head", self.loop.time(), 0)
        if len(self.connections) > MAX_CONNECTIONS:
            waiting = [found for found in self.connections if isinstance(found, DeadlineProtocol)]
            min(waiting, key=DeadlineProtocol.idle_since).transport.abort()

    def data_received(self, data: bytes) -> None:
        """Count what comes."""
        self._received_bytes += len(data)
        super().data_received(data)

    def resume_writing(self) -> None:
        """The client has read: its time begins again."""
        super().resume_writing()
        self._mark = None

    def check(self) -> None:
        """End the connection if it has waited too long."""
        now = self.loop.time()
        phase = self._phase()
        if phase is None:
            self._mark = None
            return
        passed = self._passed_bytes(phase)
        if self._mark is None or self._mark.phase != phase:
            self._mark = _Mark(phase, now, passed)
            return
        limit_seconds = self._deadlines.limit_seconds(phase)
        if now - self._mark.at < limit_seconds:
            return
        enough_bytes = limit_seconds * self._deadlines.bytes_per_second
        if phase in ("body", "answer") and passed - self._mark.passed_bytes >= enough_bytes:
            self._mark = _Mark(phase, now, passed)
            return
        if phase == "head" and not self.conn.trailing_data[0]:  # an idle connection: nothing to speak of
            self.transport.close()
            return
        log.info("connection closed", reason=_TOLD[phase], seconds=round(now - self._mark.at))
        if phase in ("head", "body"):
            self._refuse(HTTPStatus.REQUEST_TIMEOUT, f"{_TOLD[phase]} within {limit_seconds:g} seconds")
        else:
            self.transport.abort()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, in the one shape of errors."""
        self._refuse(HTTPStatus.BAD_REQUEST, "expected an HTTP/1.1 request")

    def _should_upgrade(self) -> bool:
        """Only pages of the dashboard have WebSockets; elsewhere an `Upgrade` header is ignored."""
        return self.ws_protocol_class is not None and self._get_upgrade() == b"websocket"

    def idle_since(self) -> float:
        """When it began to wait for a request; infinity while it has one."""
        return self._mark.at if self._mark is not None and self._phase() == "head" else math.inf

    def _phase(self) -> Phase | None:
        if self.transport.get_write_buffer_size():
            return "answer"
        if self.transport.is_closing():
            return None
        answered = self.cycle is None or self.cycle.response_complete
        if self.conn.their_state is h11.IDLE:
            return "head" if answered else None
        if self.conn.their_state is h11.SEND_BODY:
            if answered:
                return "rest"
            return None if self.flow.read_paused else "body"
        return None

    def _passed_bytes(self, phase: Phase) -> int:
        """Bytes that the peer has sent, or has taken from what waits to be sent."""
        return -self.transport.get_write_buffer_size() if phase == "answer" else self._received_bytes

    def _refuse(self, status: HTTPStatus, message: str) -> None:
        """Answer an error and close; where an answer has begun it is cut off."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            answer = error_response(status, status.name.lower(), message, {"Connection": "close"})
            head = h11.Response(status_code=status, headers=answer.raw_headers, reason=status.phrase.encode())
            for event in (head, h11.Data(data=bytes(answer.body)), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
            self.transport.close()
        else:
            self.transport.abort()
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
