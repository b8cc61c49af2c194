"""Which end began a flow, where its first packet does not say: ports, and what the messages of DNS and NTP say."""

from __future__ import annotations

from tapline.service.sources.flows import tcp
from tapline.service.sources.flows.live_flow import DNS_RECHECK_US, LiveFlow
from tapline.service.sources.flows.roles import (
    DNS,
    NTP,
    asks_too_much,
    inspector_of,
    is_dns_answer,
    is_dns_message,
    is_multicast,
    ntp_contradicts,
)
from tapline.service.sources.packets.packet_rows import PacketRow
from tapline.service.sources.packets.ports import is_likely_server

_BROADCAST = b"\xff\xff\xff\xff"


def orient_udp(flow: LiveFlow, now_us: int) -> None:
    """The first packet may come from the server; and who is asked by DNS or NTP, the messages say."""
    ports = flow.ports()
    source, target = ports[flow.orig], ports[1 - flow.orig]
    reversed_ports = is_likely_server(source, tcp=False) and not is_likely_server(target, tcp=False)
    if reversed_ports and flow.address(1 - flow.orig) != _BROADCAST:
        flow.flip()
        target = source
    flow.inspect = inspector_of(target)
    if flow.inspect == DNS:
        flow.recheck_us = now_us + DNS_RECHECK_US


def inspect(flow: LiveFlow, row: PacketRow) -> None:
    """Looks at a datagram of a DNS or NTP flow, and turns the flow around if it says so."""
    row = PacketRow._make(row)
    payload = row.data[row.offset : row.offset + min(row.have, row.length)]
    from_orig = row.side == flow.orig
    if flow.inspect == NTP:
        if ntp_contradicts(payload, from_orig):
            flow.inspect = 0
            _turn(flow, row)
        return
    if not is_dns_message(payload, flow.ports()):
        return
    flow.inspect = 0
    if from_orig and is_dns_answer(payload) and not is_multicast(flow.address(1 - flow.orig)):
        _turn(flow, row)
    if asks_too_much(payload):
        flow.recheck_us = 0


def tcp_begins_reversed(flow: LiveFlow, flags: int) -> bool:
    """Whether a first packet that is no SYN comes from the server: from a port where servers listen."""
    ports = flow.ports()
    source, target = ports[flow.orig], ports[1 - flow.orig]
    if not is_likely_server(source, tcp=True) or flow.address(1 - flow.orig) == _BROADCAST:
        return False
    if is_likely_server(target, tcp=True):
        return not flags & tcp.SYN and source < target
    return True


def _turn(flow: LiveFlow, row: PacketRow) -> None:
    """Turns a flow for what a datagram says; as in conn.log, that datagram counts for the end that did not send it."""
    flow.flip()
    sender, other = flow.sides[row.side], flow.sides[1 - row.side]
    sender.packets -= 1
    sender.ip_bytes -= row.total
    other.packets += 1
    other.ip_bytes += row.total
