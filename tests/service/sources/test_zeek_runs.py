"""Directories of runs: new at each start, never removed; within a run the oldest rotated logs are, when they are too
many."""

import os

import pytest

from tapline.service.sources import zeek_runs
from tapline.service.sources.zeek_options import ZeekOptionError, zeek_arguments
from tapline.service.sources.zeek_runs import trim_run, zeek_run


@pytest.mark.parametrize(
    ("sensor", "begins"),
    [("host/eth0", "host_eth0-2"), ("dmz", "dmz-2"), ("../..", "_..-2"), (":/", "_-2"), ("..", "zeek-2")],
)
def test_a_run_is_called_by_sensor_and_time(tmp_path, sensor, begins):
    with zeek_run(tmp_path / "zeek", sensor) as folder:
        assert folder.parent == tmp_path / "zeek"
        assert folder.name.startswith(begins)
        assert folder.name.endswith("Z")
    assert folder.is_dir()


def test_runs_that_begin_in_the_same_second_are_different(tmp_path, monkeypatch):
    class Stopped(zeek_runs.datetime):
        @classmethod
        def now(cls, zone=None):
            return cls(2025, 6, 1, 8, tzinfo=zone)

    monkeypatch.setattr(zeek_runs, "datetime", Stopped)
    with zeek_run(tmp_path, "a") as one, zeek_run(tmp_path, "a") as other, zeek_run(tmp_path, "a") as third:
        assert [one.name, other.name, third.name] == [f"a-20250601T080000Z{more}" for more in ("", "-1", "-2")]


def test_only_rotated_logs_are_removed_and_the_oldest_first(tmp_path):
    names = [
        "conn.2025-06-01-08-00-00.log", "dns.2025-06-01-09-00-00.log.gz", "conn.2025-06-01-10-00-00.log",
        "conn.log", "notes.txt", ".tapline-lock",
    ]  # fmt: skip
    for age, name in enumerate(names):
        (tmp_path / name).write_bytes(bytes(100))
        os.utime(tmp_path / name, (age, age))
    assert trim_run(tmp_path, 600) == (0, 0)
    assert trim_run(tmp_path, 450) == (2, 200)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names[2:])
    assert trim_run(tmp_path, 1) == (1, 100)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names[3:])


def test_scripts_and_options_are_passed_in_order(tmp_path):
    script = tmp_path / "own.zeek"
    script.write_text("")
    assert zeek_arguments(
        [str(script), "protocols/conn/mac-logging", "local"],
        ["Site::local_nets={10.0.0.0/8, 2001:db8::/32}", "Log::default_rotation_interval=10 min", "ignore_checksums=T"],
    ) == [
        str(script), "protocols/conn/mac-logging", "local", "Site::local_nets={10.0.0.0/8, 2001:db8::/32}",
        "Log::default_rotation_interval=10 min", "ignore_checksums=T",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "script", ["", "-e", "--exec=x", "a=b", "a b", "a;b", "a\nb", "x" * 2000, "a\0b", "$(id)", "'x'"]
)
def test_what_is_no_script_is_refused(script):
    with pytest.raises(ZeekOptionError, match="--zeek-script"):
        zeek_arguments([script], [])


@pytest.mark.parametrize(
    "option",
    [
        "", "A", "=1", "A=", "1A=1", "A::=1", "-e=1", 'A=1; system("id")', "A=1;", 'A="x"', "A=f()", "A=1\n", "A=\\x",
        "A=1\0", "A=`id`", "A=$x", "A=é", "A=" + "1" * 2000, "Tapline::sensor=x", "Tapline::listen_port=1/tcp", "A+=1",
        "A=1 & F", "A=1#", "A=1|2", "A=<x>",
    ],
)  # fmt: skip
def test_what_would_be_more_than_a_value_is_refused(option):
    with pytest.raises(ZeekOptionError, match="--zeek-option"):
        zeek_arguments([], [option])
