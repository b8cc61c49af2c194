"""Alerts are kept, found by each filter, seen to, and deleted with the rest; a history of version 1 gets a table."""

import asyncio
import shutil
import time
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest
import sqlalchemy as sql

from tapline.service.alerts.alert import Alert
from tapline.service.history.database import Database
from tapline.service.history.export import rows
from tapline.service.history.filters import AlertFilter
from tapline.service.history.history_tables import about, alerts
from tapline.service.history.matches import alert_matches
from tapline.service.history.retention import Retention
from tests.paths import DATA
from tests.service.history.kept import BUS, flow, running, settled, verdict
from tests.service.history.test_history import VARIED, ask, uids

DAY_US = 86_400_000_000
VERSION_1 = DATA / "history" / "version-1.db"
VERSION_1_POSTGRESQL = DATA / "history" / "version-1.postgresql.sql"


def alert(identifier="a1", **fields):
    """An alert on a flow."""
    return Alert(
        **{
            "id": identifier, "time_us": 1_700_000_000_000_000, "rule": "ssh-elsewhere", "severity": "medium",
            "kind": "flow", "message": "SSH on port 443", "model": "random", "version": "1", "label": "ssh",
            "uid": "C1", "orig_h": "10.0.0.5", "orig_p": 40_000, "resp_h": "192.0.2.1", "resp_p": 443, **fields,
        }
    )  # fmt: skip


def host_alert(identifier, subject, **fields):
    """An alert on a trace."""
    ends = dict.fromkeys(("uid", "orig_h", "resp_h"), "") | dict.fromkeys(("orig_p", "resp_p"))
    return alert(identifier, **{"kind": "trace", "subject": subject, **ends, **fields})


ALERTS = [
    alert("a", severity="low", confidence=0.5),
    alert("b", severity="high", rule="scan", kind="rate", label="", uid="C2", orig_h="2001:db8::1", matches=40),
    host_alert("c", "10.0.1.7", severity="critical", rule="malware", label="trickbot", top_uids=["C1", "C\0"]),
    host_alert("d", "00:17:88:01:02:03", rule="a new device", label="unknown", unknown=True, model="devices"),
    host_alert("e", "", kind="drift", rule="drift", reason="labels", severity="low", label=""),
]


async def keep(found, *given):
    for one in given:
        found.alert(one)
    await settled(found)


def ids(page):
    return "".join(one.id for one in page.items)


def test_every_field_of_an_alert_comes_back(place):
    async def body(history):
        await keep(history, *ALERTS)
        return (await history.alerts(ascending=True)).items

    before = time.time_ns() // 1000
    found = ask(place, body)
    assert [msgspec.convert(msgspec.to_builtins(one), Alert) for one in found] == ALERTS
    assert all(before <= one.seen_us <= time.time_ns() // 1000 and one.acknowledged_us is None for one in found)
    assert [one.number for one in found] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, "abcde"),
        ({"severity": "low"}, "abcde"),
        ({"severity": "medium"}, "bcd"),
        ({"severity": "critical"}, "c"),
        ({"rule": "scan"}, "b"),
        ({"kind": "trace"}, "cd"),
        ({"kind": "drift"}, "e"),
        ({"host": "10.0.0.0/8"}, "ac"),
        ({"host": "192.0.2.1"}, "ab"),
        ({"host": "2001:db8::/32"}, "b"),
        ({"host": "10.0.0.5", "severity": "high"}, ""),
        ({"label": "unknown"}, "d"),
        ({"model": "random", "severity": "high"}, "bc"),
        ({"uid": "C2"}, "b"),
    ],
)
def test_alerts_are_found_by_each_filter_here_and_in_the_stream(place, asked, expected):
    wanted = AlertFilter(**asked)

    async def body(history):
        await keep(history, *ALERTS)
        return await history.alerts(wanted, ascending=True), await history.alert_counts(wanted)

    found, counts = ask(place, body)
    assert ids(found) == expected
    assert "".join(one.id for one in ALERTS if alert_matches(wanted, one)) == expected
    assert sum(counts.values()) == len(expected)
    assert counts.get("critical", 0) == ("c" in expected)


def test_pages_hold_every_alert_once_and_times_are_those_at_which_they_came(place):
    async def body(history):
        await keep(history, *ALERTS)
        found, cursor = "", None
        while True:
            page = await history.alerts(limit=2, cursor=cursor)
            found += ids(page)
            cursor = page.next
            if cursor is None:
                break
        later = time.time_ns() // 1000 + 1
        assert ids(await history.alerts(AlertFilter(since_us=later))) == ""
        assert len((await history.alerts(AlertFilter(until_us=later))).items) == len(ALERTS)
        return found

    assert ask(place, body) == "edcba"


