"""What `tapline alerts test` and `history` write: the alerts as a table for a person, or as lines for programs."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Sequence
from typing import Protocol, TextIO

import msgspec
from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from tapline.service.alerts.alert import Alert
from tapline.service.alerts.rule_models import Rule
from tapline.service.command.console import make_console
from tapline.service.command.terminal import UNBOUNDED, common_date, time_text

SEVERITY_STYLES = {"low": "dim", "medium": "yellow", "high": "red", "critical": "bold red"}


class AlertWriter(Protocol):
    """Takes alerts in any order, and what rules suppressed; writes all at the latest at the end."""

    def add(self, alert: Alert) -> None:
        """Take an alert."""
        ...

    def suppressed(self, rule: Rule) -> None:
        """Take note of a match that made no alert."""
        ...

    def finish(self) -> None:
        """Write what is not written yet."""
        ...


class AlertLines:
    """One JSON record a line, as `GET /v1/alerts` has them, in the order of time; `in_order`: they come in it."""

    def __init__(self, file: TextIO, *, in_order: bool) -> None:
        self._file = file
        self._in_order = in_order
        self._waiting: list[Alert] = []

    def add(self, alert: Alert) -> None:
        """Write the alert, or keep it until all are known."""
        if self._in_order:
            self._write(alert)
        else:
            self._waiting.append(alert)

    def _write(self, alert: Alert) -> None:
        self._file.write(msgspec.json.encode(alert).decode() + "\n")

    def suppressed(self, rule: Rule) -> None:
        """The alerts themselves say how many."""

    def finish(self) -> None:
        """Write what was kept."""
        for alert in sorted(self._waiting, key=lambda alert: alert.time_us):
            self._write(alert)


class AlertTable:
    """The first `limit` alerts in time (0: all), what each rule made, and which rules never fired."""

    def __init__(self, file: TextIO, limit: int, rules: Sequence[Rule]) -> None:
        self._console = make_console(file)
        self._limit = limit
        self._rules = rules
        self._first: list[tuple[int, int, Alert]] = []  # a heap, the latest first
        self._made: Counter[str] = Counter()
        self._left_out: Counter[str] = Counter()

    def add(self, alert: Alert) -> None:
        """Remember the alert, where it is among the first."""
        entry = (-alert.time_us, -self._made.total(), alert)
        self._made[alert.rule] += 1
        if not self._limit or len(self._first) < self._limit:
            heapq.heappush(self._first, entry)
        else:
            heapq.heappushpop(self._first, entry)

    def suppressed(self, rule: Rule) -> None:
        """Count it."""
        self._left_out[rule.name] += 1

    def finish(self) -> None:
        """Draw."""
        shown = [alert for _, _, alert in sorted(self._first, key=lambda entry: (-entry[0], -entry[1]))]
        if shown:
            self._draw(shown)
        if more := self._made.total() - len(shown):
            self._console.print(f"… and {more} more: --limit 0 shows all", style="dim")
        fired = [rule for rule in self._rules if self._made[rule.name]]
        if fired:
            self._console.print(self._by_rule(fired))
        alerts, suppressed = self._made.total(), self._left_out.total()
        self._console.print(
            f"{'1 alert' if alerts == 1 else f'{alerts} alerts'} by {len(fired)} of {len(self._rules)} rules, "
            f"{suppressed} suppressed."
        )
        if silent := [rule.name for rule in self._rules if not self._made[rule.name]]:
            self._console.print(Text(f"Never fired: {', '.join(silent)}", style="dim"))

    def _draw(self, alerts: list[Alert]) -> None:
        """A table where every message has its line, or two lines of each alert."""
        date = common_date(alert.time_us for alert in alerts)
        self._console.print(Text(f"Alerts{f' of {date}' if date else ''}", style="bold"))
        table = Table(box=box.SIMPLE_HEAD)
        for name in ("time (UTC)", "severity", "rule", "message"):
            table.add_column(name, no_wrap=True)
        listed: list[RenderableType] = []
        for alert in alerts:
            time = time_text(alert.time_us, dated=date is None)
            severity = Text(alert.severity, style=SEVERITY_STYLES[alert.severity])
            table.add_row(time, severity, Text(alert.rule), Text(alert.message))
            listed.append(Text.assemble(f"{time}  ", severity, f"  {alert.rule}"))
            listed.append(Padding(Text(alert.message), (0, 0, 0, 2), expand=False))
        wanted = self._console.measure(table, options=self._console.options.update(max_width=UNBOUNDED)).maximum
        self._console.print(table if wanted <= self._console.width else Group(*listed, Text()))

    def _by_rule(self, rules: list[Rule]) -> Table:
        table = Table(box=box.SIMPLE_HEAD, title="By rule", title_justify="left", title_style="bold")
        table.add_column("rule", overflow="fold")
        table.add_column("severity")
        table.add_column("alerts", justify="right")
        table.add_column("suppressed", justify="right")
        for rule in rules:
            severity = Text(rule.severity, style=SEVERITY_STYLES[rule.severity])
            table.add_row(Text(rule.name), severity, str(self._made[rule.name]), str(self._left_out[rule.name]))
        return table
