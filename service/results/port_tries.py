"""Who tried how many ports of how many hosts: counts flows without payload by originator, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from tapline.models.flow import Flow
from tapline.models.foreign_text import clean

KEPT_HOSTS = 128
"""Originators counted at a time: those with most such flows."""

MAX_RESPONDERS = 1000
"""Responders told apart of one originator; of more it is said that there are at least so many."""

TOLD_HOSTS = 20
"""Originators that a summary names."""

_PORT_PROTOCOLS = ("tcp", "udp")
_BITMAP_BYTES = 65536 // 8


class PortTries(msgspec.Struct, frozen=True):
    """What one originator tried in `flows` flows in which neither side sent payload.

    `ports` are those of TCP and of UDP, each port once however many hosts it was tried at; 0 where the flows have no
    ports. Of `responders` there are more where `more_responders` is True: not all were told apart.
    """

    orig_h: str
    flows: int
    responders: int
    ports: int
    more_responders: bool = False


class TriedPorts(msgspec.Struct, frozen=True):
    """The account of flows without payload: the originators with most of them, and `flows_of_others`, those of all
    others."""

    hosts: list[PortTries] = []
    flows_of_others: int = 0


class _Tries:
    """What is kept of one originator: at most `MAX_RESPONDERS` addresses, and a bit for each port."""

    __slots__ = ("flows", "ports", "responders")

    def __init__(self) -> None:
        self.flows = 0
        self.responders: set[str] = set()
        self.ports: dict[str, bytearray] = {}

    def add(self, flow: Flow) -> None:
        self.flows += 1
        if len(self.responders) <= MAX_RESPONDERS:
            self.responders.add(flow.resp_h)
        if flow.proto in _PORT_PROTOCOLS:
            bitmap = self.ports.setdefault(flow.proto, bytearray(_BITMAP_BYTES))
            bitmap[flow.resp_p >> 3] |= 1 << (flow.resp_p & 7)

    def told(self, orig_h: str) -> PortTries:
        ports = sum(int.from_bytes(bitmap).bit_count() for bitmap in self.ports.values())
        responders = len(self.responders)
        return PortTries(orig_h, self.flows, min(responders, MAX_RESPONDERS), ports, responders > MAX_RESPONDERS)


class PortTryCounter:
    """Counts flows without payload as they pass, of at most `KEPT_HOSTS` originators.

    Where there are more, the originator with fewest flows makes room and its flows count as those of others: who tries
    much stays, whatever number of addresses tries once. An originator that comes back is counted anew, so that its
    figures are then too low, never too high.
    """

    def __init__(self) -> None:
        self._hosts: dict[str, _Tries] = {}
        self._flows = 0

    def add(self, flow: Flow) -> None:
        """Count a flow, where it is one without payload."""
        if flow.payload_lengths:
            return
        self._flows += 1
        tries = self._hosts.get(flow.orig_h)
        if tries is None:
            if len(self._hosts) >= KEPT_HOSTS:
                del self._hosts[min(self._hosts, key=lambda host: self._hosts[host].flows)]
            tries = self._hosts[flow.orig_h] = _Tries()
        tries.add(flow)

    def told(self, limit: int = TOLD_HOSTS) -> TriedPorts:
        """The `limit` originators with most flows, most first."""
        found = sorted((tries.told(host) for host, tries in self._hosts.items()), key=lambda host: -host.flows)[:limit]
        return TriedPorts(found, self._flows - sum(host.flows for host in found))


def tries_text(host: PortTries) -> str:
    """`10.0.0.5 tried 1,994 ports of 1 host, none answered with payload`, as people read it."""
    hosts = _counted(host.responders, "host", more=host.more_responders)
    if not host.ports:
        return f"{clean(host.orig_h)} tried {hosts}, none answered with payload"
    return f"{clean(host.orig_h)} tried {_counted(host.ports, 'port')} of {hosts}, none answered with payload"


def tried_texts(tried: TriedPorts, limit: int) -> Iterable[str]:
    """A sentence for each of the first `limit` originators, and one for the flows of all others."""
    for host in tried.hosts[:limit]:
        yield tries_text(host)
    if rest := tried.flows_of_others + sum(host.flows for host in tried.hosts[limit:]):
        yield f"other originators: {_counted(rest, 'flow')} without payload"


def _counted(count: int, what: str, *, more: bool = False) -> str:
    return f"{count:,}{'+' if more else ''} {what}{'' if count == 1 else 's'}"
