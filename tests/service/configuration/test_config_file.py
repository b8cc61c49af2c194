"""The file of settings: where it is looked for, and what of it is refused, with its line."""

import os
from pathlib import Path

import pytest

from tapline.service.configuration.config_file import MAX_BYTES, default_places, find_file, read_file
from tapline.service.configuration.problems import ConfigurationError
from tapline.service.settings import Settings


@pytest.fixture
def written(tmp_path):
    def write(content):
        path = tmp_path / "tapline.toml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        path.chmod(0o600)
        return path

    return write


def problems(path):
    try:
        found = read_file(path, Settings.model_fields).problems
    except ConfigurationError as error:
        found = error.problems
    return [text.removeprefix(f"{path}:") for text in found]


def test_each_setting_has_its_line(written):
    text = """\ufeff# port = 1
zeek = [
  "ws://127.0.0.1:1",  # a list
  "port = 3", ]
served_names = '''
host = "not this one"
'''
"host" = "::1"\t# quoted
 port=8001
"""
    found = read_file(written(text.replace("\n", "\r\n")), Settings.model_fields)
    assert found.lines == {"zeek": 2, "served_names": 5, "host": 8, "port": 9}
    assert (found.values["host"], found.values["port"]) == ("::1", 8001)
    assert found.where("port") == f"{found.path}:9"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("host = '::1'\nprot = 1\n", ["2: prot: no such setting: did you mean port?"]),
        ("max-jobs = 1", ["1: max-jobs: no such setting: did you mean max_jobs?"]),
        ("xyzzy = 1", ["1: xyzzy: no such setting: see `tapline serve --help`"]),
        ("\x1bq = 1", None),
        ("b = 1\na = 2", ["1: b: no such", "2: a: no such"]),
        ("[server]\nport = 1", ["1: [server]: settings stand in no table: take its line out"]),
        ("[[x]]\n", ["1: [x]: settings stand in no table"]),
        ("port.number = 1", ["1: port: expected a value, got a table"]),
        ("port = 1\nport = 2\n# end\n", ["2: this is no TOML: `port` is there twice, first on line 1"]),
        ("host = 127.0.0.1", ["1: this is no TOML: expected newline"]),
        ("a = [", ["1: this is no TOML: invalid value at its end"]),
        (b"# \xff\nport = 1", ["1: expected text in UTF-8"]),
        ("a = " + "[" * 100_000, None),
        ("#" * (MAX_BYTES + 1), [f" expected at most {MAX_BYTES >> 10} KiB of settings"]),
    ],
)
def test_what_is_wrong_is_said_with_its_line(written, text, said):
    found = problems(written(text))
    if said is not None:
        assert len(found) == len(said)
    for expected, text in zip(said or [], found, strict=False):
        assert text.startswith(expected)


def test_who_may_write_it_says_what_runs(written):
    path = written("port = 1")
    path.chmod(0o602)
    assert problems(path) == [f" everybody may write it, and with it say what runs here: chmod o-w {path}"]
    path.chmod(0o644)
    assert read_file(path, Settings.model_fields).others_read


@pytest.mark.parametrize("kind", ["missing", "directory"])
def test_a_file_that_cannot_be_read(tmp_path, kind):
    path = tmp_path if kind == "directory" else tmp_path / "gone.toml"
    assert "cannot read it" in problems(path)[0]


def test_a_pipe_is_read(tmp_path):
    reading, writing = os.pipe()
    os.write(writing, b"api_key = 'k'")
    os.close(writing)
    try:
        assert read_file(Path(f"/dev/fd/{reading}"), Settings.model_fields).values == {"api_key": "k"}
    finally:
        os.close(reading)


def test_the_first_place_that_is_there_is_read(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tapline.toml").write_text("port = 1")  # the current directory may be anybody's
    first, last = default_places()
    assert (first, last) == (tmp_path / "tapline" / "tapline.toml", Path("/etc/tapline/tapline.toml"))
    assert find_file(None) != tmp_path / "tapline.toml"
    first.parent.mkdir()
    first.touch()
    assert find_file(None) == first
    assert find_file("none") is None
    assert find_file("my.toml") == Path("my.toml")


def test_who_has_no_home_has_the_place_of_all(monkeypatch):
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)

    def homeless(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", homeless)
    assert default_places() == [Path("/etc/tapline/tapline.toml")]
