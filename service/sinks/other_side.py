"""How the other side of an output is: what was last heard of it, and when to look again."""

from __future__ import annotations

import time

from prometheus_client import Gauge

from tapline.service.log_lines import log
from tapline.service.process.quiet_log import QuietLog

PROBE_SECONDS = 60.0
"""After so long without a record it is looked whether the other side is still there."""


class OtherSide:
    """Here or away, and says so when that changes, in the log and in a gauge; here until the first try."""

    def __init__(self, name: str, up: Gauge, quiet_log: QuietLog) -> None:
        """`up`: 1 or 0."""
        self.away: str | None = None
        """Why nothing can be sent, or None."""
        self.failures = 0
        """Tries in a row that failed."""
        self._name = name
        self._up = up
        self._log = quiet_log
        self._probe_at = 0.0
        self._up.set(1)

    @property
    def probe_in_seconds(self) -> float:
        """When to look, where nothing is sent that would tell: at once where that is not above 0."""
        return self._probe_at - time.monotonic()

    def probe_soon(self) -> None:
        """Look as soon as nothing is sent."""
        self._probe_at = 0.0

    def is_here(self) -> None:
        """A try went well."""
        self._probe_at = time.monotonic() + PROBE_SECONDS
        if self.away is not None:
            log.info("an output is back", output=self._name)
            self.away, self.failures = None, 0
            self._up.set(1)

    def is_away(self, reason: str, *, records_wait: bool) -> None:
        """A try failed; while no record waits, the same reason is told once."""
        if records_wait or reason != self.away:
            self._log.warning("away", "an output cannot be written", reason=reason)
        self.away = reason
        self.failures += 1
        self._up.set(0)
        self.probe_soon()
