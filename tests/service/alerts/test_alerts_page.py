"""docs/alerts.md names every key, identifier, metric and bound of alert rules, and its examples are rules."""

import re

import pytest

from tapline.service.alerts import alert_making, rule_engine, rule_file, rule_models
from tapline.service.alerts.rule_models import IDENTIFIERS, MESSAGE_NAMES, RULES
from tapline.service.metrics import Metrics
from tests.paths import ROOT
from tests.service.alerts.ruled import mistakes, written

PAGE = (ROOT / "docs" / "alerts.md").read_text()
NAMED = set(re.findall(r"`([a-z_]+)`", PAGE))


@pytest.mark.parametrize("kind", RULES)
def test_keys_and_names(kind):
    assert set(RULES[kind].model_fields) - NAMED == set()
    assert set(IDENTIFIERS[kind]) | set(MESSAGE_NAMES[kind]) <= NAMED


@pytest.mark.parametrize("kind", RULES)
def test_conditions_are_said_to_be_of_the_kinds_that_have_them(kind):
    rows = re.findall(
        r"(?m)^\| ((?:`[a-z_]+`(?:, )?)+) \| (all|[a-z, ]+) \| holds|^\| ((?:`[a-z_]+`(?:, )?)+) \| ([a-z, ]+) \|", PAGE
    )
    of = {name: row[1] or row[3] for row in rows for name in re.findall(r"`([a-z_]+)`", row[0] or row[2])}
    wanted = {name for name, kinds in of.items() if kinds == "all" or kind in kinds.split(", ")}
    assert len(of) > 20
    assert wanted & set(of) == {name for name in of if name in RULES[kind].model_fields}


def test_metrics_and_bounds():
    own = {collector._name for name, collector in vars(Metrics()).items() if name.startswith("alert")}
    assert {f"tapline_{name}" for name in ("alerts", "alert_rules")} <= own
    assert [name for name in own if f"`{name}" not in PAGE] == []
    bounds = (
        rule_models.MAX_RULES, rule_models.MAX_ENTRIES, rule_engine.MAX_EARLY, rule_engine.MAX_COUNTS,
        rule_engine.MAX_IDENTIFIERS, alert_making.MAX_MESSAGE_CHARS,
    )  # fmt: skip
    assert [bound for bound in bounds if f"{bound:,}" not in PAGE] == []
    assert (rule_file.MAX_FILE_BYTES, rule_file.MAX_LIST_BYTES) == (1 << 20, 8 << 20)


def test_examples_are_rules(tmp_path):
    examples = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    listed = re.search(r"```(?:text)?\n(# hosts.*?)```", PAGE, re.DOTALL)[1]
    written(tmp_path, "vpn.example.org\n", "partners.txt")
    assert len(examples) == 4
    assert mistakes(tmp_path, "".join(examples)) == []
    written(tmp_path, listed, "hosts.txt")
    assert mistakes(tmp_path, '[list.h]\nof = "networks"\nfile = "hosts.txt"\n') == []


def test_inline_examples_are_what_rules_take(tmp_path):
    """`key = value` in the text, each in a rule of its own kind."""
    inline = re.findall(r"`((?:suppress|rate|unknown_share|label|message) = [^`\n]+)`", PAGE)
    assert len(inline) >= 4
    for number, text in enumerate(inline):
        assert mistakes(tmp_path, f'[[rule]]\nname = "r{number}"\n{text}\n') == [], text
