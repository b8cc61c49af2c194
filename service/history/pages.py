"""Pages of flows, traces and alerts out of the database, in the order that was asked for, each after the one before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import sqlalchemy as sql

from tapline.service.alerts.alert import Severity
from tapline.service.history.conditions import SIDES, Condition, conditions, in_network, seen_between
from tapline.service.history.filters import AlertFilter, FilterError, FlowFilter, SeenFilter, TraceFilter
from tapline.service.history.history_tables import alerts, flows, traces
from tapline.service.history.past import FlowSort, Page, PastAlert, PastFlow, PastTrace
from tapline.service.history.rows import past_alert, past_flow, past_trace

FEW_ROWS = 20_000
"""A network with fewer rows is looked for by the index of addresses; of one with more the newest rows are soon found in
the order of time."""

COUNTED_ALERTS = 100_000

_SORTS: dict[str, sql.Column[Any]] = {"confidence": flows.c.confidence, "bytes": flows.c.ip_bytes}
_Item = TypeVar("_Item")


def flow_page(
    connection: sql.Connection,
    wanted: FlowFilter,
    sort: FlowSort,
    *,
    ascending: bool,
    limit: int,
    cursor: str | None,
) -> Page[PastFlow]:
    """A page of flows.

    Raises:
        FilterError: the filter or the cursor cannot be understood.
    """
    found = _rows(connection, flows, wanted, _SORTS.get(sort), ascending, limit, cursor)
    return _page(found, past_flow, _SORTS.get(sort), limit)


def trace_page(
    connection: sql.Connection, wanted: TraceFilter, *, ascending: bool, limit: int, cursor: str | None
) -> Page[PastTrace]:
    """A page of trace verdicts; raises as `flow_page`."""
    return _page(_rows(connection, traces, wanted, None, ascending, limit, cursor), past_trace, None, limit)


def alert_page(
    connection: sql.Connection,
    wanted: AlertFilter,
    columns: Sequence[sql.ColumnElement[Any]],
    *,
    ascending: bool,
    limit: int,
    cursor: str | None,
) -> Page[PastAlert]:
    """A page of alerts; `columns` as the database has them (`Database.columns`). Raises as `flow_page`."""
    found = _rows(connection, alerts, wanted, None, ascending, limit, cursor, columns)
    return _page(found, past_alert, None, limit)


def alert_counts(connection: sql.Connection, wanted: AlertFilter) -> dict[Severity, int]:
    """How many alerts a filter asks for, by severity, of the newest `COUNTED_ALERTS`; raises as `flow_page`."""
    asked = seen_between(alerts, wanted, connection)
    newest = matching(connection, alerts, wanted, asked, [alerts.c.number.desc()], COUNTED_ALERTS)
    severity = newest.with_only_columns(alerts.c.severity).subquery().c.severity
    query = sql.select(severity, sql.func.count()).group_by(severity)
    return {severity: int(count) for severity, count in connection.execute(query)}


def _page(
    rows: list[sql.RowMapping],
    item: Callable[[sql.RowMapping], _Item],
    sort: sql.Column[Any] | None,
    limit: int,
) -> Page[_Item]:
    last = rows[limit - 1] if len(rows) > limit else None
    following = None
    if last is not None:
        following = str(last["number"]) if sort is None else f"{last['number']}:{last[sort.name]!r}"
    return Page([item(row) for row in rows[:limit]], following)


def _rows(
    connection: sql.Connection,
    table: sql.Table,
    wanted: SeenFilter,
    sort: sql.Column[Any] | None,
    ascending: bool,
    limit: int,
    cursor: str | None,
    columns: Sequence[sql.ColumnElement[Any]] = (),
) -> list[sql.RowMapping]:
    """One row more than asked for, where there is one; of all columns of the table where none are named."""
    asked = [*seen_between(table, wanted, connection), *_after(table, sort, ascending, cursor)]
    keys = [table.c.number] if sort is None else [sort, table.c.number]
    order = [key.asc() if ascending else key.desc() for key in keys]
    query = matching(connection, table, wanted, asked, order, limit + 1)
    return list(connection.execute(query.with_only_columns(*(columns or table.c))).mappings())


def matching(
    connection: sql.Connection,
    table: sql.Table,
    wanted: SeenFilter,
    asked: list[Condition],
    order: list[sql.UnaryExpression[Any]],
    limit: int,
) -> sql.Select[Any]:
    """The first rows in an order that a filter and further conditions ask for.

    Of an address the first rows of each side are found by its index, in order, and merged.
    """
    asked = [*conditions(table, wanted), *asked]
    host = wanted.host if isinstance(wanted, FlowFilter | TraceFilter | AlertFilter) else None
    plain = sql.select(table)
    if host is None:
        return plain.where(*asked).order_by(*order).limit(limit)
    sides = SIDES[table]
    few = all(_is_rare(connection, side, host) for side in sides)
    found = [in_network(side, host, with_index=few) for side in sides]
    if few or len(sides) == 1 or not _is_equality(found[0]):
        return plain.where(*asked, sql.or_(*found)).order_by(*order).limit(limit)
    either = [
        sql.select(table.c.number).where(*asked, condition).order_by(*order).limit(limit).subquery()
        for condition in found
    ]
    numbers = sql.union(*(sql.select(one.c.number) for one in either))
    return plain.where(table.c.number.in_(numbers)).order_by(*order).limit(limit)


def count_flows(connection: sql.Connection, wanted: FlowFilter, at_most: int) -> int:
    """How many flows a filter asks for, counted no further than so many; raises as `flow_page`."""
    asked = seen_between(flows, wanted, connection)
    found = matching(connection, flows, wanted, asked, [flows.c.number.desc()], at_most)
    number = found.with_only_columns(flows.c.number).subquery()
    return connection.execute(sql.select(sql.func.count()).select_from(number)).scalar() or 0


def _is_equality(condition: Condition) -> bool:
    return isinstance(condition, sql.BinaryExpression) and condition.operator is sql.sql.operators.eq


def _is_rare(connection: sql.Connection, column: sql.Column[Any], host: str) -> bool:
    some = sql.select(column).where(in_network(column, host, with_index=True)).limit(FEW_ROWS).subquery()
    return (connection.execute(sql.select(sql.func.count()).select_from(some)).scalar() or 0) < FEW_ROWS


def _after(table: sql.Table, sort: sql.Column[Any] | None, ascending: bool, cursor: str | None) -> list[Condition]:
    """What a cursor asks for."""
    if cursor is None:
        return []
    number, _, value = cursor.partition(":")
    try:
        if sort is None:
            if value:
                raise ValueError
            return [table.c.number > _number(number) if ascending else table.c.number < _number(number)]
        after = sql.tuple_(sort, table.c.number)
        at = sql.tuple_(sql.literal(float(value) if sort.name == "confidence" else _number(value)), _number(number))
    except ValueError:
        raise FilterError("cursor: expected `next` of a page in the same order") from None
    return [after > at if ascending else after < at]


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise ValueError
    return int(text)
