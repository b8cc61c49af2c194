"""The TLS of an output's connection: who is trusted, and which certificate is shown."""

from __future__ import annotations

import ssl

from tapline.service.sinks.output_url import OutputError, TlsOptions
from tapline.service.sinks.sender import reason_of


def client_tls(output: TlsOptions) -> ssl.SSLContext:
    """A context of the files as they are now: TLS 1.2 or newer, the server's certificate and name are checked.

    Raises:
        OutputError: a file cannot be read.
    """
    try:
        context = ssl.create_default_context(cafile=output.ca)
    except OSError as error:
        raise OutputError(
            f"{output.name}: ca={output.ca} is no PEM file that can be read: {reason_of(error)}"
        ) from None
    if output.cert is not None:
        try:
            context.load_cert_chain(output.cert, output.key, password=_no_password)
        except OSError as error:
            raise OutputError(
                f"{output.name}: cert and key are no PEM files of a certificate and its key: {reason_of(error)}"
            ) from None
    return context


def _no_password() -> str:
    raise OSError("the key has a password: give one without")
