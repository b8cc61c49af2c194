"""Zeek on a machine: its version, tapline's package in it, the right to capture; the real one, and fakes on PATH."""

import os
import shutil
import struct

import pytest

from tapline.service.doctor import finding, zeek_checks
from tapline.service.doctor.finding import CommandError, output_of
from tapline.service.doctor.zeek_checks import CaptureRights, ZeekPackage, ZeekVersion, rights

RAW = dict.fromkeys(("CapEff", "CapAmb", "CapBnd"), f"{1 << zeek_checks.CAP_NET_RAW:016x}")
NONE = "0" * 16


@pytest.fixture
def fake_zeek(tmp_path, monkeypatch):
    """Puts a script that calls itself `zeek` first on PATH."""

    def make(script):
        path = tmp_path / "bin" / "zeek"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setenv("PATH", f"{path.parent}:/usr/bin:/bin")
        return path

    return make


def only(check):
    [found] = check.run()
    return found


@pytest.mark.parametrize(
    ("said", "outcome", "advice"),
    [
        ("zeek version 8.0.10", "ok", ""),
        ("zeek version 8.1.0-dev.123-debug", "ok", ""),
        ("zeek version 9.0.0-rc1", "ok", ""),
        ("zeek version 7.0.5", "problem", "needs Zeek 8.0 or later"),
        ("zeek version 10.0.0", "warning", "has not been tried"),
        ("/usr/bin/zeek version 6.2.1", "problem", "needs Zeek 8.0"),
        ("Segmentation fault", "problem", "Install Zeek 8.0"),
        ("", "problem", "Install Zeek 8.0"),
    ],
)
def test_versions(fake_zeek, said, outcome, advice):
    fake_zeek(f"echo '{said}'")
    found = only(ZeekVersion(True))
    assert found.outcome == outcome
    assert advice in found.advice
    assert "\n" not in found.found


def test_a_zeek_that_cannot_be_run(fake_zeek, monkeypatch):
    path = fake_zeek("")
    path.write_bytes(b"\x7fELF broken")
    assert "it cannot be run: Exec format error" in only(ZeekVersion(True)).found
    fake_zeek("exec sleep 100")
    monkeypatch.setattr(zeek_checks, "VERSION_SECONDS", 0.2)
    monkeypatch.setattr(zeek_checks, "PARSE_SECONDS", 0.2)
    assert "did not end within 0.2 seconds" in only(ZeekVersion(True)).found
    assert "did not end within 0.2 seconds" in only(ZeekPackage((), True)).found


def test_no_zeek_is_a_problem_only_where_one_is_needed(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert only(ZeekVersion(False)).outcome == "not applicable"
    found = only(ZeekVersion(True))
    assert (found.outcome, found.found) == ("problem", "no zeek on PATH")
    assert "docs.zeek.org" in found.advice
    assert only(ZeekPackage((), True)).outcome == only(CaptureRights(True)).outcome == "not applicable"


def test_scripts_that_zeek_refuses(fake_zeek):
    fake_zeek("echo 'error in x.zeek, line 1: syntax error'; exit 1")
    found = only(ZeekPackage(["own.zeek"], True))
    assert (found.outcome, "syntax error" in found.found) == ("problem", True)
    assert "--zeek-script" in found.advice
    fake_zeek('echo "$@" >&2; exit 3')
    assert "--parse-only" in only(ZeekPackage((), True)).found


@pytest.mark.zeek
def test_the_real_zeek_reads_the_package():
    if shutil.which("zeek") is None:
        pytest.skip("there is no zeek on PATH")
    assert only(ZeekVersion(True)).outcome == "ok"
    assert only(ZeekPackage(["Tapline::early_packets=4"], True)).outcome == "ok"
    refused = only(ZeekPackage(["Tapline::nonsense=4"], True))
    assert (refused.outcome, "Tapline::nonsense" in refused.found) == ("problem", True)


@pytest.mark.parametrize(
    ("root", "status", "of_file", "outcome", "said"),
    [
        (True, RAW, 0, "ok", "root"),
        (True, dict.fromkeys(RAW, NONE), 0, "problem", "taken from this process"),
        (False, RAW | {"CapEff": NONE}, 0, "ok", "hands CAP_NET_RAW on"),
        (False, RAW | {"CapAmb": NONE}, 0, "problem", "neither root nor CAP_NET_RAW"),
        (False, RAW | {"CapAmb": NONE}, 1 << 13, "ok", "has CAP_NET_RAW"),
        (False, RAW | {"CapAmb": NONE}, 1 << 12, "problem", "neither root"),
        (False, RAW | {"CapAmb": NONE, "NoNewPrivs": "1"}, 1 << 13, "problem", "no_new_privs takes away"),
        (False, {"CapBnd": NONE}, 1 << 13, "problem", "taken from this process"),
    ],
)
def test_rights_to_capture(monkeypatch, tmp_path, root, status, of_file, outcome, said):
    monkeypatch.setattr(os, "geteuid", lambda: 0 if root else 1000)
    found = rights(status, of_file, tmp_path / "zeek")
    assert (found.outcome, said in found.found) == (outcome, True)
    assert bool(found.advice) == (outcome != "ok")


def test_the_capabilities_of_a_real_file(tmp_path):
    path = tmp_path / "zeek"
    path.touch()
    assert zeek_checks._of_file(path) == 0
    try:  # VFS_CAP_REVISION_2, effective, of linux/capability.h
        os.setxattr(path, "security.capability", struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0))
    except OSError as error:
        pytest.skip(f"capabilities cannot be given to a file here: {error}")
    assert zeek_checks._of_file(path) == 1 << 13
    os.setxattr(path, "security.capability", struct.pack("<IIIII", 0x02000000, 1 << 13, 0, 0, 0))
    assert zeek_checks._of_file(path) == 0  # not effective: Zeek does not raise them itself


def test_commands_are_bounded():
    assert output_of(["sh", "-c", "echo a; echo b >&2; exit 3"], 10) == (3, "a\nb")
    with pytest.raises(CommandError, match="cannot be run"):
        output_of(["/nonexistent/zeek"], 10)
    assert finding.output_of(["cat"], 10) == (0, "")  # nothing waits for a terminal
