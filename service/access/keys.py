"""Keys: how they are made, what of them is kept, and how a given one is looked for.

A generated key holds 256 random bits, so one SHA-256 of it is a sound hash at rest: there is nothing to guess, and no
slow hash would add to that. It would not be sound for a key that a person made up, so no such key is ever taken for one
of a file: what is given has to have the form and the checksum of a generated key before its hash is looked for.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from tapline.service.access.scopes import SCOPES, Scope

PREFIX = "tapline_"
"""By which people, and programs that look for leaked secrets, know a key."""

MAX_KEYS = 1000
_SECRET_BYTES = 32
_FORM = re.compile(rb"tapline_([0-9a-f]{64})([0-9a-f]{8})")
_LINE = re.compile(r"(\S+)\s+(\S+)\s+sha256:([0-9a-f]{64})")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

API_KEY = "api_key"
"""The name of the key of the setting `api_key`."""


class KeysError(ValueError):
    """Keys cannot be used; the message says which and what to do, and holds nothing of them."""


@dataclass(frozen=True)
class AccessKey:
    """What is kept of a key: its name, its scope, and its SHA-256 (32 bytes)."""

    name: str
    scope: Scope
    digest: bytes

    def line(self) -> str:
        """As it stands in a file, without line end."""
        return f"{self.name} {self.scope} sha256:{self.digest.hex()}"


def new_key() -> str:
    """A key that nobody has: prefix, 256 random bits in hexadecimal, and their CRC-32."""
    secret = secrets.token_hex(_SECRET_BYTES)
    return f"{PREFIX}{secret}{zlib.crc32(secret.encode()):08x}"


def is_generated(given: bytes) -> bool:
    """Whether something has the form and the checksum of a generated key."""
    found = _FORM.fullmatch(given)
    return found is not None and int(found[2], 16) == zlib.crc32(found[1])


def digest_of(key: bytes) -> bytes:
    """What is kept of a key."""
    return hashlib.sha256(key).digest()


def make_key(name: str, scope: Scope) -> tuple[AccessKey, str]:
    """A new key: what is kept of it, and the key, which is to be shown once.

    Raises:
        KeysError: the name cannot be one.
    """
    check_name(name)
    text = new_key()
    return AccessKey(name, scope, digest_of(text.encode())), text


def check_name(name: str) -> None:
    """
    Raises:
        KeysError: the name cannot be one of a key.
    """
    if _NAME.fullmatch(name) is None or name == API_KEY:
        raise KeysError("expected a name of at most 64 letters, digits, `.`, `_`, `-`, and not `api_key`")


def read_line(line: str) -> AccessKey:
    """The key of a line `NAME SCOPE sha256:HEX`.

    Raises:
        KeysError: it is none; above all, a key itself is none.
    """
    found = _LINE.fullmatch(line.strip())
    if found is None:
        raise KeysError("expected NAME SCOPE sha256:HASH, as `tapline keys add` writes it")
    name, scope, digest = found.groups()
    check_name(name)
    if scope not in SCOPES:
        raise KeysError(f"expected a scope of {', '.join(SCOPES)}")
    return AccessKey(name, scope, bytes.fromhex(digest))


class KeyRing:
    """Keys that are told apart by name and by digest; never changed."""

    def __init__(self, keys: Iterable[AccessKey] = ()) -> None:
        """
        Raises:
            KeysError: two have one name or are the same, or they are too many.
        """
        self._keys = tuple(keys)
        if len(self._keys) > MAX_KEYS:
            raise KeysError(f"expected at most {MAX_KEYS} keys")
        for what, found in (("name", {key.name for key in self}), ("hash", {key.digest for key in self})):
            if len(found) < len(self._keys):
                raise KeysError(f"two keys have the same {what}: remove one")

    def __iter__(self) -> Iterator[AccessKey]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, digest: bytes) -> AccessKey | None:
        """The key of a digest, in a time that does not tell which keys there are."""
        found = None
        for key in self._keys:
            if secrets.compare_digest(key.digest, digest):
                found = key
        return found
