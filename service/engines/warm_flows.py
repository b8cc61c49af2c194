"""Flows that warm engines up and try them out: of hardly a token, of all that fit, and of every length and byte."""

from __future__ import annotations

import math

from tapline.models.encode import MAX_LENGTH, Mm4flowFeatures
from tapline.models.flow import (
    HEAD_TOKEN_COST,
    HEADS_TOKEN_BUDGET,
    MAX_CONTENT_BYTES,
    MAX_PAYLOAD_LENGTHS,
    Flow,
    PacketHead,
)

_EVERY_BYTE = bytes(range(256))
_CONTENT = bytes(MAX_CONTENT_BYTES)
_HEAD = PacketHead(0, bytes(HEADS_TOKEN_BUDGET - HEAD_TOKEN_COST))

SHORT_FLOW = Flow("warm-up", 0, 0, "192.0.2.1", 1, "192.0.2.2", 2, "udp", 1, 0, [64], bytes(64))
LONG_FLOW = Flow(
    "warm-up", 0, 0, "192.0.2.1", 1, "192.0.2.2", 2, "tcp", MAX_PAYLOAD_LENGTHS, 0,
    [64] * MAX_PAYLOAD_LENGTHS, _CONTENT, _CONTENT, heads_kind="header", heads=[_HEAD],
)  # fmt: skip


def every_token(features: Mm4flowFeatures) -> list[Flow]:
    """Flows that hold every payload length and every byte, as content and in packet heads, where `features` read it."""
    lengths = [length for length in range(-MAX_LENGTH, MAX_LENGTH + 1) if length]
    at_once = min(features.payload_lengths, MAX_PAYLOAD_LENGTHS)
    content = min(features.content_bytes, MAX_CONTENT_BYTES)
    count = max(math.ceil(len(lengths) / at_once), math.ceil(len(_EVERY_BYTE) / max(1, content)))
    flows = []
    for number in range(count):
        part = (lengths * 2)[number * at_once % len(lengths) :][:at_once]
        place = number * max(1, content) % len(_EVERY_BYTE)
        turned = _EVERY_BYTE[place:] + _EVERY_BYTE[:place]
        up = sum(length > 0 for length in part)
        flows.append(
            Flow("trial", number, 1000, "192.0.2.1", 1, "192.0.2.2", 2, "tcp", up, len(part) - up, part,
                 turned, turned[::-1], heads_kind="full", heads=[PacketHead(0, turned)])
        )  # fmt: skip
    return flows
