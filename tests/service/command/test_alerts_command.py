"""`tapline alerts`: what is wrong with rules, and what they would make of captures and of the history."""

import asyncio
import json

import pytest

from tapline.service.alerts import rule_warnings
from tapline.service.alerts.rule_file import read_rules
from tapline.service.runtime import Service
from tapline.service.settings import Settings
from tests.paths import DATA
from tests.service.alerts.ruled import rule, written
from tests.service.command.cli_runner import tapline
from tests.service.history.kept import flow, settled, trace, verdict
from tests.service.history.test_history import ask, keep
from tests.service.observing import Told

ANDROID = DATA / "captures" / "android.pcap"
RULES = """\
[[rule]]
name = "tls"
label = "TLS"
severity = "high"
suppress = {by = "originator", seconds = 3600}

[[rule]]
name = "much-dns"
label = "DNS"
rate = {count = 5, seconds = 60, by = "originator"}

[[rule]]
name = "devices"
kind = "trace"
model = "iot-*"

[[rule]]
name = "never"
label = "SSH"

[[rule]]
name = "moved"
kind = "drift"
"""


@pytest.fixture
def rules(tmp_path):
    return written(tmp_path, RULES)


def test_example_is_what_check_takes(tmp_path):
    printed = tapline("alerts", "example")
    checked = tapline("alerts", "check", written(tmp_path, printed.stdout))
    assert (printed.returncode, checked.returncode, checked.stderr) == (0, 0, "")
    assert checked.stdout.endswith("rules, 1 of them switched off, 3 lists: no mistakes\n")


def test_check_says_every_mistake(tmp_path):
    result = tapline("alerts", "check", written(tmp_path, rule(lable='"x"', severity="3")))
    assert (result.returncode, result.stdout) == (2, "")
    assert [line.split(": ", 2)[2] for line in result.stderr.splitlines()] == [
        "unknown key `lable`, did you mean `label`?",
        "severity: expected 'low', 'medium', 'high' or 'critical', got 3",
    ]


STRANGE = """\
[[rule]]
name = "r"
label = ["SHH", "tls", "!nothing-like-it", "*", "unknown", "cerber", "@mine"]
model = ["intrusoin",
  "iot-*", "flow-protocols"]
originator = "192.168.2.16/24"
proto = ["TCPP", "TCP", "47"]
allow = "own"

[[rule]]
name = "all"
severity = "low"

[list.mine]
of = "labels"

[list.own]
of = "networks"
entries = [
  {value = "10.0.0.1", until = 2020-01-01},
  "10.0.0.0/8",
]
"""


def test_check_warns_of_what_can_hardly_be_meant(tmp_path):
    path = written(tmp_path, STRANGE)
    result, strict = tapline("alerts", "check", path), tapline("alerts", "check", path, "--strict")
    assert (result.returncode, strict.returncode, strict.stderr) == (0, 1, result.stderr)
    assert [line.removeprefix(f"{path}:") for line in result.stderr.splitlines()] == [
        "3: warning: rule r: label: no model here has the label `SHH`, did you mean `SSH`?",
        "3: warning: rule r: label: no model here has the label `nothing-like-it`",
        "4: warning: rule r: model: no model here is called `intrusoin`, did you mean `intrusion`?",
        '6: warning: rule r: originator: "192.168.2.16/24" is all of 192.168.2.0/24: write that, or the address alone, '
        '"192.168.2.16"',
        "7: warning: rule r: proto: expected tcp, udp, icmp or the number of an IP protocol: no flow has `TCPP`, "
        "did you mean `tcp`?",
        "10: warning: rule all: it has no condition, so it holds for every flow",
        "20: warning: `10.0.0.1` counts no more since 2020-01-02T00:00:00Z: take it out, or set `until`",
    ]
    assert result.stdout == f"{path}: 2 rules, 2 lists: 7 warnings\n"


def test_rules_about_drift_need_scipy(tmp_path, monkeypatch):
    monkeypatch.setattr(rule_warnings, "has_scipy", lambda: False)
    file = read_rules(written(tmp_path, rule(kind='"drift"')))
    [said] = rule_warnings.rule_warnings(file, rule_warnings.Known((), ()))
    assert (said.line, "SciPy is not installed" in said.text) == (1, True)


