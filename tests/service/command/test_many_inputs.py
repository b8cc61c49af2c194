"""Directories and several inputs, order and conditions, and terminals of any encoding."""

import gzip
import json
import os
import re
import subprocess
import sys

import pytest

from tapline.service.sources.inputs import inputs_of
from tapline.service.sources.packets.capture_error import CaptureError
from tests.paths import DATA, ROOT
from tests.service.command.cli_runner import CODE, tapline

CAPTURE = DATA / "captures" / "android.pcap"
SMALL = DATA / "captures" / "ndpi" / "443-chrome.pcap"


@pytest.fixture
def folder(tmp_path):
    """Captures by what they hold, beside what is none."""
    (tmp_path / "sub" / "deep").mkdir(parents=True)
    (tmp_path / "b.log").write_bytes(SMALL.read_bytes())
    (tmp_path / "a.bin").write_bytes(gzip.compress(SMALL.read_bytes()))
    (tmp_path / "sub" / "deep" / "z").write_bytes((DATA / "captures" / "telegram_videocall.pcapng").read_bytes())
    (tmp_path / "sub" / "notes.txt").write_text("not a capture")
    (tmp_path / "empty").touch()
    (tmp_path / "flows.json").write_text('{"uid": "C1"}')
    (tmp_path / "sub" / "up").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "pipe.pcap")
    return tmp_path


def test_captures_of_a_directory_come_by_name_and_nothing_else(folder):
    names = [str(folder / name) for name in ("a.bin", "b.log", "sub/deep/z")]
    assert list(inputs_of(["-", str(folder), str(CAPTURE)])) == ["-", *names, str(CAPTURE)]


def test_a_directory_without_captures_is_told(tmp_path):
    with pytest.raises(CaptureError, match="no capture in this directory or below"):
        list(inputs_of([str(tmp_path)]))


@pytest.fixture
def damaged(tmp_path):
    """A directory with what is called a capture and is none, beside one that is, and the names of what is not."""
    (tmp_path / "good.pcap").write_bytes(SMALL.read_bytes())
    (tmp_path / "empty.pcap").touch()
    (tmp_path / "head.PCAPNG").write_bytes(b"\0" * 4 + SMALL.read_bytes()[4:])
    (tmp_path / "packed.cap.gz").write_bytes(b"\0" * 4 + gzip.compress(SMALL.read_bytes())[4:])
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "cut.dmp.zst").write_bytes(b"\x28")
    (tmp_path / "gone.pcap").symlink_to(tmp_path / "nothing")
    (tmp_path / "empty.log").touch()
    (tmp_path / "a.pcap.txt").write_text("not a capture")
    return ["empty.pcap", "gone.pcap", "head.PCAPNG", "packed.cap.gz", "below/cut.dmp.zst"]


def test_what_is_called_a_capture_is_not_left_out_of_a_directory(tmp_path, damaged):
    found = {os.path.relpath(name, tmp_path) for name in inputs_of([str(tmp_path)])}
    assert found == {"good.pcap", *damaged}


@pytest.mark.whole
def test_a_damaged_capture_of_a_directory_is_told_as_if_it_were_named(tmp_path, damaged):
    whole = classify(tmp_path, "-f", "json")
    assert whole.returncode == 1
    inputs = {entry["name"]: entry for entry in json.loads(whole.stdout)["summary"]["inputs"]}
    assert inputs[str(tmp_path / "good.pcap")]["flows"] > 0
    for name in damaged:
        alone = classify(tmp_path / name).stderr.strip().splitlines()[0]
        assert alone in whole.stderr
        assert inputs[str(tmp_path / name)]["error"]


def classify(*arguments):
    return tapline("classify", *arguments, "--traces", "none")


@pytest.mark.whole
def test_several_inputs_are_told_apart(folder):
    result = classify(folder, CAPTURE, "--limit", "0")
    assert result.returncode == 0
    assert set(re.findall(r"^ +[\d-]+ [\d:]{8} +(\d+) ", result.stdout, re.M)) == {"1", "2", "3", "4"}
    assert f"in 1: {folder / 'a.bin'}" in result.stdout
    assert f"in 4: {CAPTURE}" in result.stdout
    alone = classify(CAPTURE).stdout
    assert "in 1:" not in alone


@pytest.mark.whole
@pytest.mark.parametrize("format_", ["table", "json", "ndjson", "csv"])
def test_a_name_that_is_no_text_is_told_all_the_same(format_, tmp_path):
    capture = tmp_path / os.fsdecode(b"caf\xe9.pcap")
    capture.write_bytes(SMALL.read_bytes())
    result = written({}, "classify", capture, SMALL, "-f", format_)
    assert (result.returncode, b"Traceback" in result.stderr) == (0, False)
    assert "caf\N{REPLACEMENT CHARACTER}.pcap" in result.stdout.decode("utf-8")


@pytest.mark.whole
def test_the_order_of_the_table():
    flows = json.loads(classify(CAPTURE, "-f", "json").stdout)["flows"]
    largest = max(flows, key=lambda flow: flow["orig_ip_bytes"] + flow["resp_ip_bytes"])
    first = next(line for line in classify(CAPTURE, "--sort", "bytes").stdout.splitlines() if " tcp " in line)
    assert f"{largest['orig_h']}:{largest['orig_p']}" in first.split()


@pytest.mark.whole
@pytest.mark.parametrize("format_", ["json", "ndjson", "csv", "table"])
def test_conditions_hold_in_every_format(format_):
    result = classify(CAPTURE, "-f", format_, "--where", "label=dns,host=192.168.2.0/24", "--where", "bytes>200")
    assert result.stdout.count("captive.apple.com") == 1
    assert "clients1.google.com" not in result.stdout
    assert "1 of 66 flows and traces meet the conditions" in result.stderr
    bad = classify(CAPTURE, "--where", "port=https")
    assert (bad.returncode, bad.stdout) == (2, "")
    assert "`port` takes a number" in bad.stderr


ENCODINGS = [
    {"PYTHONIOENCODING": "ascii"},
    {"PYTHONIOENCODING": "latin-1"},
    {"PYTHONIOENCODING": "cp437"},
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
]


def written(environment, *arguments):
    command = [sys.executable, "-W", "error", "-c", CODE, *map(str, arguments)]
    own = {name: value for name, value in os.environ.items() if name not in ("LANG", "LC_ALL", "LC_CTYPE")}
    return subprocess.run(
        command, capture_output=True, cwd=ROOT, timeout=120, check=False, env={**own, **environment}
    )  # fmt: skip


@pytest.mark.whole
@pytest.mark.parametrize("environment", ENCODINGS, ids=lambda environment: "-".join(environment.values()))
def test_any_encoding_of_a_terminal_will_do(environment, tmp_path):
    capture = tmp_path / "größer…\u4e2d.pcap"
    capture.write_bytes(CAPTURE.read_bytes())
    result = written(environment, "classify", capture, "--limit", "2")
    assert (result.returncode, result.stderr) == (0, b"")
    encoding = environment.get("PYTHONIOENCODING", "ascii")
    text = result.stdout.decode(encoding)
    assert "TLS" in text
    assert "~ and 4" in text  # in the place of what the encoding lacks, not bytes of another one
    assert "â" not in text
    whole = written(environment, "classify", capture, "-f", "json", "--traces", "none")
    assert json.loads(whole.stdout.decode("utf-8"))["summary"]["inputs"][0]["flows"] == 69
    failed = written(environment, "classify", tmp_path / "…none.pcap")
    assert (failed.returncode, failed.stdout.count(b"Traceback")) == (1, 0)
    assert b"cannot read it" in failed.stderr
