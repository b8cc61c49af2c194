"""What settings expose, from the table: reached, written, sent and read; and the command that says it."""

import json

import pytest
from pydantic import Field
from pydantic_settings import SettingsConfigDict

from tapline.service.access.keys import make_key
from tapline.service.configuration import exposure
from tapline.service.configuration.exposure import exposures
from tapline.service.settings import Settings, TextList
from tests.service.command.cli_runner import tapline

KEY = "s3cret-key"


def said(settings, section):
    return {entry.what: entry for entry in exposures(settings) if entry.section == section}


@pytest.mark.parametrize(
    ("given", "url", "is_open", "unkeyed"),
    [
        ({}, "http://127.0.0.1:8000", False, False),
        ({"host": "::1", "port": 1}, "http://[::1]:1", False, False),
        ({"host": "0.0.0.0", "api_key": KEY}, "http://0.0.0.0:8000", True, False),
        ({"host": "0.0.0.0", "allow_remote": True}, "http://0.0.0.0:8000", True, True),
    ],
)
def test_who_can_reach_it(given, url, is_open, unkeyed):
    found = said(Settings(**given), "reached")
    assert found[url].is_open is is_open
    assert ("this machine alone" in found[url].detail) is not is_open
    assert found["with no key"].is_open is unkeyed
    assert ("with a key of admin" in found) is ("api_key" in given)
    assert found["with no key"].detail.startswith("/healthz" if "api_key" in given else "everything")


def test_what_is_written_and_how_large_it_may_get(tmp_path):
    settings = Settings(
        data_dir=tmp_path, history="sqlite", history_mb=20, history_days=2.5, interface=["lo"], zeek_logs_mb=0
    )
    found = said(settings, "written")
    assert found[f"{tmp_path}/history.db"].detail == "verdicts: 20 MiB, 2.5 days, without content bytes"
    assert "65,536 MiB" in found[f"{tmp_path}/jobs"].detail
    assert found[f"{tmp_path}/zeek"].is_open
    assert any("4,096 MiB" in entry.detail for entry in found.values())
    assert said(Settings(interface=["lo"], zeek_dir="/logs"), "written")["/logs"].detail.startswith(
        "logs of Zeek: 10,240 MiB"
    )


def test_who_may_do_what(tmp_path):
    one, _ = make_key("soc", "read")
    other, _ = make_key("ci", "classify")
    file = tmp_path / "keys"
    file.write_text(f"{one.line()}\n")
    file.chmod(0o600)
    found = said(
        Settings(keys_file=file, keys=[other.line()], api_key=KEY, forwarded_allow_ips=["10.0.0.1"]), "reached"
    )
    assert found["with a key of read"].detail.endswith("(soc)")
    assert found["with a key of classify"].detail.endswith("(ci)")
    assert found["with a key of admin"].detail == "everything: also to load models (api_key)"
    assert found["with no key"].detail.startswith("/healthz")
    assert "by the proxy 10.0.0.1" in found


def test_outputs_are_written_or_sent(tmp_path):
    given = [
        "eve:/log/eve.json?rotate_mb=50&keep=3",
        "eve:/log/all.json?rotate_mb=0",
        "kafka://k:9092/t?records=alerts",
    ]
    settings = Settings(output=given, data_dir=tmp_path, audit_log="/log/audit")
    written, sent = said(settings, "written"), said(settings, "sent")
    assert written["/log/eve.json"].detail == "flows, traces, alerts: 4 files of 50 MiB"
    assert [written[path].is_open for path in ("/log/eve.json", "/log/all.json")] == [False, True]
    assert sent["kafka://k:9092/t"].detail == "alerts"
    assert "256 MiB" in written[f"{tmp_path}/outputs"].detail
    assert "audit_log: " in written["/log/audit"].detail


