"""What every transport of the bus offers, and the pause between two attempts to connect."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from tapline.service.sources.bus.events import BusEvent, EventError

FIRST_PAUSE_SECONDS = 0.25
LONGEST_PAUSE_SECONDS = 15.0


@dataclass(frozen=True)
class TlsFiles:
    """PEM files of a TLS connection; without a CA the system's own are trusted."""

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None


@dataclass(frozen=True)
class Connected:
    """The bus is there; `peer_version` is Zeek's, where the transport learns it."""

    peer_version: str = ""


@dataclass(frozen=True)
class Disconnected:
    """The bus is gone; `reason` says why, in words for an operator."""

    reason: str


class TransportError(RuntimeError):
    """A transport cannot be used at all: a bad address, missing bindings or unreadable TLS files."""


Incoming = BusEvent | EventError | Connected | Disconnected
Receive = Callable[[Incoming], None]
"""Takes everything that happens on a connection. It must not block: the transport drains the bus by calling it."""


class Transport(Protocol):
    """One connection to one sensor's bus, made again whenever it breaks."""

    url: str

    async def run(self, receive: Receive) -> None:
        """Connect, receive and reconnect until cancelled."""
        ...

    async def publish(self, event: BusEvent) -> bool:
        """Send an event; False where there is no connection to send it on."""
        ...


def shown_url(url: str) -> str:
    """The address of a bus for people, metrics and logs: without user, password, query; of a broken one the scheme."""
    scheme, found, _ = url.partition("://")
    try:
        parts = urlsplit(url)
        _ = parts.port  # reading it checks it
        if found and parts.hostname:
            return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"
    except ValueError:
        pass
    return f"{scheme[:16]}://..." if found else "..."


def pause_seconds(failures: int) -> float:
    """How long to wait after so many failed attempts in a row: doubled each time, capped, with full jitter.

    The jitter keeps services that lost one sensor together from coming back together
    (Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015).
    """
    longest = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2.0 ** min(failures, 16))
    return random.uniform(FIRST_PAUSE_SECONDS / 2, longest)
