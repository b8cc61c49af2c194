"""A batch of what was decided, into the tables in one transaction."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import sqlalchemy as sql

from tapline.models.flow import Flow
from tapline.models.verdict import Verdict
from tapline.service.alerts.alert import Alert
from tapline.service.history.addresses import address_key, split_keys
from tapline.service.history.database import Database
from tapline.service.history.history_tables import alerts, flows, minutes, traces, tries
from tapline.service.history.rows import Row, alert_row, flow_row, text, trace_row
from tapline.service.traces.trace_verdict import TraceVerdict

MINUTE_US = 60_000_000

MAX_PLACES = 1024
"""Ports, and peers, that are told apart of what one host tried in a minute."""

_ASKED_AT_ONCE = 500

_ROWS_IN_A_ROW = 100
"""Rows after which the event loop's thread may have its turn, which Python would else let wait for 5 ms."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class SeenFlow:
    """A flow that the history is to keep; without a verdict it counts for its originator alone."""

    seen_us: int
    source: str
    flow: Flow
    verdict: Verdict | None


@dataclass(frozen=True, slots=True)
class SeenTrace:
    """A trace verdict that the history is to keep."""

    seen_us: int
    trace: TraceVerdict


@dataclass(frozen=True, slots=True)
class SeenAlert:
    """An alert that the history is to keep."""

    seen_us: int
    alert: Alert


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """Somebody, `by` the name of their key, has seen to the alert of this identifier."""

    seen_us: int
    id: str
    by: str


Seen = SeenFlow | SeenTrace | SeenAlert | Acknowledged


def write_batch(connection: sql.Connection, database: Database, batch: Sequence[Seen], *, content: bool) -> None:
    """Keep a batch, in the order in which it came.

    A verdict that is early is replaced by the next on the same flow (uid, source and sensor) or window (subject, start,
    source and model) in its place: number and `seen_us` stay. A final one stays: a capture that is played again gives
    rows of its own.
    """
    judged, scored, left_out, warned, answered = [], [], [], [], []
    for index, seen in enumerate(batch):
        if isinstance(seen, SeenTrace):
            scored.append(trace_row(seen.seen_us, seen.trace))
        elif isinstance(seen, SeenAlert):
            warned.append(alert_row(seen.seen_us, seen.alert))
        elif isinstance(seen, Acknowledged):
            answered.append(seen)
        elif seen.verdict is None:
            left_out.append(seen)
        else:
            judged.append(flow_row(seen.seen_us, seen.source, seen.flow, seen.verdict, content=content))
        if index % _ROWS_IN_A_ROW == 0:
            time.sleep(0)
    rollup = _RollUp()
    _keep(connection, database, flows, judged, ("uid", "source", "sensor"), rollup)
    _keep(connection, database, traces, scored, ("subject", "start_us", "source", "model"), rollup)
    rollup.write(connection, database)
    _count_tries(connection, database, left_out)
    database.insert_rows(connection, alerts, warned)
    for each in answered:
        of_it = (alerts.c.id == text(each.id), alerts.c.acknowledged_us.is_(None))
        said = {"acknowledged_us": each.seen_us, "acknowledged_by": text(each.by)}
        connection.execute(sql.update(alerts).where(*of_it).values(said))


@dataclass
class _RollUp:
    """What a batch changes of the table of minutes: verdicts and IP bytes by its key."""

    changes: dict[tuple[Any, ...], list[int]] = field(default_factory=lambda: defaultdict(lambda: [0, 0]))

    def add(self, table: sql.Table, row: Any, sign: int) -> None:
        is_trace = table is traces
        minute_us = row["seen_us"] // MINUTE_US * MINUTE_US
        change = self.changes[minute_us, is_trace, row["label"], row["model"], "" if is_trace else row["sensor"]]
        change[0] += sign
        change[1] += 0 if is_trace else sign * row["ip_bytes"]

    def write(self, connection: sql.Connection, database: Database) -> None:
        names = ("minute_us", "is_trace", "label", "model", "sensor")
        rows = [
            {**dict(zip(names, key, strict=True)), "count": count, "ip_bytes": ip_bytes}
            for key, (count, ip_bytes) in sorted(self.changes.items())  # in one order: two writers never wait crosswise
            if count or ip_bytes
        ]
        if not rows:
            return
        insert = database.insert(minutes)
        new = insert.excluded
        connection.execute(
            insert.on_conflict_do_update(
                index_elements=list(names),
                set_={"count": minutes.c.count + new.count, "ip_bytes": minutes.c.ip_bytes + new.ip_bytes},
            ),
            rows,
        )


