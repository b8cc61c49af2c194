"""The account of who did what: failed keys, sign-ins and every action that changes something, a line each.

A line holds time, client address, the key's name, action and outcome; never a key, and nothing of traffic.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from tapline.models.foreign_text import clean
from tapline.service.access.keys import KeysError
from tapline.service.access.rates import client_of
from tapline.service.log_lines import log

SUMMARY_SECONDS = 60.0
"""After the first failed key of a client, those of so long a time are one line together."""

MAX_CLIENTS = 256
"""Clients whose failures are told apart at a time; those of all others are one line together."""

OTHERS = "others"
NOBODY = "-"
"""The name of the key where there is none."""

_MAX_ACTION_CHARS = 200


@dataclass
class _Failures:
    """Failed keys of a client that wait for their line: how many, and when the first and the last of them came."""

    timer: asyncio.TimerHandle | None
    count: int = 0
    first: str = ""
    last: str = ""

    def add(self, time: str) -> None:
        """One more."""
        self.first = self.first or time
        self.last = time
        self.count += 1


class Audit:
    """Writes the account: JSON lines appended to a file, or lines of the log where there is none.

    The file is opened for each line, so that whatever rotates it may move it away at any time. A line that cannot be
    written there goes to the log.
    """

    def __init__(self, path: Path | None) -> None:
        """
        Raises:
            KeysError: the file cannot be written.
        """
        self._path = path
        self._failed: dict[str, _Failures] = {}
        try:
            self._append("")
        except OSError as error:
            raise KeysError(f"--audit-log {path}: cannot be written: {_reason(error)}") from None

    def record(self, address: str, key: str, action: str, outcome: str, **more: int | str) -> None:
        """Write a line."""
        line = {
            "time": _now(), "client": address, "key": key,
            "action": clean(action, _MAX_ACTION_CHARS), "outcome": outcome, **more,
        }  # fmt: skip
        if self._path is not None:
            try:
                self._append(json.dumps(line) + "\n")
            except OSError as error:
                log.error("the audit log cannot be written", file=str(self._path), reason=_reason(error))
            else:
                return
        del line["time"]
        log.info("audit", **line)

    def failed_key(self, address: str) -> None:
        """A client gave a key that is none: told at once the first time, then how often in every minute."""
        client = client_of(address)
        if client not in self._failed and len(self._failed) >= MAX_CLIENTS:
            client = OTHERS
        if client in self._failed:
            self._failed[client].add(_now())
            return
        self.record(address if client != OTHERS else OTHERS, NOBODY, "give a key", "refused")
        self._failed[client] = _Failures(_later(SUMMARY_SECONDS, lambda: self._sum_up(client)))

    def close(self) -> None:
        """Tell of all failures that wait for their line."""
        for client in list(self._failed):
            self._sum_up(client)

    def _sum_up(self, client: str) -> None:
        failures = self._failed.pop(client)
        if failures.timer is not None:
            failures.timer.cancel()
        if count := failures.count:
            self.record(client, NOBODY, "give a key", "refused", times=count, first=failures.first, last=failures.last)

    def _append(self, text: str) -> None:
        if self._path is None:
            return
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, text.encode())
        finally:
            os.close(descriptor)


def _later(seconds: float, call: Callable[[], None]) -> asyncio.TimerHandle | None:
    try:
        return asyncio.get_running_loop().call_later(seconds, call)
    except RuntimeError:  # nothing runs: what is left is told by `close`
        return None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _reason(error: OSError) -> str:
    return (error.strerror or type(error).__name__).lower()
