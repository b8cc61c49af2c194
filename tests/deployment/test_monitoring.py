"""What is provisioned for Prometheus and Grafana: rules that promtool takes, each tested, and a dashboard of metrics
that there are."""

import json
import re
import runpy
import shutil
import subprocess

import pytest
import yaml

from tapline.service.metrics import reference_table
from tests.deployment.rule_cases import CASES, unit_tests
from tests.paths import ROOT

DEPLOY = ROOT / "deploy"
RULES = DEPLOY / "prometheus" / "tapline-rules.yml"
DASHBOARD = DEPLOY / "grafana" / "dashboards" / "tapline.json"
OF_PROCESS = {"up", "process_resident_memory_bytes", "process_cpu_seconds_total"}
OF_PROMETHEUS = {"instance", "job", "le"}

needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool (Debian: prometheus)")


def rules():
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def panels():
    return [panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] != "row"]


def queries():
    of_panels = [target["expr"] for panel in panels() for target in panel["targets"]]
    return of_panels + [rule["expr"] for rule in rules()]


def known_labels():
    """The labels of every metric, by the name under which it is asked for."""
    known = {name: set() for name in OF_PROCESS}
    for name, kind, labels in re.findall(r"(?m)^\| `(\w+)` \| (\w+) \| (.*?) \|", reference_table()):
        names = [f"{name}{end}" for end in ("_bucket", "_sum", "_count")] if kind == "histogram" else [name]
        known |= {key: set(re.findall(r"`(\w+)`", labels)) for key in names}
    return known


def promtool(*arguments):
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_what_is_asked_for_is_a_metric_with_these_labels():
    known = known_labels()
    for query in queries():
        names = set(re.findall(r"\b(?:tapline|process)_\w+|\bup\b", query))
        assert names, query
        assert names <= known.keys(), query
        labels = set(re.findall(r'(\w+)(?:=|=~|!=|!~)"', query))
        for group in re.findall(r"\b(?:by|on|without) \(([^)]*)\)", query):
            labels |= {label.strip() for label in group.split(",")}
        assert labels <= OF_PROMETHEUS.union(*(known[name] for name in names)), query


def test_the_dashboard_is_the_one_that_its_table_makes():
    made = runpy.run_path(str(DEPLOY / "grafana" / "dashboard.py"))["dashboard"]()
    assert json.loads(DASHBOARD.read_text()) == made, "python deploy/grafana/dashboard.py > " + str(DASHBOARD)


def test_panels_have_titles_units_and_places_of_their_own():
    provisioned = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yml").read_text())
    taken = set()
    assert len(panels()) > 20
    for panel in panels():
        assert panel["title"]
        assert panel["description"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["datasource"]["uid"] == provisioned["datasources"][0]["uid"]
        place = panel["gridPos"]
        columns = range(place["x"], place["x"] + place["w"])
        cells = {(x, y) for x in columns for y in range(place["y"], place["y"] + place["h"])}
        assert not cells & taken
        assert max(columns) < 24
        taken |= cells
    assert len({panel["title"] for panel in panels()}) == len(panels())


@needs_promtool
def test_promtool_takes_configuration_and_rules():
    said = promtool("check", "config", str(DEPLOY / "prometheus" / "prometheus.yml"))
    assert f"{len(rules())} rules found" in said


@needs_promtool
def test_promtool_takes_the_queries_of_the_dashboard(tmp_path):
    asked = [query.replace("$__rate_interval", "5m").replace("$__range", "3h") for query in queries()]
    records = [{"record": f"query:{number}", "expr": query} for number, query in enumerate(asked)]
    path = tmp_path / "queries.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": records}]}))
    assert f"{len(asked)} rules found" in promtool("check", "rules", str(path))


def test_rules_say_what_to_do_and_each_has_a_case():
    assert [rule["alert"] for rule in rules()] == [case.alert for case in CASES]
    for rule in rules():
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert set(rule["annotations"]) == {"summary", "action", "runbook"}


@needs_promtool
def test_each_rule_fires_where_it_should_and_else_not(tmp_path):
    groups = yaml.safe_load(RULES.read_text())
    for rule in [rule for group in groups["groups"] for rule in group["rules"]]:
        del rule["annotations"]  # they differ with every value, and promtool would compare them
    bare, path = tmp_path / "rules.yml", tmp_path / "cases.yml"
    bare.write_text(yaml.safe_dump(groups))
    path.write_text(yaml.safe_dump(unit_tests(bare, {rule["alert"]: rule["labels"]["severity"] for rule in rules()})))
    assert "SUCCESS" in promtool("test", "rules", str(path))


def test_what_a_summary_names_is_a_label_of_its_alert():
    for rule, case in zip(rules(), CASES, strict=True):
        assert set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"])) <= case.labels.keys()
