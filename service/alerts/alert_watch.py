"""Alert rules at work on live verdicts: an observer that tells of alerts, and reads its rules anew when they change."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from tapline.models.flow import Flow
from tapline.models.foreign_text import clean
from tapline.models.verdict import Verdict
from tapline.service.alerts.alert import Alert, Severity
from tapline.service.alerts.rule_conditions import ReadyRule, ready_rules
from tapline.service.alerts.rule_engine import RuleEngine
from tapline.service.alerts.rule_facts import Facts, drift_facts, flow_facts, trace_facts
from tapline.service.alerts.rule_faults import AlertRulesError, Problem
from tapline.service.alerts.rule_file import read_rules, rules_paths
from tapline.service.alerts.rule_models import Rule
from tapline.service.alerts.rule_warnings import Known, rule_warnings
from tapline.service.drift.model_drift import ModelDrift
from tapline.service.log_lines import log
from tapline.service.metrics import Metrics
from tapline.service.traces.trace_verdict import TraceVerdict

LOOK_SECONDS = 1.0
"""Between two looks at the files."""

LOGGED_PROBLEMS = 10

_Look = dict[Path, tuple[int, int, int] | None]
"""Of each file when it was changed, its size and its inode; None where it is not there."""


class AlertWatch:
    """An observer of verdicts and drift; tells `tell` of every alert, in the event loop.

    A changed file is read once it looks the same twice, so that one still being written is left alone. While the newest
    version has mistakes the last good one works on, and `problem` says why. What the rules remember stays over a new
    version, of rules that keep their names.
    """

    def __init__(
        self,
        path: Path,
        tell: Callable[[Alert], None],
        metrics: Metrics,
        *,
        known: Callable[[], Known] | None = None,
        clock_us: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        """`known`: models that there are, by which it warns of rules that can never fire; without it warns of none.

        Raises:
            AlertRulesError: a file cannot be read or has mistakes; the message names all of them.
        """
        self.path = path
        self._known = known
        self.problem: str | None = None
        self.rules = 0
        self._tell = tell
        self._metrics = metrics
        self._clock_us = clock_us
        self._asked = asyncio.Event()
        self._names: set[tuple[str, Severity]] = set()
        self._engine = RuleEngine(
            [],
            lambda rule: metrics.alerts_suppressed.labels(rule.name).inc(),
            lambda memory: metrics.alerts_forgotten.labels(memory).inc(),
        )
        self._seen = self._read = _look([path])
        ready, paths, warnings = _load(path, known)
        self._read = self._seen = _look(paths) | self._read
        self._use(ready)
        self._log("alert rules", warnings)

    async def run(self) -> None:
        """Look for changed rules about once a second, until cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._asked.wait(), LOOK_SECONDS)
            await self.look()

    def reload(self) -> None:
        """Have the rules read anew at once, changed or not; for a signal's handler, in the event loop."""
        self._asked.set()

    async def look(self) -> None:
        """Look at the files, and read the rules where they have changed and are at rest, or that was asked for."""
        asked = self._asked.is_set()
        self._asked.clear()
        before, self._seen = self._seen, await asyncio.to_thread(_look, self._read)
        if not asked and (self._seen == self._read or self._seen != before):
            return
        seen = self._seen
        try:
            ready, paths, warnings = await asyncio.to_thread(_load, self.path, self._known)
        except AlertRulesError as error:
            self._refuse(error)
            paths = await asyncio.to_thread(rules_paths, self.path)
        else:
            self._use(ready)
            self._log("alert rules read", warnings)
        looks = await asyncio.to_thread(_look, paths)
        self._read = self._seen = {path: seen.get(path, look) for path, look in looks.items()}

    def flow(self, source: str, flow: Flow, verdict: Verdict | None) -> None:
        """Hold a flow's verdict against the rules."""
        if verdict is not None:
            self._hold(flow_facts(source, flow, verdict, self._clock_us()))

    def trace(self, trace: TraceVerdict) -> None:
        """Hold a verdict on a trace against the rules."""
        self._hold(trace_facts(trace, self._clock_us()))

    def drift(self, drift: ModelDrift) -> None:
        """Hold what a model sees against the rules."""
        for facts in drift_facts(drift, self._clock_us()):
            self._hold(facts)

    def alert(self, alert: Alert) -> None:
        """Alerts are its own."""

    def _hold(self, facts: Facts) -> None:
        for alert in self._engine.alerts(facts):
            self._metrics.alerts.labels(alert.rule, alert.severity).inc()
            self._tell(alert)

    def _use(self, ready: list[ReadyRule]) -> None:
        self._engine.use(ready)
        self._account([each.rule for each in ready])
        self.rules = len(ready)
        self.problem = None
        self._metrics.alert_rules.set(self.rules)
        self._metrics.alert_rules_up.set(1)
        self._metrics.alert_rules_read.labels("used").inc()

    def _log(self, event: str, warnings: list[Problem]) -> None:
        log.info(event, path=str(self.path), rules=self.rules, warnings=len(warnings))
        for warning in warnings[:LOGGED_PROBLEMS]:
            log.warning("strange alert rule", where=clean(str(warning)))

    def _account(self, rules: list[Rule]) -> None:
        """Begin the counters of new rules at 0, and end those of rules that are gone."""
        names = {(rule.name, rule.severity) for rule in rules}
        for rule, severity in self._names - names:
            self._metrics.alerts.remove(rule, severity)
        for rule in {rule for rule, _ in self._names} - {rule for rule, _ in names}:
            self._metrics.alerts_suppressed.remove(rule)
        for rule, severity in names:
            self._metrics.alerts.labels(rule, severity)
            self._metrics.alerts_suppressed.labels(rule)
        self._names = names

    def _refuse(self, error: AlertRulesError) -> None:
        self.problem = str(error)
        self._metrics.alert_rules_up.set(0)
        self._metrics.alert_rules_read.labels("refused").inc()
        for line in error.lines[:LOGGED_PROBLEMS]:
            log.error("mistake in alert rules", where=clean(line))
        log.error("the alert rules have mistakes: those before them work on", mistakes=len(error.problems))


def _load(path: Path, known: Callable[[], Known] | None) -> tuple[list[ReadyRule], list[Path], list[Problem]]:
    """The rules of a file made ready, all files that they were read from, and what to warn of.

    Raises:
        AlertRulesError: as of `read_rules`.
    """
    file = read_rules(path)
    return ready_rules(file), file.paths, rule_warnings(file, known()) if known is not None else []


def _look(paths: Iterable[Path]) -> _Look:
    found: _Look = {}
    for path in paths:
        try:
            status = path.stat()
        except OSError:
            found[path] = None
        else:
            found[path] = (status.st_mtime_ns, status.st_size, status.st_ino)
    return found
