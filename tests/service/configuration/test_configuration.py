"""Flags before the environment before the file before defaults, where each setting came from, and what is refused."""

import re
import subprocess
from pathlib import Path

import pytest

from tapline.service.configuration.configuration import Configuration, Origin
from tapline.service.configuration.problems import ConfigurationError
from tapline.service.configuration.variables import OTHER_VARIABLES, misspelt
from tapline.service.settings import Settings
from tests.paths import ROOT
from tests.service.command.cli_runner import tapline


@pytest.fixture
def file(tmp_path):
    def write(text, mode=0o600):
        path = tmp_path / "tapline.toml"
        path.write_text(text)
        path.chmod(mode)
        return str(path)

    return write


def refused(flags, file=None, **environment):
    with pytest.raises(ConfigurationError) as found:
        Configuration(flags, file, environment).settings()
    return found.value.problems


def test_flags_then_environment_then_file_then_defaults(file, monkeypatch):
    path = file("port = 1\nmax_uploads = 1\nmax_jobs = 1\n")
    monkeypatch.setenv("TAPLINE_PORT", "2")
    monkeypatch.setenv("tapline_max_uploads", "2")
    found = Configuration({"port": 3}, path)
    settings = found.settings()
    assert (settings.port, settings.max_uploads, settings.max_jobs, settings.max_body_mb) == (3, 2, 1, 32)
    assert [found.origin(name) for name in ("port", "max_uploads", "max_jobs", "max_body_mb")] == [
        Origin("flag", "--port"),
        Origin("environment", "TAPLINE_MAX_UPLOADS"),
        Origin("file", f"{path}:3"),
        Origin("default"),
    ]
    assert [found.value(name) for name in ("port", "max_uploads", "max_jobs", "max_body_mb")] == [3, 2, 1, 32]


def test_the_variable_names_the_file(file, monkeypatch, tmp_path):
    path = file("port = 1")
    monkeypatch.setenv("TAPLINE_CONFIG", path)
    assert Configuration({}).settings().port == 1
    assert Configuration({}, "none").settings().port == 8000
    monkeypatch.setenv("TAPLINE_CONFIG", "none")
    assert Configuration({}).file is None
    assert Configuration({}, path).settings().port == 1
    monkeypatch.delenv("TAPLINE_CONFIG")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "tapline").mkdir()
    Path(path).rename(tmp_path / "tapline" / "tapline.toml")
    assert Configuration({}).settings().port == 1


