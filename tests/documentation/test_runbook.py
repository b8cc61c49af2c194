"""The runbook has a section for each alert of Prometheus' rules, and names metrics that there are."""

import re

import yaml

from tests.documentation.pages import text_of
from tests.paths import ROOT

PAGE = text_of("docs/runbook.md")
SECTIONS = re.findall(r"(?m)^### (Tapline\w+)$", PAGE)
METRIC = re.compile(r"`(tapline_\w+?)(?:_bucket|_sum|_count)?(?=[`{ ])")


def test_metrics_are_some_that_there_are():
    there = set(METRIC.findall(text_of("docs/metrics.md")))
    named = set(METRIC.findall(PAGE))
    assert len(named) > 30
    assert named - there == set()


def test_every_alert_has_its_section_and_leads_there():
    groups = yaml.safe_load((ROOT / "deploy/prometheus/tapline-rules.yml").read_text())["groups"]
    alerts = [rule for group in groups for rule in group["rules"] if "alert" in rule]
    assert sorted(rule["alert"] for rule in alerts) == sorted(SECTIONS)
    for rule in alerts:
        assert rule["annotations"]["runbook"] == f"docs/runbook.md#{rule['alert'].lower()}"


def test_sections_say_what_to_do():
    for text in re.split(r"(?m)^##+ ", PAGE):
        if text.startswith("Tapline"):
            assert re.search(r"\bDo\b|\bLook\b", text), text.splitlines()[0]
