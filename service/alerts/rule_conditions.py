"""Rules made ready to be held against facts: what is looked up often is a set, what is dear is asked last."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tapline.service.alerts.allow_lists import Members
from tapline.service.alerts.networks import NameSet, NetworkSet
from tapline.service.alerts.rule_facts import Facts, Reader, readers
from tapline.service.alerts.rule_file import RuleFile
from tapline.service.alerts.rule_models import DriftRule, FlowRule, Rule, TraceRule, VerdictRule, bare, ports_of
from tapline.service.alerts.time_windows import WeekTimes, zone_of

Condition = Callable[[Facts], bool]


@dataclass(frozen=True, slots=True)
class ReadyRule:
    """A rule with its conditions. `by_verdict` follow from label, nearest label, model, unknown and stage alone: their
    answer is the same for every flow that got the same. `counted_by` and `suppressed_by` read identifiers."""

    rule: Rule
    by_verdict: list[Condition]
    others: list[Condition]
    counted_by: list[Reader]
    suppressed_by: list[Reader]


def ready_rules(file: RuleFile) -> list[ReadyRule]:
    """The rules of a file that are not switched off, in its order."""
    return [_ready(rule, file) for rule in file.rules if rule.enabled]


class _Patterns:
    """What a condition on texts or addresses asks for: one of some, and none of others; lists at the time asked."""

    def __init__(self, patterns: Iterable[str], lists: dict[str, Members], make: type[NameSet | NetworkSet]) -> None:
        wanted, unwanted = _split(patterns)
        self.uses_lists = any(bare(pattern).startswith("@") for pattern in patterns)
        self._wanted = _one_of(wanted, lists, make)
        self._unwanted = _one_of(unwanted, lists, make)

    def holds(self, values: Iterable[str], time_us: int) -> bool:
        """Whether any value is wanted, and none unwanted."""
        unwanted, wanted = self._unwanted, self._wanted
        found = wanted is None
        for value in values:  # no generators: on the path of every flow
            if unwanted is not None and unwanted(value, time_us):
                return False
            if not found and wanted is not None and wanted(value, time_us):
                found = True
        return found


def _split(patterns: Iterable[str]) -> tuple[list[str], list[str]]:
    found: tuple[list[str], list[str]] = ([], [])
    for pattern in patterns:
        found[pattern.startswith("!")].append(bare(pattern))
    return found


def _one_of(
    patterns: list[str], lists: dict[str, Members], make: type[NameSet | NetworkSet]
) -> Callable[[str, int], bool] | None:
    if not patterns:
        return None
    named = [lists[pattern[1:]] for pattern in patterns if pattern.startswith("@")]
    own = make([pattern for pattern in patterns if not pattern.startswith("@")])
    if not named:
        return lambda value, time_us: value in own
    return lambda value, time_us: value in own or any(members.has(value, time_us) for members in named)


def _ready(rule: Rule, file: RuleFile) -> ReadyRule:
    by_verdict: list[Condition] = []
    others: list[Condition] = []
    if isinstance(rule, VerdictRule):
        by_verdict += _verdict_conditions(rule)
        others += _number_conditions(rule)
    if isinstance(rule, FlowRule):
        others += _flow_conditions(rule)
    if isinstance(rule, TraceRule):
        others += _trace_conditions(rule)
    if isinstance(rule, DriftRule):
        others += _drift_conditions(rule)
    others += _time_conditions(rule, file.zone)
    for key, values in _NAMES.items():
        patterns = getattr(rule, key, None)
        if patterns:
            found = _Patterns(patterns, file.lists, NameSet)
            fixed = key in _BY_VERDICT and not found.uses_lists
            (by_verdict if fixed else others).append(_holding(found, values))
    for key, addresses in _ADDRESSES.items():
        networks = getattr(rule, key, None)
        if networks:
            others.append(_holding(_Patterns(networks, file.lists, NetworkSet), addresses))
    if isinstance(rule, FlowRule) and rule.server_name:
        others.append(_holding(_Patterns(rule.server_name, file.lists, NameSet), lambda facts: facts.server_names))
    if isinstance(rule, VerdictRule) and rule.allow:
        others.append(_not_allowed([file.lists[name] for name in rule.allow]))
    counted = rule.counted.by if rule.counted is not None else []
    return ReadyRule(rule, by_verdict, others, readers(rule.kind, counted), readers(rule.kind, rule.suppressed_by))


_NAMES: dict[str, Callable[[Facts], list[str]]] = {
    "label": lambda facts: [facts.label],
    "nearest": lambda facts: [facts.nearest],
    "model": lambda facts: [facts.model],
    "source": lambda facts: [facts.source],
    "sensor": lambda facts: [facts.flow.sensor] if facts.flow and facts.flow.sensor else [],
    "proto": lambda facts: [facts.flow.proto] if facts.flow else [],
    "port_label": lambda facts: [facts.port_label] if facts.port_label else [],
    "subject": lambda facts: [facts.trace.subject] if facts.trace else [],
}
_BY_VERDICT = ("label", "nearest", "model")
_ADDRESSES: dict[str, Callable[[Facts], tuple[str, ...]]] = {
    "originator": lambda facts: facts.addresses[:1],
    "responder": lambda facts: facts.addresses[1:],
    "host": lambda facts: facts.addresses,
}


def _holding(patterns: _Patterns, values: Callable[[Facts], Iterable[str]]) -> Condition:
    return lambda facts: patterns.holds(values(facts), facts.time_us)


def _verdict_conditions(rule: VerdictRule) -> list[Condition]:
    found: list[Condition] = []
    if (unknown := rule.unknown) is not None:
        found.append(lambda facts: facts.unknown is unknown)
    if rule.stage != "any":
        final = rule.stage == "final"
        found.append(lambda facts: facts.final is final)
    return found


def _number_conditions(rule: VerdictRule) -> list[Condition]:
    found: list[Condition] = []
    if (least := rule.min_confidence) is not None:
        found.append(lambda facts: facts.confidence >= least)
    if (most := rule.max_confidence) is not None:
        found.append(lambda facts: facts.confidence <= most)
    return found


def _flow_conditions(rule: FlowRule) -> list[Condition]:
    found: list[Condition] = []
    if (unexpected := rule.unexpected_port) is not None:
        found.append(lambda facts: facts.unexpected_port is unexpected)
    if rule.port is not None:
        ports = _port_set(rule.port)
        found.append(lambda facts: facts.flow is not None and facts.flow.resp_p in ports)
    if rule.originator_port is not None:
        own = _port_set(rule.originator_port)
        found.append(lambda facts: facts.flow is not None and facts.flow.orig_p in own)
    return found


def _port_set(given: Iterable[int | str]) -> frozenset[int]:
    return frozenset(port for each in given for port in ports_of(each))


def _trace_conditions(rule: TraceRule) -> list[Condition]:
    found: list[Condition] = []
    if (suspicious := rule.suspicious) is not None:
        found.append(lambda facts: facts.trace is not None and facts.trace.suspicious is suspicious)
    if (least := rule.min_suspicion) is not None:
        found.append(lambda facts: facts.trace is not None and (facts.trace.suspicion or 0.0) >= least)
    return found


def _drift_conditions(rule: DriftRule) -> list[Condition]:
    found: list[Condition] = []
    if (measures := rule.measure) is not None:
        found.append(lambda facts: facts.measure is not None and facts.measure.measure in measures)
    if (against := rule.against) is not None:
        found.append(lambda facts: facts.measure is not None and facts.measure.against in against)
    if (least := rule.min_distance) is not None:
        found.append(lambda facts: facts.measure is not None and facts.measure.distance >= least)
    else:
        found.append(lambda facts: facts.measure is not None and facts.measure.drifted)
    return found


def _time_conditions(rule: Rule, zone: datetime.tzinfo) -> list[Condition]:
    own = zone_of(rule.timezone) if rule.timezone is not None else zone
    found: list[Condition] = []
    if rule.during is not None:
        during = WeekTimes(rule.during, own)
        found.append(lambda facts: facts.time_us in during)
    if rule.outside is not None:
        outside = WeekTimes(rule.outside, own)
        found.append(lambda facts: facts.time_us not in outside)
    return found


def _not_allowed(lists: list[Members]) -> Condition:
    """Whether no list has an end of the flow, the subject, the server or the label, by what it is a list of."""
    values: dict[str, Callable[[Facts], Iterable[str]]] = {
        "networks": lambda facts: facts.addresses,
        "server names": lambda facts: facts.server_names,
        "labels": lambda facts: (facts.label, facts.nearest),
    }
    asked = [(members.has, values[members.of]) for members in lists]

    def holds(facts: Facts) -> bool:
        for has, of in asked:
            for value in of(facts):
                if has(value, facts.time_us):
                    return False
        return True

    return holds
