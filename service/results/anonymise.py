"""Other addresses in the place of real ones, the same for the same everywhere, for results that are given away."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
import secrets
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import yacryptopan

KEY_BYTES = 32
_REMEMBERED = 1 << 16
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}\Z", re.IGNORECASE)
_CARRIES_ADDRESS = re.compile(
    r"""\d{1,3}([.\-_]\d{1,3}){3}      # an IPv4 address, as of a host in a cloud or by its reverse name
    |\.(in-addr|ip6)\.arpa\.?$
    |:                                 # an IPv6 address
    |[0-9a-f]{1,4}(-[0-9a-f]{0,4}){5,} # one with dashes, or a MAC address
    |[0-9a-f]{12}                      # as hex""",
    re.IGNORECASE | re.VERBOSE,
)


class AnonymiseKeyError(ValueError):
    """A key that is none; the message says what was expected."""


class Anonymiser:
    """Maps addresses by Crypto-PAn: two that share a prefix of n bits do so afterwards (Xu et al., ICNP 2002).

    MAC addresses and uids become keyed hashes. The mapping follows from the key of `KEY_BYTES` alone. Remembers the
    last addresses that it mapped.
    """

    def __init__(self, key: bytes | None = None) -> None:
        """`key` None: one by chance, which nobody knows."""
        key = secrets.token_bytes(KEY_BYTES) if key is None else key
        if len(key) != KEY_BYTES:
            raise AnonymiseKeyError(f"expected a key of {KEY_BYTES} bytes, got {len(key)}")
        self._prefixes = yacryptopan.CryptoPAn(key)
        self._hash_key = hashlib.sha256(b"tapline anonymise" + key).digest()
        self._known: OrderedDict[str, str] = OrderedDict()

    def address(self, text: str) -> str:
        """The address in the place of an IPv4 or IPv6 address.

        Raises:
            ValueError: it is none.
        """
        return self._mapped(text, self._address)

    def subject(self, text: str) -> str:
        """What stands for a trace's subject: an address, two of them (`a - b`) or a MAC address."""
        return " - ".join(self._mapped(part, self._end) for part in text.split(" - "))

    def server_name(self, name: str) -> str:
        """The name, "" where an address can be read in it; other names stay as they are."""
        try:
            return self.address(name)
        except ValueError:
            return "" if _CARRIES_ADDRESS.search(name) else name

    def uid(self, uid: str) -> str:
        """What stands for a flow's uid, which may follow from its addresses."""
        return f"T{hmac.digest(self._hash_key, uid.encode(), 'sha256').hex()[:17]}"

    def _mapped(self, text: str, how: Callable[[str], str]) -> str:
        found = self._known.get(text)
        if found is None:
            found = self._known[text] = how(text)
            if len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
        return found

    def _end(self, text: str) -> str:
        return self._mac(text) if _MAC.match(text) else self._address(text)

    def _address(self, text: str) -> str:
        address = ipaddress.ip_address(text)
        number = self._prefixes.anonymize_bin(int(address), address.version)
        return str(type(address)(number))

    def _mac(self, text: str) -> str:
        """A locally administered unicast address (IEEE 802, 8.4), without the vendor."""
        data = bytearray(hmac.digest(self._hash_key, text.lower().encode(), "sha256")[:6])
        data[0] = (data[0] | 0x02) & 0xFE
        return data.hex(":")


def read_key(path: Path) -> bytes:
    """The key in a file: `KEY_BYTES` bytes in hex, as `openssl rand -hex 32` writes them.

    Raises:
        AnonymiseKeyError: it cannot be read, or holds something else.
    """
    try:
        with path.open("rb") as file:
            text = file.read(4 * KEY_BYTES).strip()
    except OSError as error:
        raise AnonymiseKeyError(f"{path}: cannot read the key: {error.strerror}") from None
    try:
        key = bytes.fromhex(text.decode("ascii"))
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise AnonymiseKeyError(
            f"{path}: expected a key of {2 * KEY_BYTES} hex digits: make one with `openssl rand -hex {KEY_BYTES}`"
        )
    return key
