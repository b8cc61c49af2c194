"""Histories that earlier tapline wrote: brought to this version with all that is in them, or read as they are."""

import asyncio
import re
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sql

from tapline.service.history.database import Database
from tapline.service.history.export import records
from tapline.service.history.filters import AlertFilter, FlowFilter
from tapline.service.history.history_tables import SCHEMA_VERSION, about, alerts
from tests.paths import DATA, ROOT
from tests.service.history.kept import BUS, flow, running, settled, until, verdict
from tests.service.history.test_alerts import ALERTS, ids, keep
from tests.service.history.test_history import VARIED, ask, uids, uids_of

OLD = (1, 2)
EVER = {"days": 36_500}
"""What was written long ago is not deleted for its age."""

SEEN_TO_OF_2 = "b"
"""The alert that somebody had seen to when it was not kept who."""


def file_of(version):
    """A file that a tapline of this version wrote: `VARIED`, a trace, tries, and `ALERTS` where it could keep them."""
    return DATA / "history" / f"version-{version}.db"


def old_history(place, version):
    """Put such a history where `place` is."""
    database = Database(place, DATA)
    if database.is_sqlite:
        shutil.copy(file_of(version), database.engine.url.database)
    else:
        dump = (DATA / "history" / f"version-{version}.postgresql.sql").read_text()
        with database.engine.begin() as connection:
            connection.exec_driver_sql(dump.replace("%", "%%"))
    database.close()


@pytest.mark.parametrize("version", OLD)
def test_an_old_history_keeps_all_and_gets_what_it_lacks(place, version):
    old_history(place, version)
    new = [one for one in ALERTS if version == 1 or one.id == "a"]  # those that no version before could keep, and one

    async def body(history):
        flows, kept = await history.flows(ascending=True), await history.alerts(ascending=True)
        traces, tries = await history.traces(), await history.unclassified()
        history.flow(BUS, flow("new"), verdict())
        await keep(history, *new)
        assert await history.acknowledge("c", "anna")
        await settled(history)
        return flows, traces, tries, kept, await history.flows(), await history.alerts()

    flows, traces, tries, kept, flows_after, alerts_after = ask(place, body, **EVER)
    assert uids(flows) == ["a", "b", "c", "d", "e"]
    assert [(found.uid, found.verdict) for found in flows.items] == [(one.uid, said) for one, said in VARIED]
    assert (len(traces.items), traces.items[0].suspicious, len(tries)) == (1, True, 1)
    assert (uids(flows_after)[0], flows_after.items[0].number) == ("new", 6)
    assert ids(kept) == ("" if version == 1 else "abcde")
    assert [one.message for one in kept.items] == [one.message for one in ALERTS][: len(kept.items)]
    assert ids(alerts_after) == ("edcba" if version == 1 else "aedcba")
    seen_to = {one.id: one.acknowledged_by for one in alerts_after.items if one.acknowledged_us is not None}
    assert seen_to == {"c": "anna"} | ({SEEN_TO_OF_2: None} if version == 2 else {})
    again = ask(place, lambda history: history.alerts(), **EVER)
    assert again == alerts_after  # and stays so


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


def columns_of_alerts(database):
    """Their names, none where there is no table of alerts."""
    return {name for name, *_ in schema(database).get("alerts", [()])[0]}


@pytest.mark.parametrize("version", OLD)
def test_what_was_migrated_is_what_is_made_anew(place, version, tmp_path, request):
    old_history(place, version)
    new = f"sqlite:///{tmp_path / 'new.db'}"
    if not place.startswith("sqlite"):
        new = request.getfixturevalue("postgres_server").database()
    found = []
    for each in (place, new):
        database = Database(each, tmp_path)
        database.open()
        found.append(schema(database))
        with database.engine.connect() as connection:
            assert connection.execute(sql.select(about.c.schema_version)).scalars().all() == [SCHEMA_VERSION]
        database.close()
    assert found[0] == found[1]
    assert ("acknowledged_by", "TEXT", True) in found[0]["alerts"][0]


@pytest.mark.parametrize("version", OLD)
def test_who_only_reads_leaves_an_old_history_as_it_is(place, version):
    old_history(place, version)
    database = Database(place, DATA)
    before = schema(database)
    database.open(create=False)
    assert database.has(alerts) == (version > 1)
    with database.reading(10) as connection:
        assert database.used_bytes(connection) > 0
        assert connection.execute(sql.select(about.c.schema_version)).scalar() == version
    assert uids_of(records(database, FlowFilter())) == ["a", "b", "c", "d", "e"]
    if database.has(alerts):
        found = {
            one.id: (one.acknowledged_us is not None, one.acknowledged_by) for one in records(database, AlertFilter())
        }
        assert found == {one.id: (one.id == SEEN_TO_OF_2, None) for one in ALERTS}
        assert [one.id for one in records(database, AlertFilter(acknowledged=True))] == [SEEN_TO_OF_2]
        assert [one.id for one in records(database, AlertFilter(host="10.0.0.0/8"))] == ["a", "c"]
    assert schema(database) == before
    assert "acknowledged_by" not in columns_of_alerts(database)
    database.close()


