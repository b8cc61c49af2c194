"""A log that others cannot flood: of each kind of message one line in so many seconds, with how many it stands for."""

from __future__ import annotations

import time
from collections.abc import MutableMapping
from typing import Any

from tapline.service.log_lines import Log

SECONDS_BETWEEN = 10.0


class QuietLog:
    """Passes on the first message of a kind and counts the others until its time has passed. Kinds are few and ours."""

    def __init__(self, log: Log, **bound: object) -> None:
        """`bound`: fields of every message."""
        self._log = log
        self._bound = bound
        self._said: MutableMapping[str, tuple[float, int]] = {}

    def info(self, kind: str, event: str, **fields: object) -> None:
        """Say at level info."""
        self._say(self._log.info, kind, event, fields)

    def warning(self, kind: str, event: str, **fields: object) -> None:
        """Say at level warning."""
        self._say(self._log.warning, kind, event, fields)

    def error(self, kind: str, event: str, **fields: object) -> None:
        """Say at level error."""
        self._say(self._log.error, kind, event, fields)

    def _say(self, level: Any, kind: str, event: str, fields: dict[str, object]) -> None:
        now = time.monotonic()
        said_at, kept_back = self._said.get(kind, (-SECONDS_BETWEEN, 0))
        if now - said_at < SECONDS_BETWEEN:
            self._said[kind] = (said_at, kept_back + 1)
            return
        self._said[kind] = (now, 0)
        more = {"not_logged": kept_back} if kept_back else {}
        level(event, **self._bound, **fields, **more)
