"""The certificate that the service shows, checked before anything starts."""

from __future__ import annotations

import ssl
from pathlib import Path


class TlsError(ValueError):
    """The certificate cannot be used; the message says which file, and what was expected."""


def tls_context(cert: Path | None, key: Path | None) -> ssl.SSLContext | None:
    """A context for servers, of TLS 1.2 and newer; None where there is no certificate.

    Raises:
        TlsError: a file cannot be read, is no PEM, needs a passphrase, or the two do not belong together.
    """
    if cert is None or key is None:
        return None
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
