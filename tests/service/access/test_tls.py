"""HTTPS by the service itself: what is wrong with files is one sentence, and old protocols are refused."""

import contextlib
import ssl

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from tapline.service.access.tls import TlsError, tls_context
from tapline.service.settings import Settings
from tests.service.access.certificates import certificate
from tests.service.api.served import Server, udp_capture
from tests.service.command.cli_runner import tapline


@pytest.fixture
def files(tmp_path):
    return certificate(tmp_path, "127.0.0.1", "localhost")


def test_files_that_cannot_be_used(files, tmp_path):
    cert, key, _ = files
    (tmp_path / "other").mkdir()
    other = certificate(tmp_path / "other", "localhost")[1]
    text = tmp_path / "text.pem"
    text.write_text("no certificate")
    locked = tmp_path / "locked.pem"
    locked.write_bytes(
        load_pem_private_key(key.read_bytes(), None).private_bytes(
            Encoding.PEM, PrivateFormat.TraditionalOpenSSL, BestAvailableEncryption(b"secret")
        )
    )
    for cert_path, key_path, said in (
        (tmp_path / "none", key, f"--tls-cert {tmp_path}/none: cannot be read: no such file"),
        (cert, tmp_path / "none", f"--tls-key {tmp_path}/none: cannot be read: no such file"),
        (text, key, f"--tls-cert {text}: expected a certificate in PEM"),
        (cert, text, f"--tls-key {text}: expected a private key in PEM"),
        (cert, other, f"--tls-key {other}: is not the key of the certificate {cert}"),
        (cert, locked, f"--tls-key {locked}: expected a key without passphrase"),
    ):
        with pytest.raises(TlsError) as raised:
            tls_context(cert_path, key_path)
        assert str(raised.value).startswith(said)


def test_old_protocols_are_refused(files):
    assert tls_context(*files[:2]).minimum_version == ssl.TLSVersion.TLSv1_2


def test_settings_that_are_not_whole(files):
    with pytest.raises(ValueError, match="a certificate without its key"):
        Settings(tls_cert=files[0])
    for proxies in (["*"], ["proxy.example"], ["0.0.0.0/0"], ["::/0"], ["10.0.0.0/99"]):
        with pytest.raises(ValueError, match="expected addresses or networks of proxies"):
            Settings(forwarded_allow_ips=proxies)
    assert Settings(forwarded_allow_ips="127.0.0.1, 10.0.0.0/8, fd00::/8").forwarded_allow_ips[1] == "10.0.0.0/8"


@pytest.mark.whole
def test_what_is_wrong_is_said_before_anything_starts(files, tmp_path):
    wrong = tapline("serve", "--tls-cert", files[0], "--tls-key", files[0])
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
    assert "expected a private key in PEM" in wrong.stderr
    keys = tapline("serve", "--keys-file", tmp_path / "none")
    assert (keys.returncode, keys.stderr.count("\n")) == (2, 1)
    assert "make it by `tapline keys add`" in keys.stderr


@pytest.mark.whole
def test_a_service_with_tls(checkpoint_dir, files, tmp_path):
    cert, key, context = files
    flags = ("--traces", "none", "--tls-cert", cert, "--tls-key", key, "--client-timeout-seconds", 2)
    with Server(tmp_path, checkpoint_dir, *flags, tls=context) as server:
        assert "url=https://127.0.0.1:" in server.log
        status, answer = server.upload(udp_capture(3000, payload_bytes=1000))  # larger than any buffer on the way
        assert status == 200
        assert answer.startswith(b"{")
        with pytest.raises(ssl.SSLError):  # who does not know the CA goes away
            ssl.create_default_context().wrap_socket(server.connect(), server_hostname="127.0.0.1")
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        with old.wrap_socket(server.connect()) as client:
            assert client.version() == "TLSv1.2"
        with server.connect() as silent:  # who begins no handshake is cut off, too
            assert silent.recv(1) == b""
        clear = server.connect(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        with clear, contextlib.suppress(ConnectionError):
            assert not clear.recv(100).startswith(b"HTTP")
        assert server.stop() == 0
        assert "Traceback" not in server.log


@pytest.mark.whole
def test_a_renewed_certificate_is_shown_without_a_restart(checkpoint_dir, files, tmp_path):
    cert, key, context = files
    flags = ("--traces", "none", "--dashboard", "off", "--tls-cert", cert, "--tls-key", key)
    with Server(tmp_path, checkpoint_dir, *flags, tls=context) as server:
        (tmp_path / "new").mkdir()
        new_cert, new_key, new_context = certificate(tmp_path / "new", "127.0.0.1")
        new_cert.replace(cert)  # one after the other, as they come
        server.wait(lambda: "the certificate of before is shown" in server.log)
        assert server.answers("/healthz")
        new_key.replace(key)
        server.wait(lambda: "a new certificate is shown" in server.log)
        assert not server.answers("/healthz")  # the client knows the CA of before alone
        server._tls = new_context
        assert server.answers("/healthz")
