"""The rules that ship: without a mistake, of labels that the models have, and sensible on bundled captures."""

import re
from importlib import resources

import msgspec
import pytest

from tapline.service.alerts.rule_conditions import ready_rules
from tapline.service.alerts.rule_engine import RuleEngine
from tapline.service.alerts.rule_facts import flow_facts, trace_facts
from tapline.service.alerts.rule_file import read_rules
from tapline.service.alerts.rule_warnings import rule_warnings
from tapline.service.command.alerts_command import known_models
from tapline.service.inference.classifier import DEFAULT_CHECKPOINT
from tapline.service.inference.repository import shipped_checkpoint
from tapline.service.inference.trace_loading import trace_directories
from tapline.service.python.chosen import open_classifier
from tapline.service.python.offline import OfflineRun, Result
from tests.paths import DATA
from tests.service.alerts.ruled import written

TEXT = resources.files("tapline.service.alerts").joinpath("starting-rules.toml").read_text("utf-8")


def test_each_rule_is_explained_and_names_labels_that_there_are(tmp_path):
    path = written(tmp_path, TEXT)
    file = read_rules(path)
    assert len(file.rules) > 12
    assert rule_warnings(file, known_models(None)) == []
    assert [found.group() for found in re.finditer(r"(?<!\n)\n\[\[rule\]\]", TEXT)] == ["\n[[rule]]"] * len(file.rules)
    before = re.findall(r"(.*)\n\[\[rule\]\]", TEXT)
    assert all(line.startswith("# ") for line in before)


@pytest.fixture(scope="module")
def classifier():
    directory = shipped_checkpoint(DEFAULT_CHECKPOINT)
    return open_classifier(directory, trace_directories([]), required=False, warn=print)


CAPTURES = [
    ("android.pcap", set()),  # a phone's own traffic
    ("telegram_videocall.pcapng", set()),  # a call
    ("ndpi/IEC104.pcap", {"industrial-protocol"}),
    ("ndpi/ftp-start-tls.pcap", {"cleartext-login"}),
    ("iot-sentinel/Aria", set()),
]


@pytest.mark.parametrize(("name", "wanted"), CAPTURES)
def test_they_fire_where_they_should(tmp_path, classifier, name, wanted):
    engine, fired = RuleEngine(ready_rules(read_rules(written(tmp_path, TEXT)))), set()
    place = DATA / "captures" / name
    names = [str(path) for path in (sorted(place.iterdir()) if place.is_dir() else [place])]
    run = OfflineRun(names, "auto", classifier)
    seen = 0
    for found in run:
        if isinstance(found, Result):
            facts = flow_facts(found.input, found.flow, found.verdict, found.flow.start_us + found.flow.duration_us)
        else:
            facts = trace_facts(found, found.end_us)
        seen += 1
        fired |= {alert.rule for alert in engine.alerts(facts)}
    assert seen > 0
    assert fired == wanted


def test_a_protocol_on_another_port_is_told(tmp_path, classifier):
    """FTP where HTTPS is expected."""
    (flow,) = [
        found.flow
        for found in OfflineRun([str(DATA / "captures" / "ndpi" / "ftp-start-tls.pcap")], "auto", classifier)
        if isinstance(found, Result)
    ]
    moved = msgspec.structs.replace(flow, resp_p=443)
    (outcome,) = classifier.classify([moved])
    engine = RuleEngine(ready_rules(read_rules(written(tmp_path, TEXT))))
    fired = {alert.rule for alert in engine.alerts(flow_facts("pcap", moved, outcome.verdict, moved.start_us))}
    assert "unexpected-port" in fired
