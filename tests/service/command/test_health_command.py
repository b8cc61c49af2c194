"""Where the health check asks, by flags, environment and file, and what it says of the answers."""

import contextlib
import http.server
import ssl
import subprocess
import sys
import threading

import pytest
import trustme

from tapline.service.command.health import HealthError, ask, health_url
from tests.service.command.cli_runner import tapline


@pytest.mark.parametrize(
    ("arguments", "url"),
    [
        ([], "http://127.0.0.1:8000/healthz"),
        (["python", "tapline", "serve", "--port", "9000"], "http://127.0.0.1:9000/healthz"),
        (["serve", "--port=9000", "--host=0.0.0.0", "--api-key=K"], "http://127.0.0.1:9000/healthz"),
        (["serve", "--host", "::", "--allow-remote"], "http://[::1]:8000/healthz"),
        (["serve", "--host", "10.0.0.7"], "http://10.0.0.7:8000/healthz"),
        (["docker-init", "--", "tapline", "serve", "--state-dir", "/s", "--port", "9"], "http://127.0.0.1:9/healthz"),
    ],
)
def test_it_asks_where_the_flags_let_the_service_listen(arguments, url):
    assert health_url(arguments) == url


def test_environment_and_file_count_where_no_flag_does(monkeypatch, tmp_path):
    file = tmp_path / "tapline.toml"
    file.write_text("port = 9001\n")
    assert health_url(["serve", "--config", str(file)]) == "http://127.0.0.1:9001/healthz"
    monkeypatch.setenv("TAPLINE_PORT", "9002")
    assert health_url(["serve", f"--config={file}"]) == "http://127.0.0.1:9002/healthz"
    assert health_url(["serve", "--port", "9003"]) == "http://127.0.0.1:9003/healthz"


@contextlib.contextmanager
def answering(status, *, tls=False):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status if self.path == "/healthz" else 404)
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            trustme.CA().issue_cert("tapline.example.org").configure_cert(context)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


def test_an_answer_of_200_is_health():
    with answering(200) as port:
        ask(f"http://127.0.0.1:{port}/healthz")
        with subprocess.Popen([sys.executable, "-c", "input()", "--port", str(port)], stdin=subprocess.PIPE) as service:
            done = tapline("health", "--pid", service.pid)
            service.communicate(b"\n", timeout=60)
    assert (done.returncode, done.stdout) == (0, f"http://127.0.0.1:{port}/healthz answers\n")


def test_a_file_of_settings_says_where_to_ask(tmp_path):
    file = tmp_path / "tapline.toml"
    with answering(200) as port:
        file.write_text(f"port = {port}\n")
        done = tapline("health", "--config", file)
    assert (done.returncode, done.stdout) == (0, f"http://127.0.0.1:{port}/healthz answers\n")
    file.write_text("prot = 1\n")
    done = tapline("health", "--config", file)
    assert (done.returncode, done.stderr) == (2, f"{file}:1: prot: no such setting: did you mean port?\n")


def test_a_certificate_for_another_name_is_taken():
    with answering(200, tls=True) as port:
        ask(f"https://127.0.0.1:{port}/healthz")


def test_anything_else_is_not():
    with answering(503) as port, pytest.raises(HealthError, match="answered 503"):
        ask(f"http://127.0.0.1:{port}/healthz")
    with pytest.raises(HealthError, match="does not answer: Connection refused"):
        ask(f"http://127.0.0.1:{port}/healthz")


def test_a_proxy_of_the_environment_is_not_asked(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with answering(200) as port:
        ask(f"http://127.0.0.1:{port}/healthz")


def test_what_the_image_runs_loads_neither_models_nor_the_web_framework():
    loaded = "{'onnxruntime', 'fastapi', 'torch'} & {*sys.modules}"
    code = f"import sys, tapline.service.command.health; print(*{loaded})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == ""


def test_a_process_that_is_none_is_said():
    done = tapline("health", "--pid", "999999999")
    assert done.returncode == 1
    assert done.stderr == "process 999999999: its command line cannot be read: No such file or directory\n"
