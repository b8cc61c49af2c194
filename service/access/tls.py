"""The certificate that the service shows: checked before anything starts, and taken anew when it was renewed."""

from __future__ import annotations

import ssl
from pathlib import Path

from tapline.service.log_lines import log


class TlsError(ValueError):
    """The certificate cannot be used; the message says which file, and what was expected."""


def tls_context(cert: Path, key: Path) -> ssl.SSLContext:
    """A context for servers, of TLS 1.2 and newer.

    Raises:
        TlsError: a file cannot be read, is no PEM, needs a passphrase, or the two do not belong together.
    """
    for flag, path in (("--tls-cert", cert), ("--tls-key", key)):
        try:
            path.read_bytes()
        except OSError as error:
            raise TlsError(f"{flag} {path}: cannot be read: {(error.strerror or 'no file').lower()}") from None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(cert, key, password=_no_passphrase)
    except _NeedsPassphraseError:
        raise TlsError(f"--tls-key {key}: expected a key without passphrase: protect it by the file's mode") from None
    except ssl.SSLError as error:
        raise TlsError(_problem(cert, key, error)) from None
    return context


class Certificate:
    """A certificate, its key, and the context that shows it."""

    def __init__(self, cert: Path, key: Path) -> None:
        """
        Raises:
            TlsError: as of `tls_context`.
        """
        self._cert, self._key = cert, key
        self._stamp = self._stamp_now()
        self.context = tls_context(cert, key)

    def refresh(self) -> None:
        """Show new connections what is in the files now, if that has changed and can be used."""
        stamp = self._stamp_now()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            tls_context(self._cert, self._key)
        except TlsError as error:  # as while one of the two is new and the other is not yet
            log.warning("the certificate of before is shown", problem=str(error))
            return
        self.context.load_cert_chain(self._cert, self._key)
        log.info("a new certificate is shown", file=str(self._cert))

    def _stamp_now(self) -> list[tuple[int, int] | None]:
        return [_changed(self._cert), _changed(self._key)]


def _changed(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino


class _NeedsPassphraseError(Exception):
    pass


def _no_passphrase() -> str:
    raise _NeedsPassphraseError


def _problem(cert: Path, key: Path, error: ssl.SSLError) -> str:
    if error.reason == "KEY_VALUES_MISMATCH":
        return f"--tls-key {key}: is not the key of the certificate {cert}: give the two that belong together"
    if b"-----BEGIN CERTIFICATE-----" not in cert.read_bytes():
        return f"--tls-cert {cert}: expected a certificate in PEM (-----BEGIN CERTIFICATE-----)"
    if b"PRIVATE KEY-----" not in key.read_bytes():
        return f"--tls-key {key}: expected a private key in PEM (-----BEGIN PRIVATE KEY-----)"
    return f"--tls-cert {cert}, --tls-key {key}: cannot be used: {error.reason or 'damaged'}"
