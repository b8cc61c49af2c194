"""Says of rules that are no mistakes what can hardly be meant: above all which of them can never fire."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from tapline.models.flow import PROTOCOLS
from tapline.models.verdict import UNKNOWN
from tapline.service.alerts.networks import NameSet, host_bits
from tapline.service.alerts.rule_faults import Problem
from tapline.service.alerts.rule_file import RuleFile
from tapline.service.alerts.rule_models import Rule, VerdictRule, bare
from tapline.service.drift.distances import has_scipy
from tapline.service.toml_lines import TomlLines

_LABELS = ("label", "nearest", "port_label")
_ADDRESSES = ("host", "originator", "responder")
_NO_CONDITIONS = {"name", "kind", "comment", "enabled", "severity", "message", "timezone", "suppress"}
"""What a rule says of itself, and not of what it is about."""


@dataclass(frozen=True)
class Known:
    """Models that there are, by their names, and the labels of all of them."""

    models: Collection[str]
    labels: Collection[str]


def rule_warnings(file: RuleFile, known: Known) -> list[Problem]:
    """What is told of rules and lists, in the order of their lines."""
    found = list(_warnings(file, known))
    lines = TomlLines(file.document) if found else None
    told = [Problem(file.paths[0], lines.line(place), text) for place, text in found] if lines is not None else []
    return sorted([*file.notes, *told], key=lambda each: (each.path != file.paths[0], each.line))


def _warnings(file: RuleFile, known: Known) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """A place and a sentence for each."""
    for number, rule in enumerate(file.rules):
        title = f"rule {rule.name}"
        if rule.kind == "drift" and not has_scipy():
            yield (
                ("rule", number),
                f"{title}: SciPy is not installed, so it never fires: install tapline-traffic[drift]",
            )
        if isinstance(rule, VerdictRule) and not rule.model_fields_set - _NO_CONDITIONS:
            yield ("rule", number), f"{title}: it has no condition, so it holds for every {rule.kind}"
        for key, place, pattern in _patterns(rule):
            if text := _strange(key, pattern, known):
                yield ("rule", number, key, place), f"{title}: {key}: {text}"


def _patterns(rule: Rule) -> Iterator[tuple[str, int, str]]:
    """Each pattern of the conditions that are looked at here, without the names of lists."""
    for key in ("model", "proto", *_LABELS, *_ADDRESSES):
        for place, pattern in enumerate(getattr(rule, key, None) or []):
            if not bare(pattern).startswith("@"):
                yield key, place, bare(pattern)


def _strange(key: str, pattern: str, known: Known) -> str | None:
    if key in _ADDRESSES:
        return host_bits(pattern)
    if key == "model":
        names, what = known.models, "no model here is called"
    elif key == "proto":
        names, what = PROTOCOLS, "expected tcp, udp, icmp or the number of an IP protocol: no flow has"
    else:
        names, what = {*known.labels, UNKNOWN}, "no model here has the label"
    asked = NameSet([pattern])
    if any(name in asked for name in names):
        return None
    by_letters = {name.lower(): name for name in names if not name.isdigit()}
    near = difflib.get_close_matches(pattern.lower(), list(by_letters), n=1)
    return f"{what} `{pattern}`{f', did you mean `{by_letters[near[0]]}`?' if near else ''}"
