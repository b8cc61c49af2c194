"""Packets inside UDP datagrams: VXLAN, Geneve, Teredo, GTP version 1, AYIYA and GRE, by port or by what they look like.
The outer flow goes on as it is; these give the inner one beside it.

Which datagrams are taken for a tunnel follows Zeek 8.0 (src/packet_analysis/protocol)."""

from __future__ import annotations

from dataclasses import dataclass

from tapline.service.sources.packets.ip import ETHERTYPE_LINKS, GRE_LINK
from tapline.service.sources.packets.ports import AYIYA_PORT, GENEVE_PORT, GRE_PORT, GTP_PORTS, TEREDO_PORT, VXLAN_PORT

ETHERNET_LINK, RAW_IP_LINK = 1, 101

_TEREDO_PREFIX = b"\x20\x01\0\0"
_GTP_PACKET = 255


@dataclass(slots=True)
class Inner:
    """An inner packet: where it starts in the datagram, and its link type, or what `ip` has in place of one."""

    start: int
    link: int


class NotThisTunnelError(Exception):
    """The datagram contradicts the tunnel that its flow was taken for; the flow is not one."""


def find_inner(payload: bytes, length: int, responder_port: int) -> Inner | None:
    """The packet inside a UDP payload of `length` bytes, of which `payload` was captured, if there is one.

    Raises:
        NotThisTunnelError: as its name says; for the kinds that Zeek then gives up on.
    """
    if responder_port == VXLAN_PORT:
        return _vxlan(payload)
    if responder_port == GENEVE_PORT:
        return _geneve(payload)
    if responder_port == TEREDO_PORT:
        return _teredo(payload, length)
    if responder_port in GTP_PORTS:
        return _gtp(payload, length)
    if responder_port == AYIYA_PORT or (len(payload) >= 3 and payload[1] == 0x52 and payload[2] == 0x11):
        return _ayiya(payload)
    if responder_port == GRE_PORT:
        return Inner(0, GRE_LINK)
    return _teredo(payload, length) if looks_like_teredo(payload) else None


def looks_like_teredo(payload: bytes) -> bool:
    """IPv6 with a Teredo address, or behind Teredo's authentication or origin headers (RFC 4380)."""
    if len(payload) < 40:
        return False
    if payload[0] >> 4 == 6:
        return _TEREDO_PREFIX in (payload[8:12], payload[24:28])
    if payload[0] or payload[1] > 1:
        return False
    if payload[1] == 1:
        payload = payload[13 + payload[2] + payload[3] :]
        if len(payload) < 40 or payload[:2] != b"\0\0":
            return False
    return len(payload) >= 48 and payload[8] >> 4 == 6


def _vxlan(payload: bytes) -> Inner | None:
    if len(payload) < 8 or not payload[0] & 0x08:
        raise NotThisTunnelError
    return Inner(8, ETHERNET_LINK) if len(payload) > 8 else None


def _geneve(payload: bytes) -> Inner | None:
    if len(payload) < 8:
        raise NotThisTunnelError
    if payload[0] >> 6:
        return None
    start = 8 + (payload[0] & 0x3F) * 4
    if start > len(payload):
        raise NotThisTunnelError
    kind = int.from_bytes(payload[2:4])
    return Inner(start, ETHERTYPE_LINKS + kind) if kind and start < len(payload) else None


def _teredo(payload: bytes, length: int) -> Inner | None:
    start = 0
    origin = authenticated = False
    while True:
        rest = len(payload) - start
        if rest < 2:
            raise NotThisTunnelError
        tag = int.from_bytes(payload[start : start + 2])
        if tag == 0 and not origin and rest >= 8:
            origin, start = True, start + 8
        elif tag == 1 and not origin and not authenticated and rest >= 4:
            authenticated, start = True, start + 13 + payload[start + 2] + payload[start + 3]
        elif tag >> 12 == 6 and rest >= 40:
            break
        else:
            raise NotThisTunnelError
    total = 40 + int.from_bytes(payload[start + 4 : start + 6])
    is_bubble = payload[start + 6] == 59 and total == 40
    rest = length - start
    if rest < total or (rest > total and not is_bubble):
        raise NotThisTunnelError
    return Inner(start, RAW_IP_LINK)


def _gtp(payload: bytes, length: int) -> Inner | None:
    """A G-PDU of GTP-U version 1 (3GPP TS 29.281), whose IP packet fills the rest exactly."""
    if len(payload) < 8 or payload[0] >> 5 != 1 or not payload[0] & 0x10 or payload[1] != _GTP_PACKET:
        return None
    start = 12 if payload[0] & 7 else 8
    more = payload[0] & 4
    while more:
        if start >= len(payload) or not payload[start]:
            return None
        start += payload[start] * 4
        if start > len(payload):
            return None
        more = payload[start - 1]
    rest = payload[start:]
    if len(rest) < 20:
        return None
    total = int.from_bytes(rest[2:4]) if rest[0] >> 4 == 4 else 40 + int.from_bytes(rest[4:6])
    return Inner(start, RAW_IP_LINK) if total == length - start else None


def _ayiya(payload: bytes) -> Inner | None:
    if len(payload) < 8:
        raise NotThisTunnelError
    start = 8 + (1 << (payload[0] >> 4)) + (payload[1] >> 4) * 4
    if start > len(payload):
        raise NotThisTunnelError
    if payload[2] & 0x0F != 1 or payload[3] not in (4, 41) or start == len(payload):
        return None
    return Inner(start, RAW_IP_LINK)
