"""Filters as conditions of queries; those of records that are not in the database yet are in `matches`."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sql

from tapline.service.history.addresses import key_range
from tapline.service.history.filters import AlertFilter, FlowFilter, SeenFilter, TraceFilter, VerdictFilter
from tapline.service.history.history_tables import alerts, flows, traces
from tapline.service.history.rows import text

Condition = sql.ColumnElement[bool]

_EQUAL = (
    "label", "nearest", "unknown", "model", "source", "final", "sensor", "unexpected_port", "uid", "suspicious", "rule",
    "kind",
)  # fmt: skip
"""Fields of filters that are columns of the same name."""

CLOCK_SLACK_US = 5_000_000
"""How far the clocks of services that share a database may differ: numbers rise with time no more exactly than so."""


def conditions(table: sql.Table, wanted: SeenFilter) -> list[Condition]:
    """What a filter asks for of the columns of a table; times and hosts apart.

    They let the database use an index where one helps. `unexpected_port` and `suspicious` false are also those of
    which it cannot be told.
    """
    found: list[Condition] = []
    for name in _EQUAL:
        value = getattr(wanted, name, None)
        if value is None:
            continue
        column = table.c[name]
        if isinstance(value, bool):
            never = name in ("unexpected_port", "suspicious") and not value
            found.append(sql.or_(column.is_(False), column.is_(None)) if never else column.is_(value))
        else:
            found.append(column == text(value))
    if isinstance(wanted, VerdictFilter):
        if wanted.min_confidence is not None:
            found.append(table.c.confidence >= wanted.min_confidence)
        if wanted.max_confidence is not None:
            found.append(table.c.confidence <= wanted.max_confidence)
    if isinstance(wanted, FlowFilter) and wanted.port is not None:
        found.append(flows.c.resp_p == wanted.port)
    if isinstance(wanted, TraceFilter) and wanted.subject is not None:
        found.append(traces.c.subject == text(wanted.subject).lower())
    if isinstance(wanted, AlertFilter):
        if wanted.severity is not None:
            found.append(alerts.c.severity.in_(wanted.severities))
        if wanted.acknowledged is not None:
            at = alerts.c.acknowledged_us
            found.append(at.is_not(None) if wanted.acknowledged else at.is_(None))
    return found


def seen_between(table: sql.Table, wanted: SeenFilter, connection: sql.Connection) -> list[Condition]:
    """The times of a filter, as a range of numbers that rows are read in, and exactly."""
    found: list[Condition] = []
    exact = table.c.seen_us + 0  # no index: rows are read in the order of their numbers
    for bound_us, slack_us in ((wanted.since_us, -CLOCK_SLACK_US), (wanted.until_us, CLOCK_SLACK_US)):
        if bound_us is None:
            continue
        first = (
            sql.select(table.c.number).where(table.c.seen_us >= bound_us + slack_us).order_by(table.c.seen_us).limit(1)
        )
        number = connection.execute(first).scalar()
        if slack_us < 0:
            found += [exact >= bound_us, table.c.number >= number if number is not None else sql.false()]
        else:
            found += [exact < bound_us, *([table.c.number <= number] if number is not None else [])]
    return found


def in_network(column: sql.Column[Any], host: str, *, with_index: bool) -> Condition:
    """Whether the key in a column is of an address or a network; `with_index`: by the index of the column."""
    first, last = key_range(host)
    if first == last:
        return column == first
    if with_index:
        return column.between(first, last)
    return sql.func.coalesce(column, b"").between(first, last)


SIDES = {
    flows: (flows.c.orig_key, flows.c.resp_key),
    traces: (traces.c.subject_key,),
    alerts: (alerts.c.orig_key, alerts.c.resp_key, alerts.c.subject_key),
}
"""The addresses of a table's records."""
