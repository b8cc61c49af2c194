"""Zeek's JSON frames of a WebSocket session: events to and from plain values (docs.zeek.org, WebSocket API)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from tapline.service.sources.bus.events import Address, BusEvent, Count, EventError

HANDSHAKE_PATH = "/v1/messages/json"


class _Cell(msgspec.Struct, gc=False):
    """`{"@data-type": ..., "data": ...}`; the type is left to whoever reads the value."""

    data: Any


class _Part(msgspec.Struct, gc=False):
    """The name of an event, or the vector of its arguments."""

    data: str | list[_Cell]


class _Body(msgspec.Struct, gc=False):
    """Format number, message type, or the event: name, arguments and, from some Zeeks, metadata."""

    data: int | list[_Part]


class Frame(msgspec.Struct, gc=False):
    """What Zeek sends: an acknowledgement, an error, or a message with an event."""

    type: str
    topic: str = ""
    code: str = ""
    context: str = ""
    endpoint: str = ""
    version: str = ""
    data: list[_Body] = []


_DECODER: msgspec.json.Decoder[Frame] = msgspec.json.Decoder(Frame)


def parse_frame(text: bytes | str) -> Frame:
    """Read one frame.

    Raises:
        EventError: it is not JSON, or not of the form that Zeek gives its messages.
    """
    try:
        return _DECODER.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise EventError("a frame that is not a message of Zeek's WebSocket API") from None


def event_of(frame: Frame) -> BusEvent:
    """The event of a `data-message` frame.

    Raises:
        EventError: the frame has no event.
    """
    body = frame.data[2].data if len(frame.data) == 3 else None
    if not isinstance(body, list) or len(body) < 2:
        raise EventError("a message without an event")
    name, args = body[0].data, body[1].data
    if not isinstance(name, str) or not isinstance(args, list):
        raise EventError("a message without an event")
    return BusEvent(frame.topic, name, [cell.data for cell in args])


def event_frame(event: BusEvent) -> bytes:
    """An event as Zeek reads it."""
    inner = _vector([_cell("string", event.name), _value(list(event.args))])
    message = {
        "type": "data-message",
        "topic": event.topic,
        **_vector([_cell("count", 1), _cell("count", 1), inner]),
    }
    return msgspec.json.encode(message)


def subscription_frame(topics: list[str]) -> bytes:
    """The first frame of a client: the topic prefixes it wants."""
    return msgspec.json.encode(topics)


def _cell(kind: str, data: Any) -> dict[str, Any]:
    return {"@data-type": kind, "data": data}


def _vector(items: list[dict[str, Any]]) -> dict[str, Any]:
    return _cell("vector", items)


def _value(value: Any) -> dict[str, Any]:
    if isinstance(value, list):
        return _vector([_value(item) for item in value])
    if value is None:
        return _cell("none", {})
    for kind, python_type, plain in _KINDS:
        if isinstance(value, python_type):
            return _cell(kind, plain(value))
    raise TypeError(f"no type of the bus for {type(value).__name__}")


_KINDS: tuple[tuple[str, type, Callable[[Any], Any]], ...] = (
    ("boolean", bool, bool),
    ("count", Count, int),
    ("integer", int, int),
    ("real", float, float),
    ("address", Address, str),
    ("string", str, str),
)
