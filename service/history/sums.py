"""What the history says as sums: hosts, series over time, and what hosts tried that could get no verdict."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import sqlalchemy as sql

from tapline.service.history.addresses import address_text, key_range, split_keys
from tapline.service.history.batch_writing import MINUTE_US, unpack_ports
from tapline.service.history.conditions import seen_between
from tapline.service.history.filters import FilterError, FlowFilter
from tapline.service.history.history_tables import flows, minutes, tries
from tapline.service.history.pages import count_flows, matching
from tapline.service.history.past import HostLabel, Hosts, PastHost, SeriesKind, SeriesName, SeriesPoint, Unclassified

HOST_FLOWS = 200_000
"""Most flows, the newest, that are counted by host."""

MAX_STEPS = 2000
"""Most steps of a series."""

MAX_TRIES = 20_000
"""Most rows of tries, one a host and minute, that are added up."""

MAX_PLACES_TOLD = 65_536
"""Most ports and peers that are told apart over all minutes of a host."""

SHOWN_PLACES = 50
"""Ports and peers of a host that are named."""


_OF_HOSTS = [
    flows.c[name]
    for name in ("orig_key", "resp_key", "resp_p", "seen_us", "label", "unknown", "unexpected_port", "ip_bytes")
]


def hosts(connection: sql.Connection, wanted: FlowFilter, limit: int) -> Hosts:
    """The originators of the newest flows that a filter asks for, those with most flows first."""
    asked = seen_between(flows, wanted, connection)
    newest = (
        matching(connection, flows, wanted, asked, [flows.c.number.desc()], HOST_FLOWS)
        .with_only_columns(*_OF_HOSTS)
        .subquery()
    )
    flow = newest.c
    read = count_flows(connection, wanted, HOST_FLOWS + 1)
    count = sql.func.count()
    totals = (
        sql.select(
            flow.orig_key,
            count.label("flows"),
            sql.func.sum(flow.ip_bytes).label("ip_bytes"),
            sql.func.sum(sql.case((flow.unknown.is_(True), 1), else_=0)).label("unknown"),
            sql.func.sum(sql.case((flow.unexpected_port.is_(True), 1), else_=0)).label("unexpected_ports"),
            sql.func.count(flow.resp_key.distinct()).label("peers"),
            sql.func.count(flow.resp_p.distinct()).label("ports"),
            sql.func.min(flow.seen_us).label("first_seen_us"),
            sql.func.max(flow.seen_us).label("last_seen_us"),
        )
        .group_by(flow.orig_key)
        .order_by(count.desc(), flow.orig_key)
        .limit(limit)
    )
    rows = list(connection.execute(totals).mappings())
    by_label = sql.select(flow.orig_key, flow.label, count).where(flow.orig_key.in_([row["orig_key"] for row in rows]))
    labels: dict[bytes, list[HostLabel]] = defaultdict(list)
    for key, label, number in connection.execute(
        by_label.group_by(flow.orig_key, flow.label).order_by(count.desc(), flow.label)
    ):
        labels[bytes(key)].append(HostLabel(label, number))
    found = [
        PastHost(
            host=address_text(row["orig_key"]),
            labels=labels[bytes(row["orig_key"])],
            **{name: int(value) for name, value in row.items() if name != "orig_key"},
        )
        for row in rows
    ]
    return Hosts(found, min(read, HOST_FLOWS), read <= HOST_FLOWS)


def series(
    connection: sql.Connection,
    since_us: int,
    until_us: int,
    step_seconds: int,
    by: SeriesName,
    kind: SeriesKind,
    *,
    sensor: str | None,
    model: str | None,
) -> list[SeriesPoint]:
    """Verdicts in steps of whole minutes; a step without any has no points.

    Raises:
        FilterError: the steps are none of whole minutes, or too many.
    """
    if step_seconds <= 0 or step_seconds % 60:
        raise FilterError("step: expected whole minutes, in seconds")
    if (until_us - since_us) / 1e6 / step_seconds > MAX_STEPS:
        raise FilterError(f"step: expected at most {MAX_STEPS} steps between the two times")
    step_us = step_seconds * 1_000_000
    step = minutes.c.minute_us - minutes.c.minute_us % step_us
    name = minutes.c[by]
    total = sql.func.sum(minutes.c.count)
    query = sql.select(step.label("time_us"), name, total, sql.func.sum(minutes.c.ip_bytes)).where(
        minutes.c.minute_us >= since_us // MINUTE_US * MINUTE_US,
        minutes.c.minute_us < until_us,
        minutes.c.is_trace.is_(kind == "trace"),
        *([minutes.c.sensor == sensor] if sensor is not None else []),
        *([minutes.c.model == model] if model is not None else []),
    )
    query = query.group_by(sql.text("time_us"), name).having(total > 0).order_by(sql.text("time_us"), name)
    return [SeriesPoint(int(at), text, int(count), int(size)) for at, text, count, size in connection.execute(query)]


def unclassified(
    connection: sql.Connection, since_us: int | None, until_us: int | None, host: str | None, limit: int
) -> list[Unclassified]:
    """The hosts with most flows that could get no verdict, of the newest `MAX_TRIES` rows."""
    query = sql.select(tries).order_by(tries.c.minute_us.desc()).limit(MAX_TRIES)
    if since_us is not None:
        query = query.where(tries.c.minute_us >= since_us // MINUTE_US * MINUTE_US)
    if until_us is not None:
        query = query.where(tries.c.minute_us < until_us)
    if host is not None:
        query = query.where(tries.c.orig_key.between(*key_range(host)))
    found: dict[bytes, _Tried] = defaultdict(_Tried)
    for row in connection.execute(query).mappings():
        found[bytes(row["orig_key"])].add(row)
    most = sorted(found.items(), key=lambda item: (-item[1].flows, item[0]))[:limit]
    return [tried.record(address_text(key)) for key, tried in most]


class _Tried:
    """The tries of one host, over all its minutes."""

    def __init__(self) -> None:
        self._without_payload = self._below_min_packets = 0
        self._ports: set[int] = set()
        self._peers: set[bytes] = set()
        self._more = False
        self._minutes: list[int] = []

    @property
    def flows(self) -> int:
        """All of them."""
        return self._without_payload + self._below_min_packets

    def add(self, row: Any) -> None:
        """Add a minute."""
        self._without_payload += row["without_payload"]
        self._below_min_packets += row["below_min_packets"]
        self._minutes = [min([row["minute_us"], *self._minutes]), max([row["minute_us"], *self._minutes])]
        self._more |= row["more"]
        if max(len(self._ports), len(self._peers)) >= MAX_PLACES_TOLD:
            self._more = True
            return
        self._ports.update(unpack_ports(row["ports"]))
        self._peers |= split_keys(row["peers"])

    def record(self, host: str) -> Unclassified:
        """What is told of it."""
        return Unclassified(
            host=host,
            without_payload=self._without_payload,
            below_min_packets=self._below_min_packets,
            ports=len(self._ports),
            peers=len(self._peers),
            more=self._more,
            some_ports=sorted(self._ports)[:SHOWN_PLACES],
            some_peers=[address_text(peer) for peer in sorted(self._peers)[:SHOWN_PLACES]],
            first_seen_us=self._minutes[0],
            last_seen_us=self._minutes[1],
        )
