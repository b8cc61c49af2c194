"""A running service with alert rules: its metrics, what it says of rules with mistakes, and that it stays ready."""

import json

import pytest

from tapline.service.inference.classifier import DEFAULT_CHECKPOINT
from tapline.service.inference.repository import shipped_checkpoint
from tests.paths import DATA
from tests.service.alerts.ruled import rule, written
from tests.service.api.served import Server
from tests.service.command.cli_runner import tapline

ANDROID = DATA / "captures" / "android.pcap"


def rules_of(server):
    return json.loads(server.ask("GET", "/v1/live")[1])["alert_rules"]


@pytest.mark.whole
def test_rules_are_changed_under_a_service(tmp_path):
    path = written(tmp_path, rule(label='"DNS"', severity='"high"'))
    flags = ("--replay", ANDROID, "--speed", "0", "--traces", "none", "--alerts", path)
    server = Server(tmp_path, shipped_checkpoint(DEFAULT_CHECKPOINT), *flags)
    try:
        server.wait(lambda: b'tapline_alerts_total{rule="r",severity="high"} 1.0' in server.ask("GET", "/metrics")[1])
        assert rules_of(server) == {"path": str(path), "rules": 1, "problem": None}
        written(tmp_path, rule(lable='"DNS"'))
        server.wait(lambda: rules_of(server)["problem"])
        assert rules_of(server) == {
            "path": str(path),
            "rules": 1,
            "problem": f"{path}:3: rule r: unknown key `lable`, did you mean `label`?",
        }
        assert server.ask("GET", "/readyz")[0] == 200
        assert b"tapline_alert_rules_up 0.0" in server.ask("GET", "/metrics")[1]
        written(tmp_path, rule() + rule().replace('"r"', '"s"'))
        server.wait(lambda: rules_of(server) == {"path": str(path), "rules": 2, "problem": None})
        assert 'event="mistake in alert rules"' in server.log
    finally:
        server.process.kill()
        server.process.wait()


def test_a_service_with_bad_rules_does_not_start(tmp_path):
    result = tapline("serve", "--alerts", written(tmp_path, rule(lable='"x"', unknown="3")))
    said = [line.removeprefix(f"{tmp_path}/rules.toml:") for line in result.stderr.splitlines()]
    assert (result.returncode, said) == (
        2,
        [
            "3: rule r: unknown key `lable`, did you mean `label`?",
            "4: rule r: unknown: expected true or false, got 3",
        ],
    )


def test_a_service_without_rules_has_none(tmp_path):
    server = Server(tmp_path, shipped_checkpoint(DEFAULT_CHECKPOINT), "--traces", "none")
    try:
        assert rules_of(server) is None
    finally:
        server.process.kill()
        server.process.wait()
