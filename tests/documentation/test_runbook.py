"""The runbook has a section for each alert of Prometheus' rules, and names metrics that there are."""

import re

import pytest
import yaml

from tests.documentation.pages import text_of
from tests.paths import ROOT

PAGE = text_of("docs/runbook.md")
SECTIONS = re.findall(r"(?m)^### (Tapline\w+)$", PAGE)
METRIC = re.compile(r"`(tapline_\w+?)(?:_bucket|_sum|_count)?(?=[`{ ])")
AGREED = {
    "tapline_alerts_total", "tapline_alerts_suppressed_total", "tapline_output_records_total",
    "tapline_output_queue_records", "tapline_drift_distance", "tapline_requests_refused_total",
}  # fmt: skip
"""Of rooms that are merged after the page."""


def test_metrics_are_some_that_there_are():
    there = set(METRIC.findall(text_of("docs/metrics.md")))
    named = set(METRIC.findall(PAGE))
    assert len(named) > 30
    assert named - there - AGREED == set()


def test_every_alert_has_its_section_and_leads_there():
    files = sorted(ROOT.glob("deploy/**/*rules*.y*ml"))
    if not files:
        pytest.skip("no rules in deploy/")
    alerts = [
        rule
        for file in files
        for group in yaml.safe_load(file.read_text())["groups"]
        for rule in group["rules"]
        if "alert" in rule
    ]
    assert sorted(rule["alert"] for rule in alerts) == sorted(SECTIONS)
    for rule in alerts:
        links = [text for text in rule["annotations"].values() if "runbook" in text]
        assert [text for text in links if text.endswith(f"#{rule['alert'].lower()}")] != [], rule["alert"]


def test_sections_say_what_to_do():
    for text in re.split(r"(?m)^##+ ", PAGE):
        if text.startswith("Tapline"):
            assert re.search(r"\bDo\b|\bLook\b", text), text.splitlines()[0]
