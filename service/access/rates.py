"""How often somebody may do something: a bucket of tokens for each, of which the table is bounded."""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

MAX_BUCKETS = 4096
"""Beyond, the bucket that was longest out of use is forgotten: it had most time to be full again."""

_IPV6_PREFIX = 64
"""What one customer has of IPv6 at least: addresses in it are one client."""


@dataclass
class _Bucket:
    tokens: float
    at: float


class Rates:
    """Lets each name do something `per_minute` times a minute, so many at once at most; 0 is no limit."""

    def __init__(self, per_minute: int, clock: Callable[[], float]) -> None:
        self._per_minute = per_minute
        self._clock = clock
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def wait_seconds(self, name: str) -> float:
        """How long it is until the next time; 0 where it may be now."""
        if not self._per_minute:
            return 0.0
        return max(0.0, (1 - self._bucket(name).tokens) * 60 / self._per_minute)

    def take(self, name: str) -> float:
        """Do it once, if that may be: 0; else how many seconds it is until it may be."""
        wait = self.wait_seconds(name)
        if self._per_minute and not wait:
            self._bucket(name).tokens -= 1
        return wait

    def _bucket(self, name: str) -> _Bucket:
        now = self._clock()
        bucket = self._buckets.setdefault(name, _Bucket(self._per_minute, now))
        self._buckets.move_to_end(name)
        if len(self._buckets) > MAX_BUCKETS:
            self._buckets.popitem(last=False)
        bucket.tokens = min(self._per_minute, bucket.tokens + (now - bucket.at) * self._per_minute / 60)
        bucket.at = now
        return bucket


def client_of(address: str) -> str:
    """By what a client is known that has this address: IPv4 by itself, IPv6 by its network."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if found.version == 4:
        return str(found)
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(ipaddress.ip_network((found, _IPV6_PREFIX), strict=False))
