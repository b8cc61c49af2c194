"""The machine: room on disk, the port, the clock, memory, and Python."""

import ctypes
import http.server
import os
import shutil
import socket
import threading
from collections import namedtuple

import pytest

from tapline.service.doctor import machine_checks
from tapline.service.doctor.machine_checks import Clock, Disk, Port, Python, Resources
from tapline.service.settings import Settings

Usage = namedtuple("Usage", "total used free")
GIB = 1 << 30


def only(check):
    [found] = check.run()
    return found


@pytest.fixture
def one_disk(tmp_path, monkeypatch):
    """Everything on one file system, with as much free room as is said."""
    monkeypatch.setattr(machine_checks.tempfile, "gettempdir", lambda: str(tmp_path))

    def free(room_bytes):
        monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, room_bytes))
        return tmp_path

    return free


@pytest.mark.parametrize(("free_bytes", "outcome"), [(200 * GIB, "ok"), (50 * GIB, "warning"), (GIB // 2, "problem")])
def test_what_may_be_written_has_room(one_disk, free_bytes, outcome):
    folder = one_disk(free_bytes)
    found = only(Disk(Settings(data_dir=folder / "not" / "yet", history="sqlite")))
    assert found.outcome == outcome
    assert "jobs 64 GiB" in found.found
    assert "history 10,000 MiB" in found.found
    assert bool(found.advice) == (outcome != "ok")


def test_what_stands_there_already_counts_as_room(one_disk):
    folder = one_disk(2 * GIB)
    settings = Settings(data_dir=folder / "data", history="sqlite", history_mb=16, jobs_mb=2050, max_upload_mb=1)
    assert only(Disk(settings)).outcome == "warning"
    (folder / "data" / "jobs" / "a").mkdir(parents=True)
    with (folder / "data" / "jobs" / "a" / "capture").open("wb") as file:
        file.truncate(64 << 20)
    assert only(Disk(settings)).outcome == "ok"


def test_logs_without_bound_are_told(one_disk):
    folder = one_disk(900 * GIB)
    found = only(Disk(Settings(data_dir=folder, interface=["lo"], zeek_logs_mb=0)))
    assert (found.outcome, "Zeek's logs without bound" in found.found) == ("warning", True)


def test_a_directory_that_may_not_be_written(one_disk, monkeypatch):
    folder = one_disk(900 * GIB)
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) != "/sys" and real(path, mode))
    found = list(Disk(Settings(data_dir=folder, state_dir="/sys/not/there")).run())
    assert [entry.outcome for entry in found] == ["problem", "ok"]
    assert found[0].found == "this user may not write /sys"


def test_ports():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        taken.settimeout(0.1)
        found = only(Port("127.0.0.1", taken.getsockname()[1]))
    assert found.outcome == "problem"
    assert "address already in use" in found.found
    assert only(Port("127.0.0.1", 0)).outcome == "ok"
    assert only(Port("192.0.2.1", 8000)).outcome == "problem"
    with socket.create_server(("127.0.0.1", 0)) as freed:
        port = freed.getsockname()[1]
    assert only(Port("127.0.0.1", port)).outcome == "ok"


@pytest.mark.parametrize(("body", "outcome"), [(b'{"status": "ok"}', "ok"), (b"<html>", "problem"), (b"[]", "problem")])
def test_a_tapline_that_serves_already_is_no_problem(body, outcome):
    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        assert only(Port("127.0.0.1", server.server_port)).outcome == outcome
        thread.join()


@pytest.mark.parametrize(
    ("state", "status", "outcome"),
    [(0, 0x2001, "ok"), (5, 0x2001, "warning"), (0, 0x40, "warning"), (-1, 0, "not applicable")],
)
def test_the_clock(monkeypatch, state, status, outcome):
    class Library:
        def adjtimex(self, asked):
            asked._obj.status = status
            return state

    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: Library())
    found = only(Clock())
    assert found.outcome == outcome
    assert ("chrony" in found.advice) == (outcome == "warning")


def test_the_real_clock_is_asked():
    assert only(Clock()).outcome in ("ok", "warning", "not applicable")
    assert ctypes.sizeof(machine_checks._Timex) >= 208  # as large as what the kernel writes


@pytest.mark.parametrize(
    ("available_mb", "threads", "outcome"),
    [(500, 0, "problem"), (4000, 0, "warning"), (100_000, 1000, "warning"), (100_000, 0, "ok")],
)
def test_memory_and_cores(monkeypatch, available_mb, threads, outcome):
    monkeypatch.setattr(machine_checks, "_available_mb", lambda: available_mb)
    found = only(Resources(Settings(threads=threads)))
    assert found.outcome == outcome
    assert bool(found.advice) == (outcome != "ok")


def test_memory_is_read():
    assert machine_checks._available_mb() > 0


def test_python_and_its_libraries():
    found = only(Python())
    assert (found.outcome, "numpy" in found.found, "onnxruntime" in found.found) == ("ok", True, True)
