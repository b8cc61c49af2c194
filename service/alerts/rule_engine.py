"""Holds facts against rules and makes alerts: once for each flow and window, counted and suppressed as the rules say.

Live verdicts, captures and the history pass here alike; whoever makes the facts says what time it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tapline.service.alerts.alert import Alert
from tapline.service.alerts.alert_making import Counted, make_alert
from tapline.service.alerts.alert_state import Remembered, SlidingCount
from tapline.service.alerts.rule_conditions import ReadyRule
from tapline.service.alerts.rule_facts import Facts
from tapline.service.alerts.rule_models import Rule, UnknownShare

MAX_EARLY = 50_000
"""Early verdicts that matched a rule and are remembered until their final ones, of all rules together."""

MAX_IDENTIFIERS = 50_000
"""Identifiers of alerts that suppress others, of all rules together."""

MAX_COUNTS = 20_000
"""Identifiers by which matches are counted, of all rules together."""

_MAX_VERDICTS = 10_000


@dataclass(slots=True)
class _Told:
    """The last alert of a rule on an identifier, and how many matches it has suppressed."""

    time_us: int
    suppressed: int = 0


class RuleEngine:
    """Rules at work. Its memory is bounded whatever the traffic: the bounds are above, and what is forgotten beyond
    them is told to `forgotten` by the name of the memory: `early`, `suppressed` or `counted`."""

    def __init__(
        self,
        rules: Sequence[ReadyRule],
        suppressed: Callable[[Rule], None] = lambda rule: None,
        forgotten: Callable[[str], None] = lambda memory: None,
    ) -> None:
        """`suppressed` is told of the rule of each match that would have been an alert."""
        self._suppressed = suppressed
        self._early: Remembered[bool] = Remembered(MAX_EARLY, lambda: forgotten("early"))
        self._told: Remembered[_Told] = Remembered(MAX_IDENTIFIERS, lambda: forgotten("suppressed"))
        self._counts: Remembered[SlidingCount] = Remembered(MAX_COUNTS, lambda: forgotten("counted"))
        self.use(rules)

    def use(self, rules: Sequence[ReadyRule]) -> None:
        """Work by other rules. What is remembered stays, of rules by their names."""
        self._rules = rules
        self._candidates: dict[tuple[object, ...], list[ReadyRule]] = {}

    def alerts(self, facts: Facts) -> list[Alert]:
        """The alerts that facts make, in the order of the rules."""
        found = []
        for ready in self._candidates_of(facts):
            for holds in ready.others:
                if not holds(facts):
                    break
            else:
                alert = self._matched(ready, facts)
                if alert is not None:
                    found.append(alert)
        return found

    def _candidates_of(self, facts: Facts) -> list[ReadyRule]:
        """The rules whose conditions on the verdict alone hold; found once for all verdicts that say the same."""
        key = (facts.kind, facts.label, facts.nearest, facts.model, facts.unknown, facts.final)
        found = self._candidates.get(key)
        if found is None:
            if len(self._candidates) >= _MAX_VERDICTS:
                self._candidates.clear()
            found = self._candidates[key] = [
                ready
                for ready in self._rules
                if ready.rule.kind == facts.kind and all(holds(facts) for holds in ready.by_verdict)
            ]
        return found

    def _matched(self, ready: ReadyRule, facts: Facts) -> Alert | None:
        """What comes of a match: an alert, or None where it is suppressed, or counted and not enough yet."""
        rule, counted = ready.rule, None
        key = (rule.name, facts.identity)
        before = self._early.pop(key)
        if not facts.final:
            self._early.put(key, facts.unknown)
        if rule.counted is not None:
            counted = self._count(ready, facts, before)
            if counted is None:
                return None
        elif before is not None:
            return None
        return self._unless_suppressed(ready, facts, counted)

    def _count(self, ready: ReadyRule, facts: Facts, before: bool | None) -> Counted | None:
        """Count a match; what was counted, where that is enough for an alert. `before`: whether an earlier verdict on
        the same said unknown, None where there was none."""
        wanted = ready.rule.counted
        assert wanted is not None
        key = (ready.rule.name, wanted.seconds, *[read(facts) for read in ready.counted_by])
        count = self._counts.get(key)
        if count is None:
            count = SlidingCount(wanted.seconds)
            self._counts.put(key, count)
        count.add(facts.time_us, before is None, facts.unknown - bool(before))
        matches, share = count.matches, None
        if isinstance(wanted, UnknownShare):
            share = min(max(count.unknown / matches, 0.0), 1.0) if matches > 0 else 0.0
            enough = matches >= wanted.min_flows and share >= wanted.min
        else:
            enough = matches >= wanted.count
        if not enough:
            return None
        found = Counted(matches, count.start_us, share)
        count.clear()
        return found

    def _unless_suppressed(self, ready: ReadyRule, facts: Facts, counted: Counted | None) -> Alert | None:
        rule = ready.rule
        if not rule.suppress.seconds:
            return make_alert(rule, facts, 0, counted)
        key = (rule.name, rule.suppressed_by, *[read(facts) for read in ready.suppressed_by])
        told = self._told.get(key)
        if told is not None and abs(facts.time_us - told.time_us) < rule.suppress.seconds * 1e6:
            told.suppressed += 1
            self._suppressed(rule)
            return None
        self._told.put(key, _Told(facts.time_us))
        return make_alert(rule, facts, told.suppressed if told is not None else 0, counted)
