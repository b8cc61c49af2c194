"""Addresses as keys: bytes that sort by version and value, so that a network is a range of them."""

from __future__ import annotations

import ipaddress
import socket
from functools import lru_cache

from tapline.service.history.filters import FilterError

_VERSION_4, _VERSION_6 = b"\x04", b"\x06"
_KEY_BYTES = {4: 5, 6: 17}


def address_key(address: str) -> bytes:
    """The key of an address, 5 bytes or 17.

    Raises:
        OSError, ValueError: it is none.
    """
    if ":" in address:
        return _VERSION_6 + socket.inet_pton(socket.AF_INET6, address)
    return _VERSION_4 + socket.inet_pton(socket.AF_INET, address)


def address_text(key: bytes) -> str:
    """The address of a key."""
    return socket.inet_ntop(socket.AF_INET6 if key[0] == 6 else socket.AF_INET, bytes(key[1:]))


@lru_cache(256)
def key_range(host: str) -> tuple[bytes, bytes]:
    """The first and the last key of an address or a network.

    Raises:
        FilterError: it is neither.
    """
    try:
        if "%" in host:
            raise ValueError
        network = ipaddress.ip_network(host.strip(), strict=False)
    except ValueError:
        raise FilterError("host: expected an address, or a network such as 10.0.0.0/8 or 2001:db8::/32") from None
    version = bytes([network.version])
    return version + network.network_address.packed, version + network.broadcast_address.packed


def split_keys(packed: bytes) -> set[bytes]:
    """The keys of which `packed` is made, one after the other."""
    found, at = set(), 0
    while at < len(packed):
        end = at + _KEY_BYTES[packed[at]]
        found.add(packed[at:end])
        at = end
    return found
