"""Who is let in: joins keys, sessions, rates and the account of it to the one question of the gate, *who asks?*

Nothing here knows of HTTP but the names of headers: what is refused, and how that is answered, is the gate's.
"""

from __future__ import annotations

import base64
import binascii
import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from tapline.service.access.audit import NOBODY, Audit
from tapline.service.access.key_file import KeyFile
from tapline.service.access.keys import API_KEY, AccessKey, KeyRing, KeysError, digest_of, is_generated, read_line
from tapline.service.access.rates import Rates, client_of
from tapline.service.access.scopes import Scope, Wanted, covers
from tapline.service.access.sessions import End, Session, Sessions
from tapline.service.settings import Settings

MOST_GIVEN = 2
"""Keys that one request may carry: one in each header that may hold one. More would be so many guesses."""

CALLER = "tapline.caller"
"""Where the gate leaves the `Caller` in a request's scope."""

COOKIE = "tapline_session"
SECURE_COOKIE = "__Host-tapline_session"
"""The cookie of a session under TLS: no other host and no page without TLS can set it (RFC 6265bis, 4.1.3.2)."""


class TooManyFailuresError(Exception):
    """A client gave too many wrong keys; `seconds` until it may try again."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds


class WrongKeyError(Exception):
    """A key was given that is none."""


@dataclass(frozen=True)
class Caller:
    """Who asks: the name of the key, the client's address, and whether it is a browser that has signed in.

    What it may do is looked up each time: a key may be revoked, or get another scope, while a page is open.
    """

    name: str
    address: str
    access: Access
    digest: bytes | None = None
    token: str | None = None

    @property
    def scope(self) -> Scope | None:
        """What it may do now; None where its key or its session is no more."""
        if self.digest is None:
            return None if self.access.is_on else "admin"
        if self.token is not None and self.access.sessions.use(self.token) is None:
            return None
        key = self.access.key_of(self.digest)
        if key is None and self.token is not None:
            self.access.sessions.end(self.token, "key revoked")
        return key.scope if key is not None else None

    def may(self, wanted: Wanted) -> bool:
        """Whether it may do now what wants this scope."""
        scope = self.scope
        return scope is not None and covers(scope, wanted)

    @property
    def owner(self) -> str | None:
        """By what name what it hands in is its own; None where no key is wanted."""
        return self.name if self.digest is not None else None

    def owns(self, owner: str | None) -> bool:
        """Whether what `owner` (the name of a key) handed in is its own, or it may do what it likes with all."""
        return self.may("admin") or (owner is not None and owner == self.name and self.may("classify"))

    def record(self, action: str, outcome: str) -> None:
        """Leave a line in the account."""
        self.access.audit.record(self.address, self.name, action, outcome)


class Access:
    """The keys of a service, and what follows from them."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        """
        Raises:
            KeysError: keys, or the audit log, cannot be used.
        """
        self.rates = Rates(settings.rate_limit_per_minute, clock)
        self.audit = Audit(settings.audit_log)
        self.sessions = Sessions(clock, self._session_ended)
        self._failures = Rates(settings.failed_keys_per_minute, clock)
        self._file = KeyFile(settings.keys_file, clock) if settings.keys_file is not None else None
        self._given = KeyRing(_lines(settings.keys))
        text = settings.api_key.get_secret_value() if settings.api_key is not None else None
        self._typed = [digest_of(one) for one in _encodings(text)] if text is not None else []
        self.is_on = bool(self._typed or self._given or self._file)

    def key_of(self, digest: bytes) -> AccessKey | None:
        """The key of a digest, as it is now."""
        own = KeyRing([AccessKey(API_KEY, "admin", self._typed[0])] if self._typed else [])
        rings = (own, self._given, self._file.ring() if self._file is not None else KeyRing())
        return next(filter(None, [ring.find(digest) for ring in rings]), None)

    def nobody(self, address: str) -> Caller:
        """Who asks without a key: it may everything where no keys are set, else nothing."""
        return Caller(NOBODY, address, self)

    def by_key(self, given: Sequence[bytes], address: str) -> Caller | None:
        """Who asks with these keys, of which one has to be good; None where there are none.

        Raises:
            WrongKeyError: none is good.
            TooManyFailuresError: the client gave too many wrong ones. A good key that was generated is taken all the
                same, for it cannot be guessed: so nobody who shares an address locks the others out.
        """
        if not given:
            return None
        found = [self._find(one, address) for one in given] if len(given) <= MOST_GIVEN else []
        key = next(filter(None, found), None)
        if key is not None:
            return Caller(key.name, address, self, key.digest)
        wait = self._failures.take(client_of(address))
        self.audit.failed_key(address)
        if wait:
            raise TooManyFailuresError(wait)
        raise WrongKeyError

    def by_session(self, cookies: Mapping[str, str], address: str, *, secure: bool) -> Caller | None:
        """Who asks with a session; None where there is none, or where its key is no more."""
        token = cookies.get(SECURE_COOKIE if secure else COOKIE)
        session = self.sessions.use(token) if token is not None else None
        if session is None:
            return None
        key = self.key_of(session.key_digest)
        if key is None:
            self.sessions.end(token or "", "key revoked")
            return None
        return Caller(key.name, address, self, key.digest, token)

    def _session_ended(self, session: Session, why: End) -> None:
        self.audit.record(session.address, session.key_name, "end session", why)

    def _find(self, given: bytes, address: str) -> AccessKey | None:
        digest = digest_of(given)
        if is_generated(given):
            return self.key_of(digest)
        is_typed = sum(secrets.compare_digest(digest, one) for one in self._typed) > 0  # looks at all of them
        if is_typed and not self._failures.wait_seconds(client_of(address)):  # else it may have been guessed
            return self.key_of(self._typed[0])
        return None


def _lines(lines: Iterable[str]) -> list[AccessKey]:
    keys = []
    for number, line in enumerate(lines, 1):
        try:
            keys.append(read_line(line))
        except KeysError as error:
            raise KeysError(f"--keys: number {number}: {error}") from None
    return keys


def given_keys(headers: Iterable[tuple[bytes, bytes]]) -> list[bytes]:
    """The keys in a request's headers: `X-API-Key`, `Authorization: Bearer`, the password of `Basic`."""
    given = []
    for name, value in headers:
        if name == b"x-api-key":
            given.append(value.strip())
        elif name == b"authorization":
            scheme, _, credentials = value.strip().partition(b" ")
            if scheme.lower() == b"basic":
                given.append(_password(credentials.strip()))
            else:
                given.append(credentials.strip() if scheme.lower() == b"bearer" else b"")
    return given


def _password(credentials: bytes) -> bytes:
    """The password of Basic authentication (RFC 7617), whatever the name; empty where there is none."""
    try:
        return base64.b64decode(credentials, validate=True).partition(b":")[2]
    except binascii.Error:
        return b""


def _encodings(key: str) -> list[bytes]:
    """The bytes that clients send for a key: UTF-8, or ISO 8859-1 where their libraries take headers for that."""
    try:
        return list(dict.fromkeys((key.encode(), key.encode("iso-8859-1"))))
    except UnicodeEncodeError:
        return [key.encode()]
