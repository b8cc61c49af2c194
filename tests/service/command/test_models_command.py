"""`tapline models` against a real service on loopback: lists, swaps, unloads; every failure is one sentence."""

import contextlib
import socket
import threading
import time

import pytest
import uvicorn

from tapline.service.api.app import create_app
from tapline.service.runtime import Service
from tapline.service.settings import Settings
from tests.conftest import make_checkpoint
from tests.service.command.cli_runner import tapline

pytestmark = pytest.mark.whole


@pytest.fixture
def url(tmp_path):
    for name, version in (("random", "1"), ("random", "2"), ("other", "1")):
        make_checkpoint(tmp_path / name / version, name=name, version=version)
    app = create_app(Service(Settings(repository=tmp_path, model="random", api_key="s3cret")))
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.02)
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join(20)
    with contextlib.suppress(OSError):
        listener.close()


def test_models_are_listed_loaded_and_unloaded(url):
    def models(*arguments):
        return tapline("models", *arguments, "--url", url, "--api-key", "s3cret")

    listed = models("list")
    assert "2 (default)" in listed.stdout
    assert "other" in listed.stdout
    assert "1 packet" in listed.stdout
    assert "runs on" in listed.stdout
    assert [line.split()[-1] for line in listed.stdout.splitlines() if "(default)" in line] == ["CPU"]
    assert "1 (default)" in models("load", "random", "--version", "1").stdout
    assert models("load", "other").returncode == 0
    traces = models("load", "iot-devices").stdout
    assert ("tracegram" in traces, "1 flow" in traces, "closed with" in traces) == (True, True, False)
    assert models("unload", "other").returncode == 0
    refused = models("unload", "random")
    assert (refused.returncode, "default model" in refused.stderr) == (1, True)
    assert "no model nothing here" in models("load", "nothing").stderr
    assert "API key" in tapline("models", "list", "--url", url).stderr


def test_no_service_and_no_url_are_said():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    gone = tapline("models", "list", "--url", f"http://127.0.0.1:{port}")
    assert (gone.returncode, "no answer" in gone.stderr) == (1, True)
    assert "expected http" in tapline("models", "list", "--url", "file:///etc/hostname").stderr
