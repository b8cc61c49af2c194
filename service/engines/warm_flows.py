"""Flows that warm engines up: one that fills hardly a token, and one that fills them all."""

from __future__ import annotations

from models.flow import HEAD_TOKEN_COST, HEADS_TOKEN_BUDGET, MAX_CONTENT_BYTES, MAX_PAYLOAD_LENGTHS, Flow, PacketHead

_CONTENT = bytes(MAX_CONTENT_BYTES)
_HEAD = PacketHead(0, bytes(HEADS_TOKEN_BUDGET - HEAD_TOKEN_COST))

SHORT_FLOW = Flow("warm-up", 0, 0, "192.0.2.1", 1, "192.0.2.2", 2, "udp", 1, 0, [64], bytes(64))
LONG_FLOW = Flow(
    "warm-up", 0, 0, "192.0.2.1", 1, "192.0.2.2", 2, "tcp", MAX_PAYLOAD_LENGTHS, 0,
    [64] * MAX_PAYLOAD_LENGTHS, _CONTENT, _CONTENT, heads_kind="header", heads=[_HEAD],
)  # fmt: skip
