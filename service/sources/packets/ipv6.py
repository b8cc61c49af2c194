"""IPv6 extension headers (RFC 8200): how long they are, what follows them, and whose addresses they replace."""

from __future__ import annotations

HOP_BY_HOP, ROUTING, FRAGMENT, ESP, AUTHENTICATION, DESTINATION, MOBILITY = 0, 43, 44, 50, 51, 60, 135
_IPV6 = 41
_NO_NEXT = 59
_EXTENSIONS = frozenset({HOP_BY_HOP, ROUTING, FRAGMENT, ESP, AUTHENTICATION, DESTINATION, MOBILITY})
_LAST = frozenset({FRAGMENT, ESP, MOBILITY})
_HOME_ADDRESS_OPTION = 201
_JUMBO_OPTION = 194

UNFRAGMENTABLE_END = 8
"""Bytes of the fragment header, which the reassembled packet does not have."""


class Ipv6Headers:
    """The header chain of the IPv6 packet in `data[start:end]`, which holds at least the fixed header.

    `length`: of all headers; `protocol`: what follows them; `last_header`: type of the last one. A routing header with
    hops left gives the final `target`, a home address option the `source` (RFC 6275), a jumbo payload option the length
    of what follows the fixed header (RFC 2675), else 0. A header that is cut ends the chain before it.
    """

    def __init__(self, data: bytes, start: int, end: int) -> None:
        self._data = data
        self.source = data[start + 8 : start + 24]
        self.target = data[start + 24 : start + 40]
        self.length = 40
        self.protocol = data[start + 6]
        self.last_header = _IPV6
        self.is_fragment = False
        self.more = False
        self.offset = self.identifier = self.jumbo_bytes = 0
        self._routed = self._homed = False
        position = start + 40
        while self.last_header not in _LAST and self.protocol in _EXTENSIONS and end - position >= 2:
            kind = self.protocol
            size = self._size(kind, data[position + 1])
            if size > end - position:
                break
            self._take(kind, position, size)
            self.last_header = kind
            self.protocol = _NO_NEXT if kind == ESP else data[position]
            self.length += size
            position += size

    @staticmethod
    def _size(kind: int, length_field: int) -> int:
        if kind in (FRAGMENT, ESP):
            return 8
        return 8 + length_field * (4 if kind == AUTHENTICATION else 8)

    def _take(self, kind: int, position: int, size: int) -> None:
        data = self._data
        if kind == FRAGMENT:
            field = int.from_bytes(data[position + 2 : position + 4])
            self.is_fragment, self.offset, self.more = True, field & 0xFFF8, bool(field & 1)
            self.identifier = int.from_bytes(data[position + 4 : position + 8])
        elif kind == ROUTING and not self._routed and data[position + 3]:
            units = data[position + 1]
            if (data[position + 2] == 0 and units >= 2 and units % 2 == 0) or (data[position + 2] == 2 and units == 2):
                self.target = data[position + size - 16 : position + size]
                self._routed = True
        elif kind in (DESTINATION, HOP_BY_HOP):
            self._take_options(kind, position + 2, position + size)

    def _take_options(self, kind: int, position: int, end: int) -> None:
        data = self._data
        while position < end:
            if data[position] == 0:
                position += 1
                continue
            if position + 2 > end or position + 2 + data[position + 1] > end:
                return
            option = data[position]
            if kind == HOP_BY_HOP:
                if option == _JUMBO_OPTION and data[position + 1] == 4:
                    self.jumbo_bytes = int.from_bytes(data[position + 2 : position + 6])
            elif option == _HOME_ADDRESS_OPTION and data[position + 1] == 16 and not self._homed:
                self.source = data[position + 2 : position + 18]
                self._homed = True
            position += 2 + data[position + 1]


def rebuild_ipv6(header: bytes, next_header: int, payload: bytes) -> bytes:
    """The packet whose fragments had the headers `header` before the fragment header, and this payload."""
    rebuilt = bytearray(header)
    length = len(header) - 40 + len(payload) & 0xFFFF
    rebuilt[4:6] = length.to_bytes(2)
    position, at = 40, 6
    while rebuilt[at] != FRAGMENT and rebuilt[at] in _EXTENSIONS and position + 2 <= len(rebuilt):
        at, position = position, position + Ipv6Headers._size(rebuilt[at], rebuilt[position + 1])
    rebuilt[at] = next_header
    return bytes(rebuilt) + payload