def _keep(
    connection: sql.Connection,
    database: Database,
    table: sql.Table,
    rows: list[Row],
    names: tuple[str, ...],
    rollup: _RollUp,
) -> None:
    """Insert rows, or put them in the place of early ones whose columns `names` are the same."""
    if not rows:
        return
    early = _early(connection, database, table, rows, names)
    inserts: list[Row] = []
    updates: dict[int, Row] = {}
    for row in rows:
        key = tuple(row[name] for name in names)
        before = early.pop(key, None)
        rollup.add(table, row if before is None else {**row, "seen_us": before["seen_us"]}, 1)
        if before is None:
            inserts.append(row)
            now = row
        else:
            rollup.add(table, before, -1)
            number = before.get("number")
            now = {**row, "seen_us": before["seen_us"]}
            if number is None:  # it is in this batch, too
                before.update(now)
                now = before
            else:
                now["number"] = number
                updates[number] = now
        if not row["final"]:
            early[key] = now
    if updates:  # in their place; an UPDATE for each would cost more than all of this
        for some in _pieces(list(updates)):
            connection.execute(sql.delete(table).where(table.c.number.in_(some)))
        database.insert_rows(connection, table, list(updates.values()))
    database.insert_rows(connection, table, inserts)


def _early(
    connection: sql.Connection, database: Database, table: sql.Table, rows: list[Row], names: tuple[str, ...]
) -> dict[tuple[Any, ...], Row]:
    """The early verdicts that are kept of what the rows are about, by the columns `names`."""
    columns = [table.c[name] for name in ("number", "seen_us", "label", "model", *names)]
    if table is flows:
        columns.append(table.c.ip_bytes)
    found: dict[tuple[Any, ...], Row] = {}
    for some in _pieces(sorted({row[names[0]] for row in rows})):
        query = sql.select(*dict.fromkeys(columns)).where(table.c.final.is_(False), table.c[names[0]].in_(some))
        for row in database.all_rows(connection, query):
            found[tuple(row[name] for name in names)] = row
    return found


def _count_tries(connection: sql.Connection, database: Database, left_out: list[SeenFlow]) -> None:
    """Add flows that could get no verdict to what their originators tried in that minute."""
    found: dict[tuple[Any, ...], _Tries] = {}
    for seen in left_out:
        flow = seen.flow
        minute_us = seen.seen_us // MINUTE_US * MINUTE_US
        key = (minute_us, address_key(flow.orig_h), text(seen.source), text(flow.sensor))
        found.setdefault(key, _Tries()).add(flow)
    if not found:
        return
    database.count_alone(connection)
    names = ("minute_us", "orig_key", "source", "sensor")
    for some in _pieces(sorted({key[1] for key in found})):
        query = sql.select(tries).where(
            tries.c.orig_key.in_(some), tries.c.minute_us.in_(sorted({key[0] for key in found}))
        )
        for row in connection.execute(query).mappings():
            if (known := found.get(tuple(row[name] for name in names))) is not None:
                known.add_row(row)
    rows = [{**dict(zip(names, key, strict=True)), **known.row()} for key, known in sorted(found.items())]
    insert = database.insert(tries)
    changed = {name: insert.excluded[name] for name in _Tries.COLUMNS}
    connection.execute(insert.on_conflict_do_update(index_elements=list(names), set_=changed), rows)


class _Tries:
    """What one originator tried in a minute."""

    COLUMNS = ("without_payload", "below_min_packets", "ports", "peers", "more")

    def __init__(self) -> None:
        self._counts = [0, 0]
        self._ports: set[int] = set()
        self._peers: set[bytes] = set()
        self._more = False

    def add(self, flow: Flow) -> None:
        """Count a flow."""
        self._counts[bool(flow.payload_lengths)] += 1
        if flow.proto in ("tcp", "udp"):
            self._put(self._ports, flow.resp_p)
        self._put(self._peers, address_key(flow.resp_h))

    def add_row(self, row: Any) -> None:
        """Add what is kept already."""
        self._counts[0] += row["without_payload"]
        self._counts[1] += row["below_min_packets"]
        self._more |= row["more"]
        for port in unpack_ports(row["ports"]):
            self._put(self._ports, port)
        for peer in split_keys(row["peers"]):
            self._put(self._peers, peer)

    def row(self) -> Row:
        """The columns of its row that change."""
        ports = b"".join(port.to_bytes(2) for port in sorted(self._ports))
        values = (*self._counts, ports, b"".join(sorted(self._peers)), self._more)
        return dict(zip(self.COLUMNS, values, strict=True))

    def _put(self, places: set[_T], place: _T) -> None:
        if len(places) < MAX_PLACES:
            places.add(place)
        elif place not in places:
            self._more = True


def unpack_ports(packed: bytes) -> list[int]:
    """The ports of a row of tries."""
    return [int.from_bytes(packed[at : at + 2]) for at in range(0, len(packed), 2)]


def _pieces(items: Sequence[_T]) -> Iterator[Sequence[_T]]:
    return (items[at : at + _ASKED_AT_ONCE] for at in range(0, len(items), _ASKED_AT_ONCE))
