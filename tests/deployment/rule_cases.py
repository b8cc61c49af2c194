"""For every alert rule, series that set it off and series that do not: written out as promtool's unit tests."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

QUIET, UP = "0x180", "0+60x180"
"""Three hours, a sample a minute: nothing, and one a second."""


class Case(NamedTuple):
    """`fires` and `quiet`: series by name, as promtool writes their values; `at`: when they are looked at."""

    alert: str
    fires: dict[str, str]
    quiet: dict[str, str]
    at: str = "30m"
    labels: Mapping[str, str] = MappingProxyType({})


def series(name, **labels):
    """The name of a series of the service `a`."""
    pairs = {"instance": "a", "job": "tapline", **labels}
    return name + "{" + ",".join(f'{key}="{value}"' for key, value in pairs.items()) + "}"


def counter(alert, name, *summed, at="30m", **labels):
    """A rule on a counter that should stand still; `summed`: the labels that are left, all where not given."""
    one = series(name, **labels)
    kept = {"instance": "a", "job": "tapline", **labels}
    if summed:
        kept = {"instance": "a", **{label: labels[label] for label in summed if label != "instance"}}
    return Case(alert, {one: UP}, {one: QUIET}, at, kept)


def gauge(alert, name, fires, quiet, at="30m", **labels):
    """A rule on the value of a gauge."""
    one = series(name, **labels)
    return Case(alert, {one: fires}, {one: quiet}, at, {"instance": "a", "job": "tapline", **labels})


FLOWS = series("tapline_bus_flows_total", sensor="tap", kind="final")
CONNECTED = series("tapline_bus_connected", url="ws://b")
MISSED = series("tapline_bus_missed_flows_total", sensor="tap")
UNKNOWN = series("tapline_verdicts_total", label="unknown", stage="final")
KNOWN = series("tapline_verdicts_total", label="TLS", stage="final")
SLOW, FAST, ALL = (series("tapline_live_seconds_bucket", le=le) for le in ("5.0", "10.0", "+Inf"))
DRIFT = {"model": "flow-protocols", "measure": "labels", "against": "baseline"}
DISTANCE, LIMIT = (series(f"tapline_drift_{name}", **DRIFT) for name in ("distance", "limit"))
REFUSED = series("tapline_requests_refused_total", reason="unauthorized")

CASES = [
    gauge("TaplineDown", "up", "0x180", "1x180"),
    gauge("TaplinePartDown", "tapline_part_up", "0x180", "1x180", part="history"),
    counter("TaplinePartRestarts", "tapline_part_deaths_total", part="history"),
    counter("TaplineEngineFails", "tapline_failures_total", "instance", reason="BACKEND"),
    counter("TaplineTraceEngineFails", "tapline_trace_failures_total", model="intrusion"),
    counter("TaplineStateNotSaved", "tapline_trace_state_failures_total", model="intrusion"),
    gauge("TaplineSensorAway", "tapline_bus_connected", "0x180", "1x180", url="ws://b"),
    Case("TaplineNoFlows", {FLOWS: "5x180", CONNECTED: "1x180"}, {FLOWS: UP, CONNECTED: "1x180"},
         labels={"instance": "a"}),
    gauge("TaplineSensorLosesPackets", "tapline_sensor_loss_ratio", "0.05x180", "0.001x180", sensor="tap"),
    Case("TaplineBusLosesFlows", {FLOWS: UP, MISSED: "0+6x180"}, {FLOWS: UP, MISSED: "0+0.3x180"},
         labels={"instance": "a", "sensor": "tap"}),
    counter("TaplineEventsRefused", "tapline_bus_refused_events_total", "instance", "reason",
            url="ws://b", reason="malformed"),
    counter("TaplineShedsFlows", "tapline_live_flows_total", "instance", outcome="shed"),
    Case("TaplineSlow", {SLOW: QUIET, FAST: UP, ALL: UP}, {SLOW: UP, FAST: UP, ALL: UP}, labels={"instance": "a"}),
    counter("TaplineVerdictsLost", "tapline_verdicts_lost_total", url="ws://b"),
    gauge("TaplineHistoryDown", "tapline_history_up", "0x180", "1x180"),
    counter("TaplineHistoryLosesRecords", "tapline_history_records_total", "instance", "outcome", outcome="shed"),
    Case("TaplineMuchUnknown", {UNKNOWN: UP, KNOWN: "0+30x180"}, {UNKNOWN: UP, KNOWN: "0+90x180"}, at="2h30m",
         labels={"instance": "a"}),
    counter("TaplineSuspiciousTrace", "tapline_suspicious_traces_total", "instance", "model",
            model="intrusion", stage="final"),
    Case("TaplineDrift", {DISTANCE: "0.6x180", LIMIT: "0.3x180"}, {DISTANCE: "0.2x180", LIMIT: "0.3x180"}, at="2h30m",
         labels={"instance": "a", "job": "tapline", **DRIFT}),
    gauge("TaplineRulesRefused", "tapline_alert_rules_up", "0x180", "1x180"),
    gauge("TaplineOutputDown", "tapline_output_up", "0x180", "1x180", output="eve"),
    counter("TaplineOutputLosesRecords", "tapline_output_records_total", "instance", "output", "outcome",
            output="eve", outcome="dropped"),
    Case("TaplineWrongKeys", {REFUSED: "0+120x180"}, {REFUSED: "0+6x180"}, labels={"instance": "a"}),
]  # fmt: skip


def unit_tests(rules, severities):
    """What `promtool test rules` reads: each case twice, with the alert and without any of its name."""
    tests = []
    for case in CASES:
        expected = {**case.labels, "severity": severities[case.alert]}
        for values, alerts in ((case.fires, [{"exp_labels": expected}]), (case.quiet, [])):
            tests.append(
                {
                    "name": f"{case.alert}, {'fires' if alerts else 'quiet'}",
                    "interval": "1m",
                    "input_series": [{"series": name, "values": value} for name, value in values.items()],
                    "alert_rule_test": [{"eval_time": case.at, "alertname": case.alert, "exp_alerts": alerts}],
                }
            )
    return {"rule_files": [str(rules)], "evaluation_interval": "1m", "tests": tests}
