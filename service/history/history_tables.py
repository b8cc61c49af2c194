"""The tables of the history in the terms of SQLAlchemy, for SQLite and PostgreSQL alike, and what is kept in them."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
)

SCHEMA_VERSION = 3
"""Of the tables. A database of version 1 has no alerts, one of version 2 does not say who acknowledged one; each is
brought to this version when a service opens it. One of another is refused."""

metadata = MetaData()

about = Table(
    "tapline_history",
    metadata,
    Column("schema_version", Integer, nullable=False),
)
"""One row, by which a history is known."""

_NUMBER = BigInteger().with_variant(Integer(), "sqlite")  # SQLite's row number is an INTEGER, which has 64 bits there


def _verdict_columns() -> list[Column[object]]:
    return [
        Column("source", Text, nullable=False),
        Column("label", Text, nullable=False),
        Column("nearest", Text, nullable=False),
        Column("confidence", Double, nullable=False),
        Column("unknown", Boolean, nullable=False),
        Column("alternatives", Text, nullable=False),
        Column("model", Text, nullable=False),
        Column("version", Text, nullable=False),
        Column("final", Boolean, nullable=False),
    ]


flows = Table(
    "flows",
    metadata,
    Column("number", _NUMBER, primary_key=True, autoincrement=True),
    Column("seen_us", BigInteger, nullable=False),
    *_verdict_columns(),
    Column("port_label", Text),
    Column("unexpected_port", Boolean),
    Column("sensor", Text, nullable=False),
    Column("uid", Text, nullable=False),
    Column("start_us", BigInteger, nullable=False),
    Column("duration_us", BigInteger, nullable=False),
    Column("proto", Text, nullable=False),
    Column("orig_key", LargeBinary, nullable=False),
    Column("orig_p", Integer, nullable=False),
    Column("resp_key", LargeBinary, nullable=False),
    Column("resp_p", Integer, nullable=False),
    Column("up", BigInteger, nullable=False),
    Column("down", BigInteger, nullable=False),
    Column("orig_pkts", BigInteger, nullable=False),
    Column("resp_pkts", BigInteger, nullable=False),
    Column("orig_ip_bytes", BigInteger, nullable=False),
    Column("resp_ip_bytes", BigInteger, nullable=False),
    Column("ip_bytes", BigInteger, nullable=False),
    Column("service", Text, nullable=False),
    Column("conn_state", Text, nullable=False),
    Column("server_name", Text, nullable=False),
    Column("payload_lengths", LargeBinary, nullable=False),
    Column("orig_bytes", LargeBinary, nullable=False),
    Column("resp_bytes", LargeBinary, nullable=False),
    sqlite_autoincrement=True,  # a number is never given twice
)
"""A verdict on a flow a row. `number` rises with `seen_us`; `port_label` "" where the port says nothing, NULL where the
model knows no ports."""

Index("flows_seen", flows.c.seen_us)
Index("flows_uid", flows.c.uid)
Index("flows_early", flows.c.uid, sqlite_where=flows.c.final.is_(False), postgresql_where=flows.c.final.is_(False))
Index("flows_orig", flows.c.orig_key, flows.c.number)
Index("flows_resp", flows.c.resp_key, flows.c.number)
Index("flows_port", flows.c.resp_p, flows.c.number)
Index("flows_label", flows.c.label, flows.c.number)
Index(
    "flows_unexpected",
    flows.c.number,
    sqlite_where=flows.c.unexpected_port.is_(True),
    postgresql_where=flows.c.unexpected_port.is_(True),
)

traces = Table(
    "traces",
    metadata,
    Column("number", _NUMBER, primary_key=True, autoincrement=True),
    Column("seen_us", BigInteger, nullable=False),
    *_verdict_columns(),
    Column("subject_kind", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("subject_key", LargeBinary),
    Column("start_us", BigInteger, nullable=False),
    Column("end_us", BigInteger, nullable=False),
    Column("flows", BigInteger, nullable=False),
    Column("cut", BigInteger, nullable=False),
    Column("suspicion", Double),
    Column("suspicious", Boolean),
    Column("top_flows", Text, nullable=False),
    sqlite_autoincrement=True,
)
"""A verdict on a trace a row. `subject` in lower case; `subject_key` where it is an address."""

Index("traces_seen", traces.c.seen_us)
Index("traces_subject", traces.c.subject, traces.c.number)
Index(
    "traces_early", traces.c.subject, sqlite_where=traces.c.final.is_(False), postgresql_where=traces.c.final.is_(False)
)
Index("traces_host", traces.c.subject_key, traces.c.number)
Index("traces_label", traces.c.label, traces.c.number)
Index(
    "traces_suspicious",
    traces.c.number,
    sqlite_where=traces.c.suspicious.is_(True),
    postgresql_where=traces.c.suspicious.is_(True),
)

minutes = Table(
    "minutes",
    metadata,
    Column("minute_us", BigInteger, nullable=False),
    Column("is_trace", Boolean, nullable=False),
    Column("label", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("sensor", Text, nullable=False),
    Column("count", BigInteger, nullable=False),
    Column("ip_bytes", BigInteger, nullable=False),
    PrimaryKeyConstraint("minute_us", "is_trace", "label", "model", "sensor"),
    sqlite_with_rowid=False,
)
"""How many verdicts a minute had, each flow and each window counted once. `sensor` is "" of traces."""

tries = Table(
    "tries",
    metadata,
    Column("minute_us", BigInteger, nullable=False),
    Column("orig_key", LargeBinary, nullable=False),
    Column("source", Text, nullable=False),
    Column("sensor", Text, nullable=False),
    Column("without_payload", BigInteger, nullable=False),
    Column("below_min_packets", BigInteger, nullable=False),
    Column("ports", LargeBinary, nullable=False),
    Column("peers", LargeBinary, nullable=False),
    Column("more", Boolean, nullable=False),
    PrimaryKeyConstraint("minute_us", "orig_key", "source", "sensor"),
)
"""Flows of an originator that could get no verdict, by minute. `ports` and `peers` are sets, packed; `more`: there were
more of them than are kept."""

Index("tries_orig", tries.c.orig_key, tries.c.minute_us)

alerts = Table(
    "alerts",
    metadata,
    Column("number", _NUMBER, primary_key=True, autoincrement=True),
    Column("seen_us", BigInteger, nullable=False),
    Column("id", Text, nullable=False),
    Column("rule", Text, nullable=False),
    Column("severity", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("label", Text, nullable=False),
    Column("uid", Text, nullable=False),
    Column("orig_key", LargeBinary),
    Column("resp_key", LargeBinary),
    Column("subject_key", LargeBinary),
    Column("acknowledged_us", BigInteger),
    Column("acknowledged_by", Text),
    Column("record", Text, nullable=False),
    sqlite_autoincrement=True,
)
"""An alert a row; `record` is all of it as JSON, the columns what is asked for. NULL keys are of what it has no address
for. `acknowledged_us` and `acknowledged_by` are NULL until somebody has seen to it; the second also where a service of
an earlier version noted it."""

Index("alerts_seen", alerts.c.seen_us)
Index("alerts_id", alerts.c.id)
Index("alerts_orig", alerts.c.orig_key, alerts.c.number)
Index("alerts_resp", alerts.c.resp_key, alerts.c.number)
Index("alerts_host", alerts.c.subject_key, alerts.c.number)

ADDED_TABLES = {2: (alerts,)}
"""By version the tables that it has more than the one before, as they are made now."""

ADDED_COLUMNS = {3: (alerts.c.acknowledged_by,)}
"""By version the columns, which may be NULL, that it has more than the one before in tables that were there."""
