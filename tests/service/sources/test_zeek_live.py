"""A live Zeek on the loopback interface: its logs are kept and rotated, what is given to it arrives, and `watch` starts
it again."""

import contextlib
import json
import os
import pty
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.service.api.served import Server
from tests.service.command.cli_runner import CODE
from tests.zeek.clusters import zeek_version

pytestmark = [
    pytest.mark.zeek,
    pytest.mark.whole,
    pytest.mark.skipif(shutil.which("zeek") is None, reason="no zeek on PATH"),
    pytest.mark.skipif(os.geteuid() != 0, reason="capturing takes root"),
]

SECONDS = 120
SHOWN = b"Zeek %d" % zeek_version()[0]
SCRIPT = 'module Own; export { option word = "none"; } event zeek_init() { Reporter::info(Own::word); }\n'


def children(number):
    found = []
    for task in Path(f"/proc/{number}/task").iterdir():
        with contextlib.suppress(OSError):
            found += [int(child) for child in (task / "children").read_text().split()]
    return found


def zeek_of(process):
    """The Zeek below its guard below a process, None while there is none."""
    for guard in children(process.pid):
        for child in children(guard):
            with contextlib.suppress(OSError):
                if (
                    Path(f"/proc/{child}/cmdline").read_bytes().startswith(b"/")
                    and b"listen_port" in Path(f"/proc/{child}/cmdline").read_bytes()
                ):
                    return child
    return None


def talk():
    """A flow over the loopback interface."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"hello", ("127.0.0.1", 9))


def wait(condition, said=lambda: ""):
    deadline = time.monotonic() + SECONDS
    while not (found := condition()):
        assert time.monotonic() < deadline, said()
        talk()
        time.sleep(0.1)
    return found


def test_logs_are_kept_and_rotated_and_options_arrive(tmp_path, checkpoint_dir):
    script = tmp_path / "own.zeek"
    script.write_text(SCRIPT)
    flags = ["--traces", "none", "--interface", "lo=tap", "--zeek-script", script, "--zeek-option", "Own::word=given"]
    flags += ["--zeek-option", "Log::default_rotation_interval=1 sec", "--sensor-grace-seconds", "0"]
    runs = tmp_path / "tapline" / "zeek"
    with Server(tmp_path, checkpoint_dir, *flags) as server:
        server.wait(lambda: server.answers("/readyz"))
        (first,) = runs.iterdir()
        wait(lambda: len(list(first.glob("tapline.2*.log"))) > 1 or len(list(first.glob("conn.2*.log"))) > 1)
        assert any("given" in path.read_text() for path in first.glob("reporter*.log"))
        urls = {bus["url"] for bus in json.loads(server.ask("GET", "/v1/live")[1])["buses"]}
        assert urls == {"interface:lo"}
        assert b'tapline_bus_connected{url="interface:lo"} 1.0' in server.ask("GET", "/metrics")[1]
        os.kill(zeek_of(server.process), signal.SIGKILL)
        server.wait(lambda: not server.answers("/readyz"))
        server.wait(lambda: server.answers("/readyz"))
        kept = {path.name: path.read_bytes() for path in first.iterdir()}
        _, second = sorted(runs.iterdir(), key=lambda path: path.stat().st_ctime_ns)
        wait(lambda: list(second.glob("*.log")))
        assert server.stop() == 0
        assert {path.name: path.read_bytes() for path in first.iterdir()} == kept
        assert list(second.glob("*.2*.log"))


def test_a_script_that_is_wrong_is_said_at_once(tmp_path, checkpoint_dir):
    script = tmp_path / "wrong.zeek"
    script.write_text("this is no script\n")
    command = [sys.executable, "-c", CODE, "watch", "--interface", "lo", "--traces", "none", "--checkpoint"]
    command += [str(checkpoint_dir), "--zeek-dir", str(tmp_path / "runs"), "--zeek-script", str(script)]
    watch = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SECONDS)
    assert watch.returncode == 1
    assert "Zeek on lo ended with status 1" in watch.stderr
    assert "wrong.zeek, line 1" in watch.stderr


def test_watch_starts_zeek_again(tmp_path, checkpoint_dir):
    command = [sys.executable, "-c", CODE, "watch", "--interface", "lo=tap", "--traces", "none", "--checkpoint"]
    command += [str(checkpoint_dir), "--zeek-dir", str(tmp_path / "runs")]
    ours, its = pty.openpty()
    shown = bytearray()

    def read():
        while select.select([ours], [], [], 0)[0]:
            shown.extend(os.read(ours, 1 << 16))
        return shown

    with subprocess.Popen(command, stdin=its, stdout=its, stderr=its) as watch:
        try:
            wait(lambda: SHOWN in read(), lambda: shown.decode(errors="replace"))
            first = zeek_of(watch)
            os.kill(first, signal.SIGKILL)
            wait(
                lambda: zeek_of(watch) not in (None, first) and read() is shown, lambda: shown.decode(errors="replace")
            )
            wait(lambda: len(list((tmp_path / "runs").iterdir())) == 2 and read() is shown)
            before = len(shown)
            wait(lambda: SHOWN in read()[before:], lambda: shown.decode(errors="replace"))
            assert b"was ended by signal 9" in shown
            watch.send_signal(signal.SIGTERM)
            wait(lambda: (read(), watch.poll())[1] is not None)
            assert watch.returncode == 0
        finally:
            watch.kill()
            os.close(ours)
            os.close(its)
