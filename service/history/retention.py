"""What of the history is deleted when: the oldest first, a little at a time."""

from __future__ import annotations

import time

import sqlalchemy as sql

from tapline.service.history.database import Database
from tapline.service.history.history_tables import alerts, flows, minutes, traces, tries

ROLL_UP_DAYS = 400
"""How long counts by minute and label are kept, which is a year and a month; or as long as flows, if that is longer."""

TRIM_ROWS = 4000
"""Most rows of a table that are deleted in one transaction."""

_ROOM_LEFT = 0.98
"""When the database is over its size it is trimmed to this share of it."""

_DAY_US = 86_400_000_000

_TIMES = {
    flows: flows.c.seen_us, traces: traces.c.seen_us, alerts: alerts.c.seen_us, tries: tries.c.minute_us,
    minutes: minutes.c.minute_us,
}  # fmt: skip
_AGING = (flows, traces, alerts, tries)
"""What is kept for as many days as the history is; counts by minute are kept longer."""


class Retention:
    """Deletes what is older than `days`, and the oldest where the database is larger than `size_bytes`."""

    def __init__(self, database: Database, days: float, size_bytes: int) -> None:
        self.used_bytes = 0
        self._database = database
        self._age_us = round(days * _DAY_US)
        self._size_bytes = size_bytes
        self._is_over = False

    def step(self) -> bool:
        """Delete a little, in a transaction of its own; whether there is more to delete. Of services that share a
        database one at a time deletes.

        Raises:
            DBAPIError: the database cannot do it now.
        """
        now_us = time.time_ns() // 1000
        with self._database.engine.begin() as connection:
            self._measure(connection)
            if not self._database.may_delete(connection):
                return False
            more = [_delete(connection, table, now_us - self._age_us) for table in _AGING]
            more.append(_delete(connection, minutes, now_us - max(self._age_us, ROLL_UP_DAYS * _DAY_US)))
            if self._is_over:
                more.append(self._delete_oldest(connection, now_us))
        self._database.give_back()
        return any(more)

    def _measure(self, connection: sql.Connection) -> None:
        self.used_bytes = self._database.used_bytes(connection)
        limit = self._size_bytes * (_ROOM_LEFT if self._is_over else 1)
        self._is_over = self.used_bytes > limit

    def _delete_oldest(self, connection: sql.Connection, now_us: int) -> bool:
        """Delete from the table whose oldest row is the oldest; counts by minute only where nothing else is left."""
        oldest = {table: _oldest_us(connection, table) for table in _AGING}
        found = {table: at for table, at in oldest.items() if at is not None} or {minutes: 0}
        table = min(found, key=lambda each: found[each])
        return _delete(connection, table, now_us + _DAY_US)


def _oldest_us(connection: sql.Connection, table: sql.Table) -> int | None:
    found: int | None = connection.execute(sql.select(sql.func.min(_TIMES[table]))).scalar()
    return found


def _delete(connection: sql.Connection, table: sql.Table, before_us: int) -> bool:
    """Delete the oldest rows that are older; whether there may be more."""
    at = _TIMES[table]
    key = list(table.primary_key.columns)
    oldest = sql.select(*key).where(at < before_us).order_by(at).limit(TRIM_ROWS)
    found = connection.execute(sql.delete(table).where(sql.tuple_(*key).in_(oldest)))
    return found.rowcount >= TRIM_ROWS
