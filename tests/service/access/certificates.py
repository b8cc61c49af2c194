"""Certificates of a CA of the tests' own."""

import ssl

import trustme


def certificate(folder, *names):
    """Paths of a certificate for these names and of its key, and the context of a client that trusts its CA."""
    ca = trustme.CA()
    issued = ca.issue_cert(*names)
    cert, key = folder / "cert.pem", folder / "key.pem"
    cert.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    issued.private_key_pem.write_to_path(key)
    context = ssl.create_default_context()
    ca.configure_trust(context)
    return cert, key, context