def test_a_capture_as_a_person_sees_it(rules, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    result = tapline("alerts", "test", rules, ANDROID)
    lines = [line.rstrip() for line in result.stdout.splitlines()]
    assert result.returncode == 0
    assert result.stderr == "not asked, for they are about drift: moved\n"
    assert max(map(len, lines)) <= 80
    assert "10:46:24  high  tls" in lines
    assert "  much-dns: 5 matches in 60 s, originator 192.168.2.16, the last DNS" in lines
    assert ["tls", "high", "2", "26"] in [line.split() for line in lines]
    assert lines[-2:] == ["7 alerts by 3 of 4 rules, 29 suppressed.", "Never fired: never"]


def test_a_capture_for_programs(rules):
    result = tapline("alerts", "test", rules, ANDROID, "--format", "ndjson")
    alerts = [json.loads(line) for line in result.stdout.splitlines()]
    assert [alert["rule"] for alert in alerts].count("tls") == 2
    times = [alert["time_us"] for alert in alerts]
    assert times == sorted(times)
    (dns,) = (alert for alert in alerts if alert["rule"] == "much-dns")
    assert (dns["kind"], dns["matches"], dns["orig_h"], dns["source"]) == ("rate", 5, "192.168.2.16", str(ANDROID))
    assert 0 <= dns["time_us"] - dns["start_us"] < 70e6
    assert {alert["kind"] for alert in alerts} == {"flow", "rate", "trace"}


def test_only_so_many_rows_are_kept(tmp_path):
    every = written(tmp_path, rule(suppress="{seconds = 0}"))
    result = tapline("alerts", "test", every, ANDROID, "--limit", "2", "--traces", "none")
    assert "… and 64 more: --limit 0 shows all" in result.stdout
    assert "66 alerts by 1 of 1 rules, 0 suppressed." in result.stdout


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("nothing.pcap",), 1, "nothing.pcap"),
        ((DATA / "README.md",), 1, "README.md"),
        ((ANDROID, "--traces", "nothing"), 2, "nothing"),
    ],
)
def test_captures_and_models_that_there_are_not(rules, arguments, status, said):
    result = tapline("alerts", "test", rules, *arguments)
    assert (result.returncode, said in result.stderr) == (status, True)


def test_the_history_gives_the_alerts_that_the_live_path_gave(tmp_path, rules):
    """A replay through a service with these rules, then the same rules on what it kept."""
    told = Told()
    settings = Settings(replay=ANDROID, speed=0, alerts=rules, history="sqlite", data_dir=tmp_path / "data")

    async def body():
        service = Service(settings, told)
        async with asyncio.timeout(120), service.running():
            await service.replay.finished.wait()

    asyncio.run(body())
    result = tapline(
        "alerts", "history", rules, "--history", "sqlite", "--data-dir", tmp_path / "data", "--format", "ndjson"
    )
    past = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(told.alerts) > 3
    assert sorted((alert.rule, alert.message) for alert in told.alerts) == sorted(
        (alert["rule"], alert["message"]) for alert in past
    )


def test_the_history_since_and_until(tmp_path):
    every = written(tmp_path, rule(suppress="{seconds = 0}") + rule(kind='"trace"').replace('"r"', '"t"'))

    async def body(history):
        await keep(history, *((flow(str(number)), verdict()) for number in range(30)))
        history.trace(trace())
        await settled(history)

    ask(f"sqlite:///{tmp_path / 'history.db'}", body)
    place = ("--history", "sqlite", "--data-dir", tmp_path)
    found = tapline("alerts", "history", every, *place, "--since", "1h")
    assert "31 alerts by 2 of 2 rules, 0 suppressed." in found.stdout
    assert tapline("alerts", "history", every, *place, "--until", "1h").stdout.startswith("0 alerts by 0 of 2 rules")
    assert tapline("alerts", "history", every, *place, "--since", "soon").returncode == 2
    assert "no history at" in tapline("alerts", "history", every, *place[:2], "--data-dir", tmp_path.parent).stderr
