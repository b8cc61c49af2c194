"""Sessions of browsers that have signed in: in memory, bounded in number and time, by tokens that nobody can guess."""

from __future__ import annotations

import hashlib
import secrets
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

MAX_SESSIONS = 512
"""Beyond, the one that was longest out of use ends."""

MAX_OF_KEY = 64
"""Beyond, of one key its own: no key ends the sessions of all others by signing in again and again."""

IDLE_SECONDS = 3600.0
"""How long a session lasts without use; an open page of the dashboard is use."""

ABSOLUTE_SECONDS = 12 * 3600.0
"""How long a session lasts at all."""

_TOKEN_BYTES = 32

End = Literal["signed out", "signed in anew", "key revoked", "expired", "one of too many"]
"""Why a session ended."""


@dataclass
class Session:
    """One browser: the digest and the name of the key that opened it, from which client's address, and when it was
    opened and last used (of the clock)."""

    key_digest: bytes
    key_name: str
    address: str
    opened: float
    used: float


class Sessions:
    """All sessions; of their tokens hashes alone are kept. Those out of time end when any is begun or used."""

    def __init__(self, clock: Callable[[], float], ended: Callable[[Session, End], None]) -> None:
        """`ended` is told of every end."""
        self._clock = clock
        self._ended = ended
        self._open: OrderedDict[bytes, Session] = OrderedDict()

    def __len__(self) -> int:
        return len(self._open)

    def begin(self, key_digest: bytes, key_name: str, address: str) -> str:
        """Open a session; the token that the browser keeps."""
        token, now = secrets.token_urlsafe(_TOKEN_BYTES), self._clock()
        self._expire(now)
        of_key = [place for place, session in self._open.items() if session.key_digest == key_digest]
        for place in of_key[: max(0, len(of_key) + 1 - MAX_OF_KEY)]:
            self._end(place, "one of too many")
        self._open[_hash(token)] = Session(key_digest, key_name, address, now, now)
        while len(self._open) > MAX_SESSIONS:
            self._end(next(iter(self._open)), "one of too many")
        return token

    def use(self, token: str) -> Session | None:
        """The session of a token, which is used by that; None where there is none, or no more."""
        place, now = _hash(token), self._clock()
        self._expire(now)
        session = self._open.get(place)
        if session is None:
            return None
        if now - session.opened >= ABSOLUTE_SECONDS:
            self._end(place, "expired")
            return None
        session.used = now
        self._open.move_to_end(place)
        return session

    def end(self, token: str, why: End) -> None:
        """End the session of a token, if there is one."""
        self._end(_hash(token), why)

    def _expire(self, now: float) -> None:
        """End those that were long out of use, which stand first."""
        while self._open and now - next(iter(self._open.values())).used >= IDLE_SECONDS:
            self._end(next(iter(self._open)), "expired")

    def _end(self, place: bytes, why: End) -> None:
        session = self._open.pop(place, None)
        if session is not None:
            self._ended(session, why)


def _hash(token: str) -> bytes:
    """What is kept of a token: that it is looked up by this tells nobody how much of a guess is right."""
    return hashlib.sha256(token.encode()).digest()
