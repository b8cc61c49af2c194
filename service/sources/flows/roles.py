"""The little of DNS and NTP that says who asks and who answers, for flows whose first packet is an answer."""

from __future__ import annotations

DNS = 1
NTP = 2

_DNS_PORTS = frozenset({53, 137, 5353, 5355})
_NETBIOS_PORT = 137
_NTP_PORT = 123
_DNS_HEADER_BYTES = 12
_MOST_QUESTIONS = 25
_NTP_MESSAGE_BYTES = 48
_NTP_SIGNATURE_BYTES = 24
_NTP_CLIENT = 3
_NTP_SERVER = 4


def inspector_of(responder_port: int) -> int:
    """`DNS`, `NTP` or 0: what a UDP flow to this port is looked at as."""
    if responder_port in _DNS_PORTS:
        return DNS
    return NTP if responder_port == _NTP_PORT else 0


def is_dns_message(payload: bytes, ports: tuple[int, int]) -> bool:
    """Whether the payload is long enough for a DNS header and holds a query or its answer (RFC 1035, 4.1.1)."""
    if len(payload) < _DNS_HEADER_BYTES:
        return False
    return not payload[2] & 0x78 or _NETBIOS_PORT in ports


def is_dns_answer(payload: bytes) -> bool:
    """Whether a DNS message is an answer."""
    return bool(payload[2] & 0x80)


def asks_too_much(payload: bytes) -> bool:
    """Whether a flow's first message has so many questions that Zeek takes the flow for something else than DNS."""
    return int.from_bytes(payload[4:6]) > _MOST_QUESTIONS


def is_multicast(address: bytes) -> bool:
    """Whether answers to this packed address are announcements; for IPv4, 224/8 alone, as Zeek has it."""
    return address[0] == (224 if len(address) == 4 else 0xFF)


def ntp_contradicts(payload: bytes, from_orig: bool) -> bool:
    """Whether an NTP message says that its sender is the other end than the flow has it (RFC 5905, 7.3).

    Messages with more behind them than a signature are left alone: Zeek does not read most extensions.
    """
    if not 0 <= len(payload) - _NTP_MESSAGE_BYTES <= _NTP_SIGNATURE_BYTES:
        return False
    mode = payload[0] & 7
    return mode == (_NTP_SERVER if from_orig else _NTP_CLIENT)
