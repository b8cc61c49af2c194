"""The documented nginx before the service: uploads and verdicts pass as they come, and who asks is known and not
forged."""

import contextlib
import http.client
import json
import os
import shutil
import socket
import subprocess

import pytest
import websockets.sync.client

from tapline.service.access.key_file import add_key
from tapline.service.access.keys import make_key
from tests.paths import DATA, ROOT
from tests.service.access.certificates import certificate
from tests.service.api.served import WAIT_SECONDS, Server, head, udp_capture

NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
NAME = "tapline.example"
CLIENT = "127.0.0.2"
CAPTURE = DATA / "captures" / "android.pcap"

pytestmark = [
    pytest.mark.whole,
    pytest.mark.skipif(NGINX is None, reason="no nginx here: install Debian's package `nginx`"),
]

AROUND = """
{user}
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    {block}
}}
"""


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


class Proxied:
    """A service, nginx before it, and clients of that."""

    def __init__(self, folder, service, key, context):
        self.folder, self.service, self.key, self.context = folder, service, key, context
        self.port = free_port()

    def connect(self):
        """A TLS connection from an address that is not the proxy's."""
        raw = socket.create_connection(("127.0.0.1", self.port), WAIT_SECONDS, (CLIENT, 0))
        return self.context.wrap_socket(raw, server_hostname=NAME)

    def ask(self, method, path, body=None, headers=None):
        connection = http.client.HTTPSConnection(NAME, self.port)
        connection.sock = self.connect()
        with contextlib.closing(connection):
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()

    @property
    def account(self):
        return [json.loads(line) for line in (self.folder / "audit").read_text().splitlines()]


