"""Rules at work on made-up verdicts."""

from tapline.service.alerts.rule_conditions import ready_rules
from tapline.service.alerts.rule_engine import RuleEngine
from tapline.service.alerts.rule_facts import drift_facts, flow_facts, trace_facts
from tapline.service.alerts.rule_faults import AlertRulesError
from tapline.service.alerts.rule_file import read_rules
from tapline.service.drift.model_drift import DriftMeasure, ModelDrift
from tests.service.history.kept import BUS, flow, trace, verdict

T0_US = 1_700_000_000_000_000
"""A Tuesday, 22:13:20 UTC."""


def written(folder, text, name="rules.toml"):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def mistakes(folder, text):
    """What is said of rules, a line each, without the folder."""
    try:
        read_rules(written(folder, text))
    except AlertRulesError as error:
        return [line.removeprefix(f"{folder}/") for line in error.lines]
    return []


class Ruled:
    """Rules of a text at work; remembers what they suppressed and forgot."""

    def __init__(self, folder, text):
        self.folder = folder
        self.suppressed, self.forgotten = [], []
        self.engine = RuleEngine(
            self.ready(text), lambda rule: self.suppressed.append(rule.name), self.forgotten.append
        )

    def ready(self, text):
        return ready_rules(read_rules(written(self.folder, text)))

    def flow(self, seconds=0.0, said=None, **fields):
        """The rules that fire on a flow, as alerts; `said`: fields of its verdict."""
        facts = flow_facts(BUS, flow(**fields), verdict(**(said or {})), T0_US + round(seconds * 1e6))
        return self.engine.alerts(facts)

    def trace(self, seconds=0.0, **fields):
        return self.engine.alerts(trace_facts(trace(**fields), T0_US + round(seconds * 1e6)))

    def drift(self, seconds=0.0, distance=0.5, measure="labels", against="baseline", end_us=5, model="flow-protocols"):
        measured = DriftMeasure(measure, against, distance, 0.25, "more DNS")
        drift = ModelDrift(model, "2", 1, end_us, 900, [measured])
        return [
            alert for facts in drift_facts(drift, T0_US + round(seconds * 1e6)) for alert in self.engine.alerts(facts)
        ]


def rule(**conditions):
    """A rule named `r` as TOML; values as TOML writes them."""
    return '[[rule]]\nname = "r"\n' + "".join(f"{key} = {value}\n" for key, value in conditions.items())