@pytest.mark.parametrize(("name", "text"), [("keys_file", "soc read sha256:nothing"), ("alerts", "[[rule]]\nnmae = 1")])
def test_files_that_serve_refuses_are_refused(tmp_path, name, text):
    path = tmp_path / "file"
    path.write_text(text)
    path.chmod(0o600)
    flag = f"--{name.replace('_', '-')}"
    result = tapline("check-config", flag, path, "--format", "json")
    assert result.returncode == tapline("serve", "--port", "0", flag, path).returncode == 2
    problems = json.loads(result.stdout)["problems"]
    assert problems
    assert all(str(path) in problem for problem in problems)


def test_a_history_elsewhere_is_sent_and_hides_its_password():
    found = said(Settings(history="postgresql+psycopg://me:pw@db/tap"), "sent")
    assert list(found) == ["postgresql+psycopg://db/tap"]


def test_settings_that_say_nothing_are_told_by_their_type(tmp_path, monkeypatch):
    class More(Settings):
        model_config = SettingsConfigDict(env_prefix="MORE_")
        peers: TextList = Field([], description="where records go")
        audit_mb: int = Field(64, description="most of the audit log, in MiB")
        audit: str | None = Field(
            None, description="file of it", json_schema_extra={"exposes": "written", "bound": "audit_mb"}
        )

    monkeypatch.setattr(exposure, "Settings", More)
    settings = More(peers=["amqp://bus/x"], audit="/log/audit", captures_dir=tmp_path, zeek_option=["A::b=1"])
    assert said(settings, "sent")["amqp://bus/x"].detail == "peers: where records go"
    assert said(settings, "written")["/log/audit"].detail == "audit: 64 MiB; file of it"
    assert list(said(settings, "read")) == [str(tmp_path)]
    assert "A::b=1" not in said(settings, "sent")


def test_the_command_says_where_each_came_from_and_no_secret(tmp_path, monkeypatch):
    path = tmp_path / "tapline.toml"
    path.write_text(f"host = '0.0.0.0'\napi_key = '{KEY}'\nzeek = ['ws://u:{KEY}@sensor:1']\n")
    path.chmod(0o600)
    monkeypatch.setenv("TAPLINE_MAX_JOBS", "3")
    monkeypatch.setenv("COLUMNS", "80")
    result = tapline("check-config", "--config", path, "--port", "9000", "--history", f"postgresql://u:{KEY}@db/tap")
    assert (result.returncode, result.stderr) == (0, "")
    assert KEY not in result.stdout
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert "! http://0.0.0.0:9000 every machine that has a way to this one; not encrypted" in lines
    assert "max_jobs 3 TAPLINE_MAX_JOBS" in lines
    assert "port 9000 --port" in lines
    assert any(line.startswith("api_key **********") for line in lines)

    result = tapline("check-config", "--config", path, "--format", "json", "--max-jobs", "5")
    told = json.loads(result.stdout)
    assert KEY not in result.stdout
    assert told["file"] == str(path)
    assert set(told["settings"]) == set(Settings.model_fields)
    assert told["settings"]["max_jobs"] == {"value": 5, "from": "flag", "where": "--max-jobs"}
    assert told["settings"]["host"] == {"value": "0.0.0.0", "from": "file", "where": f"{path}:1"}
    assert told["settings"]["speed"] == {"value": 1.0, "from": "default", "where": ""}
    assert {
        "section": "flows",
        "what": "ws://sensor:1",
        "detail": "a sensor's bus, not encrypted",
        "open": False,
    } in told["exposed"]


def test_the_command_lists_defaults_on_request():
    result = tapline("check-config", "--all")
    assert [name for name in Settings.model_fields if f"\n  {name} " not in result.stdout] == []


def test_what_serve_refuses_it_refuses(tmp_path):
    path = tmp_path / "tapline.toml"
    path.write_text("host = '0.0.0.0'\n")
    result = tapline("check-config", "--config", path, "--format", "json")
    assert result.returncode == tapline("serve", "--config", path).returncode == 2
    [problem] = json.loads(result.stdout)["problems"]
    assert problem == result.stderr.strip()
    assert "listening on 0.0.0.0 would let others in" in problem