def test_lists_and_paths_of_a_file(file, monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    path = file("data_dir = '~/tap'\ntraces = ['a', 'b']\nserved_names = 'c, d'\nzeek_option = ['X::y={1, 2}']\n")
    settings = Configuration({}, path).settings()
    assert settings.data_dir == Path("/home/somebody/tap")
    assert Configuration({}, path).value("data_dir") == settings.data_dir
    assert (settings.traces, settings.served_names) == (["a", "b"], ["c", "d"])
    assert settings.zeek_option == ["X::y={1, 2}"]


def test_a_home_that_is_not_there(file, monkeypatch):
    def homeless(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", homeless)
    assert refused({}, file("data_dir = '~/tap'")) == ["data_dir: ~/tap: this user has no home: give the path in full"]


def test_what_is_wrong_names_its_place(file, monkeypatch):
    path = file("port = 99999\nmax_uploads = 'x'\n")
    monkeypatch.setenv("TAPLINE_MAX_JOBS", "0")
    with pytest.raises(ConfigurationError) as found:
        Configuration({"speed": -1}, path).settings()
    assert sorted(text.partition(" ")[0] for text in found.value.problems) == [
        "--speed:", f"{path}:1:", f"{path}:2:", "TAPLINE_MAX_JOBS:",
    ]  # fmt: skip
    with pytest.raises(ConfigurationError, match=rf"{path}:1: port: expected at most 65535, got 99999"):
        Configuration({}, path).value("port")


def test_everything_is_told_at_once_in_our_words(file, monkeypatch):
    outputs = "output = ['eve:/tmp/a?rotate=5', 'syslog+tsl://h']"
    path = file(f"prot = 1\nport = 'eight'\nhost = ' '\nengine = 'onxn'\n{outputs}\ntraces = 3\n")
    monkeypatch.setenv("TAPLINE_MAX_JOBS", "many")
    monkeypatch.setenv("TAPLINE_MAX_UPLOADS", "")
    monkeypatch.setenv("TAPLINE_HISTORY_DAY", "1")
    said = tapline("check-config", "--config", path, "--speed", "0").stderr.splitlines()
    plain = [line.removeprefix(f"{path}:") for line in said]
    assert plain[:4] == [
        "TAPLINE_HISTORY_DAY: no such setting: did you mean TAPLINE_HISTORY_DAYS?",
        "1: prot: no such setting: did you mean port?",
        "TAPLINE_MAX_UPLOADS is empty: give it a value, or leave it out",
        "3: host is empty: give it a value, or leave it out",
    ]
    outputs = [line.partition(": output: ")[2] for line in plain if line.startswith("5: ")]
    assert sorted(line for line in plain[4:] if not line.startswith("5: ")) == [
        '2: port: expected a whole number, got "eight"',
        "4: engine: expected 'onnx' or 'torch', got \"onxn\"",
        "6: traces: expected a list",
        'TAPLINE_MAX_JOBS: expected a whole number, got "many"',
    ]
    assert [text.partition(";")[0][:60] for text in outputs] == [
        "eve:/tmp/a: unknown parameter rotate, did you mean rotate_mb?"[:60],
        "...: expected a URL that begins with eve:, http:, https:, kafka:"[:60],
    ]


def test_all_contradictions_are_told(file):
    said = refused({"host": "0.0.0.0", "tls_cert": "a", "replay": "b", "interface": ["c"], "zeek_option": ["x", "y"]})
    assert [text.partition(":")[0] for text in said] == [
        *["--zeek-option"] * 2, "a replay beside live traffic", "listening on 0.0.0.0 would let others in",
        "a certificate without its key, or a key without",
    ]  # fmt: skip
    with pytest.raises(ConfigurationError, match=r"--api-key: expected a text$"):
        Configuration({"api_key": 3}).settings()


def test_an_empty_value_names_its_place(file, monkeypatch):
    path = file("api_key = ''\nhost = ' '\nzeek = ''\n")
    assert refused({}, path) == [
        f"{path}:{line}: {name} is empty: give it a value, or leave it out"
        for line, name in ((1, "api_key"), (2, "host"))
    ]
    assert refused({"history": ""}) == ["--history is empty: give it a value, or leave it out"]
    assert refused({}, "") == ["--config is empty: name a file"]
    assert refused({}, TAPLINE_CONFIG=" ") == ["TAPLINE_CONFIG is empty: name a file"]


SECRETS = ["api_key = 'k3y'", "history = 'postgresql://u:k3y@h/d'", "zeek = ['ws://a:1', 'ws://u:k3y@b:1']"]


@pytest.mark.parametrize("line", [*SECRETS, "history = 'postgresql://h/d?password=k3y'", "zeek = 'ws://[u:k3y@b'"])
def test_a_secret_in_a_file_is_for_its_readers_alone(file, line):
    path = file(f"port = 1\n{line}", 0o644)
    [said] = refused({}, path)
    assert said.startswith(f"{path}:2: {line.partition(' ')[0]}: a secret in a file that everybody may read: chmod o-r")
    assert "k3y" not in said
    if line in SECRETS:
        assert Configuration({}, file(f"port = 1\n{line}", 0o640)).settings().port == 1  # readers of a group are chosen


@pytest.mark.parametrize("line", ["history = 'postgresql://u@h/d'", "zeek = 'ws://a:1'", "served_names = ['a@b:c']"])
def test_a_file_without_secrets_may_be_read_by_all(file, line):
    assert Configuration({}, file(line, 0o644)).settings()


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("TAPLINE_PROT", "TAPLINE_PORT"),
        ("tapline_max_job", "TAPLINE_MAX_JOBS"),
        ("TAPLINE_CONFIGURATION", "TAPLINE_CONFIG"),
    ],
)
def test_a_misspelt_variable_is_an_error(name, meant):
    assert refused({}, **{name: "1"}) == [f"{name}: no such setting: did you mean {meant}?"]