@contextlib.contextmanager
def running_nginx(folder, port, service_port, cert, key):
    block = (ROOT / "deploy/nginx.conf").read_text()
    for before, after in (
        ("listen 443 ", f"listen 127.0.0.1:{port} "), ("listen 80;", f"listen 127.0.0.1:{free_port()};"),
        ("/etc/ssl/tapline/cert.pem", str(cert)), ("/etc/ssl/tapline/key.pem", str(key)),
        ("server 127.0.0.1:8000;", f"server 127.0.0.1:{service_port};"),
    ):  # fmt: skip
        assert before in block
        block = block.replace(before, after)
    config = folder / "nginx.conf"
    config.write_text(AROUND.format(user="user root;" if os.geteuid() == 0 else "", folder=folder, block=block))
    subprocess.run([NGINX, "-t", "-q", "-c", config], check=True, capture_output=True)
    with subprocess.Popen([NGINX, "-c", config], stderr=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def proxied(checkpoint_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("nginx")
    cert, tls_key, context = certificate(folder, NAME)
    key, text = make_key("soc", "admin")
    add_key(folder / "keys", key)
    flags = ["--traces", "none", "--keys-file", folder / "keys", "--audit-log", folder / "audit"]
    flags += ["--served-names", NAME, "--forwarded-allow-ips", "127.0.0.1", "--replay", CAPTURE]
    with Server(folder, checkpoint_dir, *flags) as server:
        found = Proxied(folder, server, text, context)
        with running_nginx(folder, found.port, server.port, cert, tls_key):
            server.wait(lambda: _answers(found))
            yield found


def _answers(proxied):
    with contextlib.suppress(OSError):
        return proxied.ask("GET", "/healthz")[0] == 200
    return False


def test_a_large_capture_passes_as_it_comes(proxied):
    capture = udp_capture(5000, payload_bytes=1200)
    assert len(capture) > 5 << 20
    status, _, body = proxied.ask("POST", "/v1/classify/pcap", capture, {"X-API-Key": proxied.key})
    assert status == 200
    assert json.loads(body)["summary"]["flows"] == 5000
    with proxied.connect() as client:  # who has no key is told before the capture is sent
        client.sendall(head(f"Content-Length: {1 << 29}", host=f"{NAME}:{proxied.port}") + bytes(1000))
        assert client.recv(100).startswith(b"HTTP/1.1 401")


def test_verdicts_are_not_held_back(proxied):
    with proxied.connect() as client:
        key = f"X-API-Key: {proxied.key}"
        client.sendall(head(key, path="/v1/stream", method="GET", host=f"{NAME}:{proxied.port}"))
        said = b""
        while b": verdicts from now on" not in said:
            piece = client.recv(4096)
            assert piece, said
            said += piece
    assert b"text/event-stream" in said


def sign_in(proxied):
    """Status, and the session's cookie."""
    headers = {"Content-Type": "application/x-www-form-urlencoded", "Origin": f"https://{NAME}:{proxied.port}"}
    status, answer, _ = proxied.ask("POST", "/sign-in", f"key={proxied.key}&next=/models", headers)
    return status, answer["Set-Cookie"], answer


def test_a_browser_has_tls_all_the_way_it_knows(proxied):
    status, cookie, headers = sign_in(proxied)
    assert status == 303
    assert cookie.startswith("__Host-tapline_session=")
    assert "Secure" in cookie
    assert headers["Strict-Transport-Security"] == "max-age=31536000"
    page, _, body = proxied.ask("GET", "/models", headers={"Cookie": cookie.partition(";")[0]})
    assert (page, b"Sign out" in body) == (200, True)


@pytest.mark.parametrize("origin", [f"http://{NAME}:PORT", "https://evil.example", f"https://{NAME}:1", "null"])
def test_pages_from_elsewhere_get_no_connection(proxied, origin):
    origin = origin.replace("PORT", str(proxied.port))
    cookie = sign_in(proxied)[1].partition(";")[0]
    status, _, _ = proxied.ask("POST", "/v1/models/none/load", headers={"Cookie": cookie, "Origin": origin})
    assert status == 403
    with pytest.raises(websockets.exceptions.InvalidStatus, match="403"):
        connect(proxied, cookie, origin)


def connect(proxied, cookie, origin):
    return websockets.sync.client.connect(
        f"wss://{NAME}:{proxied.port}/_nicegui_ws/socket.io/?EIO=4&transport=websocket",
        sock=socket.create_connection(("127.0.0.1", proxied.port), WAIT_SECONDS), ssl=proxied.context, origin=origin,
        additional_headers={"Cookie": cookie},
    )  # fmt: skip


def test_the_dashboards_connection_passes(proxied):
    cookie = sign_in(proxied)[1].partition(";")[0]
    with connect(proxied, cookie, f"https://{NAME}:{proxied.port}") as page:
        assert page.recv(WAIT_SECONDS).startswith("0{")  # Engine.IO is open


def test_who_asks_is_known_and_cannot_be_forged(proxied):
    forged = {"X-Forwarded-For": "203.0.113.9", "Forwarded": "for=203.0.113.9", "X-Real-IP": "203.0.113.9"}
    proxied.ask("POST", "/v1/models/none/load", headers={**forged, "X-API-Key": proxied.key})
    assert proxied.account[-1]["client"] == CLIENT
    direct = http.client.HTTPConnection("127.0.0.1", proxied.service.port, source_address=("127.0.0.3", 0))
    with contextlib.closing(direct):  # from an address whose headers are not believed
        direct.request("POST", "/v1/models/none/unload", headers={**forged, "X-API-Key": proxied.key})
        direct.getresponse().read()
    assert (proxied.account[-1]["client"], proxied.account[-1]["key"]) == ("127.0.0.3", "soc")


def test_without_the_setting_no_address_is_believed(checkpoint_dir, tmp_path):
    key, text = make_key("soc", "admin")
    add_key(tmp_path / "keys", key)
    flags = ["--traces", "none", "--dashboard", "off"]
    flags += ["--keys-file", tmp_path / "keys", "--audit-log", tmp_path / "audit"]
    with Server(tmp_path, checkpoint_dir, *flags, env={"FORWARDED_ALLOW_IPS": "*"}) as server:
        server.ask("POST", "/v1/models/none/load", None, {"X-Forwarded-For": "203.0.113.9", "X-API-Key": text})
        assert json.loads((tmp_path / "audit").read_text())["client"] == "127.0.0.1"
