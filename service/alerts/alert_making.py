"""Makes alerts of rules and the facts that they matched, with a message out of the rule's template."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from tapline.models.foreign_text import clean
from tapline.service.alerts.alert import Alert
from tapline.service.alerts.rule_facts import Facts, readers
from tapline.service.alerts.rule_models import IDENTIFIERS, MESSAGE_NAMES, Rule
from tapline.service.community_id import community_id

MAX_VALUE_CHARS = 128
"""Longest value in a message."""

MAX_MESSAGE_CHARS = 1024

_DEFAULT_MESSAGES = {
    "flow": "{label} ({confidence}) from {originator} to {responder}:{port}",
    "trace": "{subject}: {label} ({confidence})",
    "drift": "{model}: {reason}",
}


@dataclass(frozen=True, slots=True)
class Counted:
    """What was counted for an alert: `matches` since `start_us`, `share` of them unknown where that was asked."""

    matches: int
    start_us: int
    share: float | None


def make_alert(rule: Rule, facts: Facts, suppressed: int, counted: Counted | None) -> Alert:
    """The alert of a rule: what its newest match says, and what was counted."""
    fields: dict[str, Any] = _of_flow(facts) if facts.flow else _of_trace(facts) if facts.trace else _of_drift(facts)
    if counted is not None:
        fields |= {
            "kind": "rate", "matches": counted.matches, "start_us": counted.start_us, "end_us": facts.time_us,
        }  # fmt: skip
    if facts.kind != "drift":
        fields |= {
            "label": facts.label, "nearest": facts.nearest, "confidence": facts.confidence, "unknown": facts.unknown,
            "final": facts.final,
        }  # fmt: skip
    return Alert(
        id=str(uuid.uuid4()),
        time_us=facts.time_us,
        rule=rule.name,
        severity=rule.severity,
        message=message(rule, facts, suppressed, counted),
        model=facts.model,
        version=facts.version,
        suppressed=suppressed,
        source=facts.source,
        **fields,
    )


def _of_flow(facts: Facts) -> dict[str, Any]:
    flow = facts.flow
    assert flow is not None
    return {
        "kind": "flow", "sensor": flow.sensor, "start_us": flow.start_us, "end_us": flow.start_us + flow.duration_us,
        "uid": flow.uid, "community_id": community_id(flow), "proto": flow.proto, "orig_h": flow.orig_h,
        "orig_p": flow.orig_p, "resp_h": flow.resp_h, "resp_p": flow.resp_p, "server_name": facts.server_name,
        "port_label": facts.port_label, "unexpected_port": facts.unexpected_port,
    }  # fmt: skip


def _of_trace(facts: Facts) -> dict[str, Any]:
    trace = facts.trace
    assert trace is not None
    return {
        "kind": "trace", "start_us": trace.start_us, "end_us": trace.end_us, "subject": trace.subject,
        "subject_kind": trace.subject_kind, "flows": trace.flows, "suspicion": trace.suspicion,
        "suspicious": trace.suspicious, "top_uids": [flow.uid for flow in trace.top_flows],
    }  # fmt: skip


def _of_drift(facts: Facts) -> dict[str, Any]:
    drift, measure = facts.drift, facts.measure
    assert drift is not None
    assert measure is not None
    return {
        "kind": "drift", "start_us": drift.start_us, "end_us": drift.end_us, "matches": drift.verdicts,
        "reason": measure.reason,
    }  # fmt: skip


def message(rule: Rule, facts: Facts, suppressed: int, counted: Counted | None) -> str:
    """What an alert says: the rule's template, or one of its kind, with values that are fit to be shown."""
    template = rule.message or _DEFAULT_MESSAGES[rule.kind]
    if not rule.message and counted is not None:
        asked = rule.counted
        by = "".join(f", {name} {{{name}}}" for name in (asked.by if asked else []))
        what = "{share} of {matches} flows unknown" if counted.share is not None else "{matches} matches"
        last = "" if counted.share is not None or (asked and "label" in asked.by) else ", the last {label}"
        within = f" in {asked.seconds:g} s" if asked else ""
        template = f"{{rule}}: {what}{within}{by}{last}"
    if suppressed and "{suppressed}" not in template:
        template += " ({suppressed} more since the last alert)"
    values = {
        name: clean(_value(name, rule, facts, suppressed, counted), MAX_VALUE_CHARS)
        for name in MESSAGE_NAMES[rule.kind]
        if f"{{{name}}}" in template
    }
    return clean(template.format(**values), MAX_MESSAGE_CHARS)


def _value(name: str, rule: Rule, facts: Facts, suppressed: int, counted: Counted | None) -> str:
    """The value of one of `MESSAGE_NAMES`, "-" where there is none."""
    trace, measure = facts.trace, facts.measure
    own = {
        "rule": rule.name,
        "severity": rule.severity,
        "time": _time_text(facts.time_us),
        "version": facts.version,
        "confidence": f"{facts.confidence:.2f}",
        "stage": "final" if facts.final else "early",
        "suppressed": str(suppressed),
        "matches": str(counted.matches) if counted is not None else "1",
        "share": f"{counted.share:.0%}" if counted is not None and counted.share is not None else "-",
        "suspicion": f"{trace.suspicion:.2f}" if trace is not None and trace.suspicion is not None else "-",
        "flows": str(trace.flows) if trace is not None else "-",
        "distance": f"{measure.distance:.2f}" if measure is not None else "-",
        "reason": measure.reason if measure is not None else "-",
    }
    if name in own:
        return own[name]
    if name in IDENTIFIERS[facts.kind] or facts.flow is not None:
        (read,) = readers(facts.kind, [name])
        return str(read(facts)) or "-"
    return "-"


def _time_text(time_us: int) -> str:
    return datetime.fromtimestamp(time_us // 1_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
