"""Zeeks of our own end with whoever started them, however that ends; what is left is swept; what ended is said."""

import asyncio
import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tapline.service.sources import zeek_guard, zeek_owners, zeek_process
from tapline.service.sources.zeek_folder import PREFIX, sweep
from tapline.service.sources.zeek_owners import LOCK, OWNER_VARIABLE
from tapline.service.sources.zeek_process import ZeekError, ZeekLogs, ending, zeeks_on
from tapline.service.sources.zeek_runs import zeek_run
from tests.paths import ROOT
from tests.service.command.cli_runner import CODE
from tests.service.sources.stand_in import Process, StandIn

WATCH = [sys.executable, "-W", "error", "-c", CODE, "watch", "--traces", "none", "--interface", "lo"]

pytestmark = [pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs Linux"), pytest.mark.whole]


@pytest.fixture
def stand_in(tmp_path):
    stand_in = StandIn(tmp_path)
    yield stand_in
    stand_in.close()


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """A folder of temporary files of the test's own, also for the processes that it starts."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@contextlib.contextmanager
def watching(stand_in, *more):
    """`tapline watch` on the loopback interface and the Zeek that it started."""
    process = subprocess.Popen(
        [*WATCH, "--zeek-dir", str(stand_in.folder / "runs"), *more],
        cwd=ROOT,
        env=stand_in.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        number, arguments = stand_in.started()
        zeek = Process(number)
        try:
            yield process, zeek, arguments
        finally:
            zeek.close()
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_asked_to_stop_watch_stops_zeek_and_leaves_nothing_but_its_run(stand_in, temporary, number):
    with watching(stand_in) as (process, zeek, _):
        assert len(runs(stand_in)) == 1
        process.send_signal(number)
        assert process.wait(180) == 0
        assert zeek.ends()
        assert list(temporary.iterdir()) == []
        assert len(runs(stand_in)) == 1


def runs(stand_in):
    return sorted((stand_in.folder / "runs").iterdir())


def test_each_start_of_zeek_has_a_directory_of_its_own_and_earlier_ones_stay(stand_in, temporary):
    with watching(stand_in) as (process, zeek, _):
        process.kill()
        assert zeek.ends()
    (first,) = runs(stand_in)
    assert first.name.partition("lo-")[2].endswith("Z")
    (first / "conn.log").write_text("precious")
    with watching(stand_in) as (process, zeek, _):
        assert len(runs(stand_in)) == 2
        assert (first / "conn.log").read_text() == "precious"
        process.terminate()
        assert process.wait(180) == 0
        assert zeek.ends()


def test_a_closed_terminal_ends_watch_and_zeek(stand_in, temporary):
    ours, its = os.openpty()
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), its)
    with subprocess.Popen(["setsid", "--ctty", *WATCH], cwd=ROOT, env=stand_in.environment, **streams) as watch:
        os.close(its)
        zeek = Process(stand_in.started()[0])
        os.close(ours)
        assert zeek.ends()
        watch.wait(180)
        zeek.close()
    assert list(temporary.iterdir()) == []


def test_watch_says_that_a_signal_ended_zeek(stand_in, temporary):
    with watching(stand_in) as (process, zeek, _):
        signal.pidfd_send_signal(zeek.descriptor, signal.SIGKILL)
        _, error = process.communicate(timeout=180)
    assert process.returncode == 1
    assert b"Zeek on lo was ended by signal 9 (Killed)" in error
    assert b"root" not in error


def test_what_zeek_is_started_with(stand_in, temporary):
    with watching(stand_in) as (_, _, arguments):
        assert arguments[:3] == ["-C", "-i", "lo"]
        assert "Log::default_rotation_interval=1hr" in arguments
        (name,) = (argument for argument in arguments if argument.startswith("Tapline::sensor="))
        assert name.endswith("/lo")


def guard(folder, *command, seconds=5.0):
    return subprocess.Popen(
        [sys.executable, "-I", "-S", zeek_guard.__file__, str(seconds), *command],
        cwd=folder,
        stdin=subprocess.PIPE,
    )


def test_the_guard_ends_as_its_command_does(tmp_path):
    for command, status in (("exit 0", 0), ("exit 3", 3), ("kill -9 $$", 137)):
        with guard(tmp_path, "sh", "-c", command) as process:
            assert process.wait(180) == status


def test_the_guard_kills_a_command_that_does_not_stop(stand_in, tmp_path):
    stubborn = tmp_path / "stubborn"
    stubborn.write_text(f"trap '' TERM; printf '%s\\n' $$ END >{tmp_path / 'started'}; while :; do sleep 1; done")
    with guard(tmp_path, "sh", str(stubborn), seconds=0.1) as process:
        zeek = Process(stand_in.started()[0])
        process.stdin.close()
        assert process.wait(180) == 137
        assert zeek.ends()
        zeek.close()


def test_zeek_ends_with_a_killed_guard(stand_in, tmp_path):
    with guard(tmp_path, str(stand_in.folder / "zeek")) as process:
        zeek = Process(stand_in.started()[0])
        process.kill()
        assert zeek.ends()
        zeek.close()


def left_behind(folder, stand_in):
    """A folder with a Zeek in it whose owner is gone."""
    folder.mkdir(exist_ok=True)
    (folder / LOCK).touch()
    environment = {**stand_in.environment, OWNER_VARIABLE: str(folder)}
    return subprocess.Popen([stand_in.folder / "zeek"], cwd=folder, env=environment)


def test_the_sweep_takes_what_dead_owners_left_and_nothing_else(stand_in, temporary, monkeypatch):
    monkeypatch.setattr(zeek_owners, "END_SECONDS", 20)
    dead, alive, foreign = (temporary / f"{PREFIX}{name}" for name in ("dead", "alive", "foreign"))
    with left_behind(dead, stand_in) as dead_zeek, left_behind(alive, stand_in) as live_zeek:
        for _ in range(2):
            stand_in.started()
        foreign.mkdir()
        with subprocess.Popen(["sleep", "600"], cwd=dead) as visitor, (alive / LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            sweep()
            assert dead_zeek.wait(180) == -signal.SIGTERM
            assert (dead.exists(), alive.exists(), foreign.exists()) == (False, True, True)
            assert (live_zeek.poll(), visitor.poll()) == (None, None)
            visitor.kill()
        live_zeek.kill()


def test_a_zeek_left_in_a_run_is_ended_by_who_starts_next_and_the_run_stays(stand_in, temporary):
    with zeek_run(temporary, "x") as left:
        pass  # its owner is gone
    with left_behind(left, stand_in) as zeek:
        stand_in.started()
        sweep()
        assert zeek.wait(180) == -signal.SIGTERM
    assert left.exists()


@pytest.mark.parametrize(
    ("status", "said", "expected"),
    [
        (-9, b"", "was ended by signal 9 (Killed)"),
        (137, b"warning: something\n", "was ended by signal 9 (Killed)"),
        (139, b"fatal error: before\n", "was ended by signal 11 (Segmentation fault)"),
        (1, b"", "ended with status 1, and said nothing"),
        (0, b"listening on lo\n\n", "ended with status 0: listening on lo"),
        (1, b"error: one\nfatal error: two\nlast words\n", "ended with status 1: fatal error: two"),
        (1, b"\x1b[31merror\x1b[0m \xff\x07\n", "ended with status 1: \ufffd[31merror\ufffd[0m \ufffd\ufffd"),
        (
            1,
            b"fatal error: problem with interface lo (pcap_error: socket: Operation not permitted (pcap_activate))\n",
            "ended with status 1: fatal error: problem with interface lo (pcap_error: socket: Operation not permitted "
            "(pcap_activate)) (capturing takes root, or CAP_NET_RAW)",
        ),
    ],
)  # fmt: skip
def test_what_ended_is_said(status, said, expected):
    assert ending(status, said) == expected


def test_what_zeek_says_is_kept_within_bounds():
    async def main():
        process = await asyncio.create_subprocess_exec(
            "sh", "-c", "head -c 3000000 /dev/zero >&2; echo the end >&2", stderr=asyncio.subprocess.PIPE
        )
        return await zeek_process._listen(process)

    status, said = asyncio.run(main())
    assert (status, len(said), said[-8:]) == (0, zeek_process.SAID_BYTES, b"the end\n")


@pytest.fixture
def interfaces(stand_in, monkeypatch):
    monkeypatch.setenv("PATH", stand_in.environment["PATH"])
    monkeypatch.setattr(zeek_process.socket, "if_nameindex", lambda: [(1, "lo"), (2, "eth0")])


def test_each_interface_is_a_sensor_of_its_own(interfaces, tmp_path):
    logs = ZeekLogs(tmp_path)
    one, other = zeeks_on(["lo", "eth0"], logs, ["more", "A=b"])
    assert one.sensor != other.sensor
    assert one.sensor.endswith("/lo")
    assert (one.name, other.name) == ("interface:lo", "interface:eth0")
    assert one.url != other.url
    (named,) = zeeks_on(["eth0=dmz"], logs)
    assert (named.sensor, named.interface) == ("dmz", "eth0")
    assert "Tapline::sensor=dmz" in named._command
    assert one._command[5:8] == ["Log::default_rotation_interval=1hr", "more", "A=b"]


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (["lo", "lo"], "the interface lo is named twice"),
        (["lo=a", "eth0=a"], "two sensors are named a"),
        (["eth1"], "no interface eth1; there are: lo, eth0"),
        (["lo="], "a sensor's name is"),
        (['lo=a" x'], "a sensor's name is"),
        (["lo=" + 65 * "a"], "a sensor's name is"),
    ],
)
def test_interfaces_that_cannot_be_told_apart_or_named(interfaces, given, reason):
    with pytest.raises(ZeekError, match=reason):
        zeeks_on(given, ZeekLogs(Path()))


def test_package_scripts_are_there():
    assert (Path(zeek_process.package_scripts()) / "__load__.zeek").exists()
