"""Reads the JSON body of flows while it comes: in bounded pieces, off the event loop, up to the first few faults."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

from tapline.models.flow import Flow, parse_flow
from tapline.service.api.desk import Seat
from tapline.service.api.errors import MAX_MESSAGES, ApiError
from tapline.service.api.schemas import MAX_FLOWS

MAX_FLOW_BYTES = 64 << 10
"""Longest JSON of one flow: several times what one with all lengths, bytes, heads and tokens takes."""

_STEP_BYTES = 256 << 10
"""What is collected before it is parsed."""

_MESSAGE_LETTERS = 200

# JSON up to where it ends, told by quotes and braces alone: whether it is valid is for the parser to say. All
# quantifiers are possessive, so that no text makes them go back.
_TEXT = rb'"(?:[^"\\]++|\\.)*+"'
_INNER = rb'\{(?:[^{}"]++|' + _TEXT + rb")*+\}"
_FLOW = re.compile(rb'[ \t\r\n]*+(\{(?:[^{}"]++|' + _TEXT + rb"|" + _INNER + rb")*+\})[ \t\r\n]*+([,\]])", re.DOTALL)
_BEGIN = re.compile(rb'[ \t\r\n]*+\{[ \t\r\n]*+"flows"[ \t\r\n]*+:[ \t\r\n]*+\[')
_EMPTY = re.compile(rb"[ \t\r\n]*+\]")
_END = re.compile(rb"[ \t\r\n]*+\}[ \t\r\n]*+")

_EXPECTED = 'body: expected {"flows": [...]}, a list of flows as `tapline features` writes them, and nothing else'


class FlowsBody:
    """`{"flows": [...]}`, piece by piece; `flows` are those read so far.

    Takes at most `MAX_FLOWS` flows, and no more after `MAX_MESSAGES` faulty ones.
    """

    def __init__(self) -> None:
        self.flows: list[Flow] = []
        self._faults: list[str] = []
        self._left = b""
        self._count = 0
        self._inside = False
        self._over = False

    def feed(self, data: bytes) -> None:
        """Take the next piece.

        Raises:
            ApiError: 422 with the faults: after so many of them, or where it cannot go on.
        """
        text = self._left + data
        at = 0
        if not self._inside and not self._over:
            begin = _BEGIN.match(text)
            if begin is None:
                if len(text) > MAX_FLOW_BYTES:
                    self._fail(_EXPECTED)
                self._left = text
                return
            at, self._inside = begin.end(), True
        if self._inside and not self._count and (empty := _EMPTY.match(text, at)) is not None:
            at, self._inside, self._over = empty.end(), False, True
        while self._inside and (found := _FLOW.match(text, at, at + MAX_FLOW_BYTES)) is not None:
            self._take(found[1])
            at = found.end()
            self._over = found[2] == b"]"
            self._inside = not self._over
        self._left = text[at:]
        if self._inside and len(self._left) >= MAX_FLOW_BYTES:
            self._fail(f"flows.{self._count}: expected a JSON object of at most {MAX_FLOW_BYTES >> 10} KiB")
        if self._over and len(self._left) > MAX_FLOW_BYTES:
            self._fail(_EXPECTED)

    def end(self) -> list[Flow]:
        """All flows; nothing more comes.

        Raises:
            ApiError: 422 with the faults.
        """
        if self._inside:
            self._fail(f"flows.{self._count}: expected a JSON object, and `]` after the last")
        if not self._over or _END.fullmatch(self._left) is None:
            self._fail(_EXPECTED)
        if self._faults:
            self._refuse()
        return self.flows

    def _take(self, text: bytes) -> None:
        if self._count >= MAX_FLOWS:
            self._fail(f"flows: expected at most {MAX_FLOWS} flows in a request")
        try:
            flow = parse_flow(text)
        except (ValueError, RecursionError) as error:  # FlowError, and text that is no UTF-8
            self._fault(f"flows.{self._count}: {str(error)[:_MESSAGE_LETTERS]}")
        else:
            if not self._faults:
                self.flows.append(flow)
        self._count += 1

    def _fault(self, message: str) -> None:
        self.flows.clear()
        self._faults.append(message)
        if len(self._faults) >= MAX_MESSAGES:
            self._refuse()

    def _fail(self, message: str) -> None:
        self._faults.append(message)
        self._refuse()

    def _refuse(self) -> None:
        raise ApiError(422, "invalid", "; ".join(self._faults))


async def read_flows(stream: AsyncIterator[bytes], declared_bytes: int, seat: Seat) -> list[Flow]:
    """The flows of a request's body, which says to have so many bytes, 0 where it does not say.

    Raises:
        ApiError: 422 with the first faults; 503 where too much of other bodies is being worked on.
    """
    body = FlowsBody()
    seat.hold(declared_bytes)
    came_bytes = 0
    pieces: list[bytes] = []
    waiting_bytes = 0
    async for piece in stream:
        came_bytes += len(piece)
        seat.hold(max(0, came_bytes - seat.held_bytes))
        pieces.append(piece)
        waiting_bytes += len(piece)
        if waiting_bytes >= _STEP_BYTES:
            await seat.desk.do(body.feed, b"".join(pieces))
            pieces, waiting_bytes = [], 0
    await seat.desk.do(body.feed, b"".join(pieces))
    return body.end()
