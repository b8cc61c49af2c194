"""A password in a sensor's address is shown nowhere: process list, log, metrics, API, messages."""

import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from tests.paths import ROOT
from tests.service.command.cli_runner import CODE, tapline

pytestmark = pytest.mark.whole

SECRET = "s3cret"
URL = f"ws://user:{SECRET}@127.0.0.1:1"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_running_service_shows_no_password(checkpoint_dir):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-c", CODE, "serve", "--port", str(port), "--checkpoint", str(checkpoint_dir)]
    command += ["--traces", "none", "--zeek", URL]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        try:
            said = ""
            while "sensor not connected" not in said:
                line = process.stderr.readline()
                assert line, said
                said += line
            shown = Path(f"/proc/{process.pid}/cmdline").read_text()
            for route in ("/metrics", "/v1/live"):
                with urllib.request.urlopen(f"http://127.0.0.1:{port}{route}", timeout=30) as answer:
                    shown += answer.read().decode()
        finally:
            process.terminate()
            said += process.stderr.read()
        assert process.wait(30) == 0
    assert "ws://127.0.0.1:1" in shown
    (settings,) = (line for line in said.splitlines() if "event=settings" in line)
    assert "ws://127.0.0.1:1" in settings
    assert SECRET not in shown + said


@pytest.mark.parametrize("command", ["serve", "watch"])
def test_messages_show_no_password(command):
    result = tapline(command, "--zeek", f"tcp://user:{SECRET}@127.0.0.1:1")
    assert result.returncode == 2
    assert "tcp://127.0.0.1:1: expected ws://host:port" in result.stderr
    assert SECRET not in result.stderr