def test_an_alert_is_seen_to_once(place):
    async def body(history):
        await keep(history, *ALERTS)
        assert await history.acknowledge("b")
        await settled(history)
        (first,) = (await history.alerts(AlertFilter(acknowledged=True))).items
        assert await history.acknowledge("b")
        assert not await history.acknowledge("nobody's")
        await settled(history)
        (again,) = (await history.alerts(AlertFilter(acknowledged=True))).items
        assert first == again
        assert first.seen_us <= first.acknowledged_us <= time.time_ns() // 1000
        return await history.alerts(AlertFilter(acknowledged=False), ascending=True)

    assert ids(ask(place, body)) == "acde"


def test_alerts_are_deleted_by_age(place):
    ask(place, lambda history: keep(history, *ALERTS))
    database = Database(place, DATA)
    try:
        with database.engine.begin() as connection:
            older = sql.update(alerts).where(alerts.c.id.in_(["a", "d"]))
            connection.execute(older.values(seen_us=alerts.c.seen_us - 2 * DAY_US))
        Retention(database, days=1, size_bytes=1 << 30).step()
        with database.reading(10) as connection:
            left = connection.execute(sql.select(alerts.c.id).order_by(alerts.c.number)).scalars().all()
    finally:
        database.close()
    assert left == ["b", "c", "e"]


def old_history(place):
    """Put a history that tapline wrote when histories had no alerts where `place` is."""
    database = Database(place, DATA)
    if database.is_sqlite:
        shutil.copy(VERSION_1, database.engine.url.database)
    else:
        with database.engine.begin() as connection:
            connection.exec_driver_sql(VERSION_1_POSTGRESQL.read_text().replace("%", "%%"))
    database.close()


def test_a_history_of_version_1_keeps_all_and_gets_alerts(place):
    old_history(place)

    async def body(history):
        before = await history.flows(ascending=True)
        traces, tries = await history.traces(), await history.unclassified()
        history.flow(BUS, flow("new"), verdict())
        await keep(history, *ALERTS)
        return before, traces, tries, await history.flows(), await history.alerts()

    before, traces, tries, after, kept = ask(place, body)
    assert uids(before) == ["a", "b", "c", "d", "e"]
    assert [(found.uid, found.verdict) for found in before.items] == [(one.uid, said) for one, said in VARIED]
    assert (len(traces.items), traces.items[0].suspicious, len(tries)) == (1, True, 1)
    assert (uids(after)[0], after.items[0].number) == ("new", 6)
    assert ids(kept) == "edcba"
    assert ids(ask(place, lambda history: history.alerts())) == "edcba"  # and stays so


def schema(database):
    """The columns and indexes of every table."""
    with database.engine.connect() as connection:
        found = sql.inspect(connection)
        return {
            name: (
                sorted((column["name"], str(column["type"]), column["nullable"]) for column in found.get_columns(name)),
                sorted(each["name"] for each in found.get_indexes(name)),
            )
            for name in found.get_table_names()
        }


def test_what_was_migrated_is_what_is_made_anew(place, tmp_path, request):
    old_history(place)
    new = f"sqlite:///{tmp_path / 'new.db'}"
    if not place.startswith("sqlite"):
        new = request.getfixturevalue("postgres_server").database()
    found = []
    for each in (place, new):
        database = Database(each, tmp_path)
        database.open()
        found.append(schema(database))
        database.close()
    assert found[0] == found[1]
    assert "alerts" in found[0]


def test_who_only_reads_leaves_a_history_of_version_1_as_it_is(place):
    old_history(place)
    database = Database(place, DATA)
    database.open(create=False)
    assert not database.has(alerts)
    with database.reading(10) as connection:
        assert database.used_bytes(connection) > 0
        assert connection.execute(sql.select(about.c.schema_version)).scalar() == 1
    assert "alerts" not in schema(database)
    database.close()


def test_a_migration_that_fails_leaves_version_1(place):
    """All or nothing: a full disk, or a kill, half way."""
    old_history(place)
    database = Database(place, DATA)

    def full(connection, cursor, statement, *_):
        if statement.startswith("UPDATE"):  # the last thing that it does
            raise RuntimeError("disk is full")

    sql.event.listen(database.unpooled, "before_cursor_execute", full)
    with pytest.raises(RuntimeError):
        database.open()
    sql.event.remove(database.unpooled, "before_cursor_execute", full)
    assert "alerts" not in schema(database)
    database.open()
    assert "alerts" in schema(database)
    database.close()


def test_services_that_start_together_migrate_it_once(place):
    if place.startswith("sqlite"):
        pytest.skip("a file has one service")
    old_history(place)
    databases = [Database(place, DATA) for _ in range(4)]
    with ThreadPoolExecutor(len(databases)) as threads:
        list(threads.map(Database.open, databases))
    assert [each.version for each in databases] == [2] * 4
    assert "alerts" in schema(databases[0])
    for each in databases:
        each.close()


def test_alerts_are_exported(place):
    async def main():
        async with running(place) as found:
            await keep(found, *ALERTS)

    asyncio.run(main())
    database = Database(place, DATA)
    database.open(create=False)
    found = list(rows(database, AlertFilter(severity="high")))
    database.close()
    assert [(row["id"], row["rule"], row["top_uids"]) for row in found] == [
        ("b", "scan", []),
        ("c", "malware", ["C1", "C\0"]),
    ]
