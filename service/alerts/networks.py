"""Sets of networks and names that flows are held against, made once: looking one up costs the same however large."""

from __future__ import annotations

import fnmatch
import ipaddress
import re
import socket
from collections import defaultdict
from collections.abc import Iterable
from functools import lru_cache

_BITS = {4: 32, 6: 128}


class NetworkSet:
    """Addresses and networks of both versions; a look costs one probe for each length of prefix that occurs."""

    def __init__(self, networks: Iterable[str]) -> None:
        """`networks`: addresses, or networks in CIDR.

        Raises:
            ValueError: one is neither.
        """
        prefixes: dict[tuple[int, int], set[int]] = defaultdict(set)
        for text in networks:
            network = ipaddress.ip_network(text, strict=False)
            shift = _BITS[network.version] - network.prefixlen
            prefixes[network.version, shift].add(int(network.network_address) >> shift)
        self._prefixes = {
            version: [(shift, starts) for (found, shift), starts in prefixes.items() if found == version]
            for version in _BITS
        }

    def __contains__(self, address: str) -> bool:
        """Whether an address is in one of them; False of a text that is none, as a MAC."""
        prefixes = self._prefixes[6 if ":" in address else 4]
        if not prefixes:
            return False
        number = _number(address)
        if number is None:
            return False
        for shift, starts in prefixes:  # noqa: SIM110 - on the path of every flow
            if number >> shift in starts:
                return True
        return False


@lru_cache(4096)
def _number(address: str) -> int | None:
    """The value of an address, None of a text that is none; each rule asks for the same ones."""
    try:
        return int.from_bytes(socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address))
    except (OSError, ValueError):
        return None


class NameSet:
    """Names and globs (`*`, `?`, `[...]`), in capitals or not; `*.example.org` is also asked about `example.org`'s
    subdomains at the cost of a name."""

    def __init__(self, patterns: Iterable[str]) -> None:
        self._names: set[str] = set()
        self._suffixes: set[str] = set()
        globs = []
        for pattern in patterns:
            lower = pattern.lower()
            if not _is_glob(lower):
                self._names.add(lower)
            elif lower.startswith("*.") and not _is_glob(lower[2:]):
                self._suffixes.add(lower[2:])
            else:
                globs.append(fnmatch.translate(lower))
        self._globs = re.compile("|".join(globs)) if globs else None

    def __contains__(self, name: str) -> bool:
        """Whether a name is one of them, or meets a glob."""
        lower = name.lower()
        if lower in self._names or (self._globs is not None and self._globs.match(lower) is not None):
            return True
        parent = lower
        while self._suffixes and "." in parent:
            parent = parent.partition(".")[2]
            if parent in self._suffixes:
                return True
        return False


def host_bits(network: str) -> str | None:
    """What to say of a network that is written by an address in it, which is taken for all of it; None of others."""
    address, slash, _ = network.partition("/")
    if not slash:
        return None
    whole = ipaddress.ip_network(network, strict=False)
    if ipaddress.ip_address(address) == whole.network_address:
        return None
    return f'"{network}" is all of {whole}: write that, or the address alone, "{address}"'


def _is_glob(text: str) -> bool:
    return any(letter in text for letter in "*?[")
