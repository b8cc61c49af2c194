"""What can be said of the flows of a batch without reading them: enough to shed some before they cost more."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Sequence
from functools import lru_cache

import msgspec

from tapline.models.flow import MAX_NAME_CHARS

FINAL, IPV6 = 1, 2
"""Bits of a flow's flags."""

_SEEN = struct.Struct("<4xB71x16s16xB3xBBHH2x")
"""Of what a flow begins with, as of `flow_batches`: flags, who began it, and how long what lies before its uid is."""

_KNOWN_ADDRESSES = 65_536
_LENGTH_BYTES, _GAP_BYTES, _SIZE_BYTES = 4, 8, 2
_ADDRESS_CHARS = 45
_FRONT_TEXTS = 5
"""Fields of a flow in text, up to its uid."""


class Glance(msgspec.Struct, frozen=True, gc=False):
    """A flow as far as a glance tells: within their bounds, but not checked otherwise."""

    uid: str
    orig_h: str
    final: bool


Wanted = Callable[[Sequence[Glance | None]], Sequence[bool]]
"""Says of each flow of a batch whether to read it; None stands for one that a glance says nothing of."""

Choose = Callable[[], Wanted | None]
"""Is asked when a batch has come; None: all of its flows are to be read."""


def glances_of_bytes(data: bytes, edges: Sequence[int]) -> list[Glance | None]:
    """Of flows that begin at `edges`, but for the last of them."""
    found = list[Glance | None]()
    size = len(data)
    for at in edges[:-1]:
        flags, orig_h, uid, lengths, heads, orig_bytes, resp_bytes = _SEEN.unpack_from(data, at)
        at += _SEEN.size + _LENGTH_BYTES * lengths
        if heads:
            at += _heads_bytes(data, at, heads)
        at += orig_bytes + resp_bytes
        if at < size:
            orig_h = address(orig_h if flags & IPV6 else orig_h[:4])
            found.append(Glance(str(data[at : at + uid], "utf-8", "replace"), orig_h, flags & FINAL == FINAL))
        else:
            found.append(None)
    return found


def _heads_bytes(data: bytes, at: int, heads: int) -> int:
    """The size of packet heads that lie there; of those that go beyond the end, all there is and more."""
    try:
        sizes: tuple[int, ...] = struct.unpack_from(f"<{heads}H", data, at + _GAP_BYTES * heads)
    except struct.error:
        return len(data)
    return (_GAP_BYTES + _SIZE_BYTES) * heads + sum(sizes)


def glances_of_texts(texts: Sequence[str]) -> list[Glance | None]:
    """Of flows in text."""
    return [_glance_of_text(text.split(",", _FRONT_TEXTS)) for text in texts]


def _glance_of_text(parts: Sequence[str]) -> Glance | None:
    if (
        len(parts) <= _FRONT_TEXTS
        or len(parts[4]) > MAX_NAME_CHARS
        or len(parts[2]) > _ADDRESS_CHARS
        or not _is_address(parts[2])
    ):
        return None
    return Glance(parts[4], parts[2], parts[0] == "T")


@lru_cache(_KNOWN_ADDRESSES)
def _is_address(text: str) -> bool:
    try:
        socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)
    except (OSError, ValueError):
        return False
    return True


@lru_cache(_KNOWN_ADDRESSES)
def address(packed: bytes) -> str:
    """The text of an address of 4 or 16 bytes."""
    return socket.inet_ntop(socket.AF_INET if len(packed) == 4 else socket.AF_INET6, packed)
