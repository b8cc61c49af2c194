"""Why a history cannot be used, or does not answer. Who only names that needs no database."""

from __future__ import annotations


class HistoryError(ValueError):
    """The history cannot be used as it was asked for; the message says why."""


class SlowQueryError(RuntimeError):
    """A question took longer than it may."""


class HistoryBusyError(RuntimeError):
    """Too many questions wait, or the database cannot answer now."""