def test_variables_of_others_are_none():
    links = [
        "TAPLINE_SERVICE_HOST",
        "TAPLINE_API_SERVICE_PORT_HTTP",
        "TAPLINE_API_PORT",
        "TAPLINE_API_PORT_8000_TCP_ADDR",
    ]
    assert misspelt(dict.fromkeys([*OTHER_VARIABLES, *links, "MY_TAPLINE_PROT"], "x"), Settings.model_fields) == []
    [said] = refused({}, TAPLINE_PORT="tcp://10.0.0.1:8000")
    assert "enableServiceLinks: false" in said


def test_every_variable_that_the_project_speaks_of_is_known():
    """A variable of a script, an image or a page that a command refuses would stop whoever follows it."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode()
    unknown = {}
    for name in filter(None, listed.split("\0")):
        path = ROOT / name
        if (
            name.startswith(("tests/service/configuration/", "CHANGELOG", "zeek/tests/", "zeek/plugin/src/"))
            or path.is_symlink()
            or not path.is_file()
        ):
            continue
        for found in re.findall(r"\bTAPLINE_[A-Z][A-Z_]*[A-Z]\b", path.read_bytes().decode("utf-8", "replace")):
            if misspelt({found: "x"}, Settings.model_fields):
                unknown.setdefault(name, set()).add(found)
    assert unknown == {"docs/configuration.md": {"TAPLINE_HISTORY_DAY"}}  # the page's example of a misspelt one


def test_serve_says_all_of_it_and_ends_with_2(file, monkeypatch):
    path = file("port = 99999\n")
    monkeypatch.setenv("TAPLINE_MAX_JOB", "1")
    result = tapline("serve", "--config", path)
    assert (result.returncode, result.stderr) == (
        2,
        "TAPLINE_MAX_JOB: no such setting: did you mean TAPLINE_MAX_JOBS?\n"
        f"{path}:1: port: expected at most 65535, got 99999\n",
    )
    monkeypatch.delenv("TAPLINE_MAX_JOB")
    result = tapline("serve", "--config", path)
    assert (result.returncode, result.stderr) == (2, f"{path}:1: port: expected at most 65535, got 99999\n")
    assert tapline("watch", "--config", path, "--zeek", "ws://127.0.0.1:1").stderr == result.stderr


def test_a_flag_takes_back_what_a_file_allows(file):
    path = file("allow_remote = true\nhost = '0.0.0.0'\n")
    assert Configuration({}, path).settings().allow_remote
    result = tapline("serve", "--config", path, "--no-allow-remote")
    assert result.returncode == 2
    assert "listening on 0.0.0.0 would let others in" in result.stderr


def test_the_history_is_that_of_the_file(file, tmp_path, monkeypatch):
    monkeypatch.delenv("TAPLINE_HISTORY", raising=False)
    path = file(f"port = 99999\ndata_dir = '{tmp_path}/kept'\n")  # what it does not use it does not check
    (tmp_path / "kept").mkdir()
    result = tapline("history", "show", "--config", path)
    assert result.returncode == 2
    assert f"there is no history at sqlite:///{tmp_path}/kept/history.db" in result.stderr
    assert (
        f"--history: {tmp_path}/other is not a directory"
        in tapline("history", "show", "--config", path, "--data-dir", tmp_path / "other").stderr
    )