@pytest.mark.parametrize("version", OLD)
def test_a_migration_that_fails_leaves_the_old_version(place, version):
    """All or nothing: a full disk, or a kill, half way."""
    old_history(place, version)
    database = Database(place, DATA)
    before = schema(database)

    def full(connection, cursor, statement, *_):
        if statement.startswith("UPDATE"):  # the last thing that it does
            raise RuntimeError("disk is full")

    sql.event.listen(database.unpooled, "before_cursor_execute", full)
    with pytest.raises(RuntimeError):
        database.open()
    sql.event.remove(database.unpooled, "before_cursor_execute", full)
    assert schema(database) == before
    database.open()
    assert "acknowledged_by" in columns_of_alerts(database)
    database.close()


@pytest.mark.parametrize("version", OLD)
def test_services_that_start_together_migrate_it_once(place, version):
    if place.startswith("sqlite"):
        pytest.skip("a file has one service")
    old_history(place, version)
    databases = [Database(place, DATA) for _ in range(4)]
    with ThreadPoolExecutor(len(databases)) as threads:
        list(threads.map(Database.open, databases))
    assert [each.version for each in databases] == [SCHEMA_VERSION] * 4
    assert "acknowledged_by" in columns_of_alerts(databases[0])
    for each in databases:
        each.close()


BEFORE_3 = {
    "insert": "INSERT INTO alerts (seen_us, id, rule, severity, kind, model, label, uid, record) "
    "SELECT seen_us, 'late', rule, severity, kind, model, label, uid, record FROM alerts WHERE id = 'a'",
    "note": "UPDATE alerts SET acknowledged_us = 5 WHERE id = 'late' AND acknowledged_us IS NULL",
    "read": "SELECT number, seen_us, id, acknowledged_us, record FROM alerts ORDER BY number",
}
"""What a service of version 2 says to the database: it names the columns that it knows."""


def test_a_service_of_version_2_goes_on_beside_one_that_migrates(place):
    """On one connection, before and after; who it says has seen to an alert stays unknown."""
    if place.startswith("sqlite"):
        pytest.skip("a file has one service")
    old_history(place, 2)
    older = sql.create_engine(place)

    async def body(history):
        with older.begin() as connection:
            for _ in range(8):  # psycopg prepares what comes so often
                assert len(connection.exec_driver_sql(BEFORE_3["read"]).all()) == len(ALERTS) + 1
            connection.exec_driver_sql(BEFORE_3["note"])
        await history.acknowledge("late", "anna")
        await settled(history)
        return (await history.alerts(AlertFilter(acknowledged=True))).items[0]

    with older.begin() as connection:
        for _ in range(8):
            assert len(connection.exec_driver_sql(BEFORE_3["read"]).all()) == len(ALERTS)
    Database(place, DATA).open()
    with older.begin() as connection:
        connection.exec_driver_sql(BEFORE_3["insert"])
    late = ask(place, body, **EVER)
    older.dispose()
    assert (late.number, late.acknowledged_us, late.acknowledged_by) == (len(ALERTS) + 1, 5, None)


def test_a_migration_does_not_hold_up_who_reads(place):
    """A table that somebody reads for long, as `pg_dump`, is not waited for: it is told, and tried again."""
    if place.startswith("sqlite"):
        pytest.skip("SQLite's readers hold up no writer")
    old_history(place, 2)
    reader = sql.create_engine(place, connect_args={"options": "-c idle_in_transaction_session_timeout=20s"})

    async def main():
        with reader.connect() as connection:
            connection.exec_driver_sql("SELECT count(*) FROM alerts")  # until the transaction ends
            async with running(place, **EVER) as history:
                assert "cannot be opened: canceling statement due to lock timeout" in history.problem
                assert connection.exec_driver_sql("SELECT count(*) FROM alerts").scalar() == len(ALERTS)
                connection.rollback()
                await until(lambda: history.problem is None)
                return await history.alerts()

    assert ids(asyncio.run(main())) == "edcba"
    reader.dispose()


def test_the_way_back_that_is_documented_is_one(place, tmp_path):
    """The page's statement, and a number, make of this version the one before, as that made it."""
    page = (ROOT / "docs" / "operations.md").read_text()
    [statement] = re.findall(r"`(ALTER TABLE [^`]*)`", page)
    old_history(place, SCHEMA_VERSION - 1)
    database = Database(place, tmp_path)
    before = schema(database)
    database.open()
    assert schema(database) != before
    with database.engine.begin() as connection:
        connection.exec_driver_sql(statement)
        connection.exec_driver_sql(f"UPDATE tapline_history SET schema_version = {SCHEMA_VERSION - 1}")
    assert schema(database) == before
    database.open(create=False)
    assert [one.id for one in records(database, AlertFilter())] == [one.id for one in ALERTS]
    database.close()
