"""Batches of flows in text, from sensors without the plugin: each flow becomes the bytes that it has in other batches.

Both layouts are in `zeek/README.md`, section `Tapline::flows`.
"""

from __future__ import annotations

import binascii
import socket
import struct

import msgspec

from tapline.models.flow import FlowError
from tapline.service.sources.bus.glances import FINAL, IPV6

MARK = "|"
"""Before every flow, and no character of base64: a batch that begins with it is text."""

_FRONT = struct.Struct("<I4B2H8Q16s16s6B2H2x")
_TEXTS = 8
_GAP_SHIFT, _HEAD_BYTES = 9, 511


class _Numbers(msgspec.Struct, array_like=True, gc=False):
    """The part of a flow that is numbers; more behind them are of later versions."""

    protocol: int
    link_type: int
    heads_kind: int
    orig_p: int
    resp_p: int
    start_us: int
    duration_us: int
    orig_pkts: int
    resp_pkts: int
    orig_ip_bytes: int
    resp_ip_bytes: int
    more_ahead: int
    more_back: int
    orig_bytes: int
    resp_bytes: int
    lengths: list[int]
    heads: list[int]


_NUMBERS = msgspec.json.Decoder(_Numbers)


def texts_of(batch: str, flows: int) -> list[str]:
    """The flows of a batch in their order, at most one more than it should have."""
    return batch.split(MARK, flows + 1)[1:]


def flow_of_text(text: str) -> bytes | FlowError:
    """A flow as it lies in a batch of bytes. Values are as they come: whoever reads the bytes checks them. Where it is
    none, its error."""
    try:
        return _packed(text)
    except (ValueError, OSError, TypeError, struct.error, msgspec.DecodeError):
        return FlowError("expected a flow in text with all its parts")


def _packed(text: str) -> bytes:
    final, straight, orig_h, resp_h, uid, conn_state, server_name, data, numbers = text.split(",", _TEXTS)
    n = _NUMBERS.decode(f"[{numbers}]")
    lengths, heads = n.lengths, n.heads
    ahead = sum([length > 0 for length in lengths])
    up, down = ahead + n.more_ahead, len(lengths) - ahead + n.more_back
    if straight != "T":
        up, down, lengths = down, up, [-length for length in lengths]
    sizes = [head & _HEAD_BYTES for head in heads]
    parts = binascii.a2b_base64(data, strict_mode=True)
    service_at = sum(sizes) + n.orig_bytes + n.resp_bytes
    if service_at > len(parts):
        raise ValueError
    service = parts[service_at:]
    texts = (uid.encode(), service, conn_state.encode(), server_name.encode())
    family, kind = (socket.AF_INET6, IPV6) if ":" in orig_h else (socket.AF_INET, 0)
    packets = struct.pack(
        f"<{len(lengths)}i{len(heads)}Q{len(heads)}H", *lengths, *[head >> _GAP_SHIFT for head in heads], *sizes
    )
    body = b"".join((packets, parts[:service_at], *texts))
    front = _FRONT.pack(
        _FRONT.size + len(body), kind | (final == "T") * FINAL, n.protocol, n.link_type, n.heads_kind, n.orig_p,
        n.resp_p, n.start_us, n.duration_us, n.orig_pkts, n.resp_pkts, n.orig_ip_bytes, n.resp_ip_bytes, up, down,
        socket.inet_pton(family, orig_h), socket.inet_pton(family, resp_h), *map(len, texts), len(lengths), len(heads),
        n.orig_bytes, n.resp_bytes,
    )  # fmt: skip
    return front + body
