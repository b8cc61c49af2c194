"""What befalls the history costs the history: verdicts go on, what cannot be kept is counted, and it recovers."""

import asyncio
import contextlib
import os
import random
import sqlite3
import subprocess
import sys
import threading
import time

import pytest
import sqlalchemy as sql

from tapline.service.history.database import Database
from tapline.service.history.history_errors import HistoryBusyError, HistoryError, SlowQueryError
from tapline.service.history.retention import Retention
from tapline.service.metrics import Metrics
from tests.service.history.kept import BUS, flow, history, running, settled, until, verdict
from tests.service.history.test_history import ask, keep, uids

ENDLESS = sql.text("WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT count(*) FROM c")


@contextlib.contextmanager
def small_disk(folder):
    """A file system of 4 MiB."""
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], capture_output=True, check=False)
    if made.returncode:
        pytest.skip("a file system cannot be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def is_whole(path):
    with contextlib.closing(sqlite3.connect(path)) as database:
        return database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def give(history, start, count):
    for number in range(start, start + count):
        history.flow(BUS, flow(f"C{number}", payload_lengths=[1000] * 200), verdict())


def test_a_full_disk_costs_what_does_not_fit_until_there_is_room(tmp_path, monkeypatch):
    monkeypatch.setattr("tapline.service.history.history_writer.MAX_PENDING", 300)

    async def body(folder):
        ballast = folder / "ballast"
        ballast.write_bytes(bytes(2 << 20))
        async with running(f"sqlite:///{folder / 'history.db'}") as history:
            given = 0
            while not history.problem:
                give(history, given, 100)
                given += 100
                await until(lambda: history.problem or not history.counts.pending)
            assert "full" in history.problem
            give(history, given, 1000)
            given += 1000
            counts = history.counts
            assert counts.shed > 0
            assert counts.kept + counts.shed + counts.pending == given
            assert len((await history.flows(limit=10)).items) == 10  # what is kept can still be asked for
            ballast.unlink()
            await settled(history)
            assert history.problem is None
            assert counts.kept + counts.shed == given
            return counts.kept, await history.count_flows(at_most=10**6)

    with small_disk(tmp_path / "disk") as folder:
        kept, found = asyncio.run(body(folder))
        assert kept == found
        assert is_whole(folder / "history.db")


def test_a_service_starts_where_the_disk_is_full(tmp_path):
    with small_disk(tmp_path / "disk") as folder:
        (folder / "ballast").write_bytes(bytes((4 << 20) - 8192))

        async def body():
            async with running(f"sqlite:///{folder / 'history.db'}") as history:
                assert history.problem
                give(history, 0, 5)
                with pytest.raises(HistoryBusyError):
                    await history.flows()
                (folder / "ballast").unlink()
                await settled(history)
                return history.problem, uids(await history.flows())

        assert asyncio.run(body()) == (None, ["C4", "C3", "C2", "C1", "C0"])


def test_a_slow_disk_costs_what_there_is_no_room_for_in_memory(place, monkeypatch):
    """A stand-in for a disk that takes long: the write waits."""
    monkeypatch.setattr("tapline.service.history.history_writer.MAX_PENDING", 50)
    gate = threading.Event()

    async def body(history):
        insert = history._database.insert_rows

        def slow(*arguments):
            assert gate.wait(60)
            insert(*arguments)

        history._database.insert_rows = slow
        give(history, 0, 80)
        assert (history.counts.pending, history.counts.shed) == (50, 30)
        gate.set()
        await settled(history)
        give(history, 80, 10)
        await settled(history)
        return history.counts.kept, history.counts.shed, await history.count_flows()

    assert ask(place, body) == (60, 30, 60)


def test_memory_is_bounded_by_bytes_too(place, monkeypatch):
    monkeypatch.setattr("tapline.service.history.history_writer.MAX_PENDING_BYTES", 100_000)
    found = history(place)  # whose writer does not run
    give(found, 0, 1000)
    assert 5 < found.counts.pending < 100_000 // 1500
    assert found.counts.pending + found.counts.shed == 1000
    asyncio.run(found.stop(0))
    assert (found.counts.pending, found.counts.shed) == (found.counts.pending, 1000 - found.counts.pending)


def test_what_waits_is_written_at_the_end(place):
    async def give_all(history):
        give(history, 0, 500)

    ask(place, give_all)
    assert ask(place, lambda history: history.count_flows()) == 500


def test_a_question_that_takes_too_long_is_given_up(place, monkeypatch):
    monkeypatch.setattr("tapline.service.history.history.QUERY_SECONDS", 0.5)

    async def body(history):
        with pytest.raises(SlowQueryError, match="ask for less time"):
            await history._ask(lambda connection: connection.execute(ENDLESS))
        monkeypatch.setattr("tapline.service.history.history.QUERY_SECONDS", 30)
        await keep(history, (flow("a"), verdict()))
        return uids(await history.flows())

    assert ask(place, body) == ["a"]


def test_slow_questions_hold_nobody_up(place):
    gate = threading.Event()

    async def body(history):
        slow = [asyncio.create_task(history._ask(lambda connection: gate.wait(60))) for _ in range(3)]
        await keep(history, (flow("a"), verdict()))
        found = uids(await history.flows())
        assert not any(task.done() for task in slow)
        gate.set()
        return found, await asyncio.gather(*slow)

    assert ask(place, body) == (["a"], [True] * 3)


def test_more_questions_than_can_wait_are_refused(place, monkeypatch):
    monkeypatch.setattr("tapline.service.history.history.MAX_ASKED", 6)
    monkeypatch.setattr("tapline.service.history.history.QUERY_SECONDS", 0.5)

    async def body(history):
        tasks = [asyncio.create_task(history._ask(lambda connection: connection.execute(ENDLESS))) for _ in range(8)]
        found = await asyncio.gather(*tasks, return_exceptions=True)
        return [type(error) for error in found], uids(await history.flows())

    assert ask(place, body) == ([SlowQueryError] * 6 + [HistoryBusyError] * 2, [])


@pytest.mark.postgres
def test_a_server_that_goes_away_costs_nothing_where_it_comes_back(postgres_server):
    async def body(history):
        await keep(history, (flow("a"), verdict()))
        await asyncio.to_thread(postgres_server.stop)
        give(history, 0, 5)
        await until(lambda: history.problem)
        with pytest.raises(HistoryBusyError):
            await history.flows()
        await asyncio.to_thread(postgres_server.start)
        await settled(history)
        return history.problem, uids(await history.flows(ascending=True))

    assert ask(postgres_server.database(), body) == (None, ["a", "C0", "C1", "C2", "C3", "C4"])


@pytest.mark.parametrize("is_committed", [True, False])
def test_a_commit_whose_answer_is_lost_keeps_each_record_once(place, monkeypatch, is_committed):
    if place.startswith("sqlite"):
        pytest.skip("a file says how a commit ended")
    lost = []

    async def body(history):
        dialect = history._database.engine.dialect
        commit = type(dialect).do_commit

        def break_away(dialect, connection):
            if is_committed or lost:
                commit(dialect, connection)
            if not lost:
                lost.append(1)
                connection.driver_connection.close()
                raise dialect.loaded_dbapi.OperationalError("server closed the connection unexpectedly")

        await keep(history, (flow("before"), verdict()))
        monkeypatch.setattr(type(dialect), "do_commit", break_away)
        give(history, 0, 20)
        await settled(history)
        return uids(await history.flows(ascending=True)), history.counts.kept, history.problem

    found, kept, problem = ask(place, body)
    assert lost == [1]
    assert (found, kept, problem) == (["before", *(f"C{number}" for number in range(20))], 21, None)


def test_two_services_share_a_server(place):
    if place.startswith("sqlite"):
        pytest.skip("a file has one service")

    async def body():
        async with running(place) as one, running(place) as other:
            for number in range(50):
                give(one, number, 1)
                give(other, 100 + number, 1)
            await settled(one)
            await settled(other)
            now = time.time_ns() // 1000
            points = await one.series(now - 3600 * 10**6, now + 10**6, 60)
            failed = one.counts.failed + other.counts.failed
            recent = await one.recent_sensors()
            return await one.count_flows(), sum(point.count for point in points), failed, recent

    assert asyncio.run(body()) == (100, 100, 0, {"gate": 100})


def test_two_services_add_to_what_one_host_tried(place):
    """A host whose flows are in several shards, as by responder."""
    if place.startswith("sqlite"):
        pytest.skip("a file has one service")

    async def body():
        async with running(place) as one, running(place) as other:
            for number in range(200):
                for each in (one, other):
                    each.flow(BUS, flow(f"C{number}", payload_lengths=[], resp_p=number + 1), None)
                if number % 10 == 0:
                    await asyncio.gather(settled(one), settled(other))
            await asyncio.gather(settled(one), settled(other))
            [host] = await one.unclassified()
            return host.without_payload, host.ports

    assert asyncio.run(body()) == (400, 200)


def test_of_two_services_one_deletes_at_a_time(place, tmp_path, monkeypatch):
    if place.startswith("sqlite"):
        pytest.skip("a file has one service")
    ask(place, lambda history: keep(history, (flow("a"), verdict())))
    one, other = Database(place, tmp_path), Database(place, tmp_path)
    monkeypatch.setattr("time.time_ns", lambda: 4_000_000_000 * 10**9)  # long after

    def count():
        with one.engine.connect() as connection:
            return connection.execute(sql.text("SELECT count(*) FROM flows")).scalar()

    try:
        with other.engine.begin() as connection:
            assert other.may_delete(connection)
            assert Retention(one, days=1, size_bytes=1 << 30).step() is False
            assert count() == 1
        Retention(one, days=1, size_bytes=1 << 30).step()
        assert count() == 0
    finally:
        one.close()
        other.close()


class TestRetention:
    def at(self, monkeypatch, days):
        monkeypatch.setattr("time.time_ns", lambda: round(days * 86_400 * 10**9))

    def test_what_is_too_old_goes_and_counts_by_minute_stay(self, place, monkeypatch):
        monkeypatch.setattr("tapline.service.history.history_writer.TRIM_SECONDS", 0.0)
        monkeypatch.setattr("tapline.service.history.retention.TRIM_ROWS", 7)

        async def body(history):
            self.at(monkeypatch, 1000)
            await keep(history, *((flow(f"a{number}"), verdict()) for number in range(30)))
            await keep(history, (flow("s", payload_lengths=[]), None))
            self.at(monkeypatch, 1009)
            await keep(history, (flow("b"), verdict()))
            both = await history.count_flows(), len(await history.unclassified())
            self.at(monkeypatch, 1011)
            while await history.count_flows() > 1 or await history.unclassified():
                await asyncio.sleep(0.01)
            left = uids(await history.flows())
            day_us = 86_400 * 10**6
            rolled_up = await history.series(999 * day_us, 1010 * day_us, 86_400)
            self.at(monkeypatch, 1000 + 401)
            while await history.series(999 * day_us, 1001 * day_us, 86_400):
                await asyncio.sleep(0.01)
            return both, left, sum(point.count for point in rolled_up)

        assert ask(place, body, days=10) == ((31, 1), ["b"], 31)

    def test_the_oldest_goes_where_there_is_too_much(self, place, monkeypatch):
        monkeypatch.setattr("tapline.service.history.history_writer.TRIM_SECONDS", 0.0)

        async def body(history):
            for start in range(0, 8000, 1000):
                give(history, start, 1000)
                await settled(history)
            await until(lambda: history.used_bytes < 2 << 20)
            return uids(await history.flows(limit=1, ascending=True)), uids(await history.flows(limit=1))

        (oldest,), (newest,) = ask(place, body, size_mb=2)
        assert newest == "C7999"
        assert 1000 < int(oldest[1:]) < 7900
        ask(place, lambda history: until(lambda: 0 < history.used_bytes < 1 << 20), size_mb=1)
        if place.startswith("sqlite"):
            assert is_whole(place.removeprefix("sqlite:///"))


def test_one_that_nobody_runs_holds_no_connection(place):
    assert history(place)._database.engine.pool.checkedin() == 0


class TestRefused:
    def test_a_history_of_another_version(self, place):
        ask(place, lambda history: settled(history))
        engine = sql.create_engine(place)
        with engine.begin() as connection:
            connection.execute(sql.text("UPDATE tapline_history SET schema_version = 99"))
        engine.dispose()
        with pytest.raises(HistoryError, match="is a history of version 99, and this tapline keeps version 3"):
            history(place)

    def test_a_database_of_something_else_which_stays_as_it_is(self, place):
        engine = sql.create_engine(place)
        with engine.begin() as connection:
            connection.execute(sql.text("CREATE TABLE recipes (name TEXT)"))
        with pytest.raises(HistoryError, match="is not a history: it holds other tables"):
            history(place)
        assert sql.inspect(engine).get_table_names() == ["recipes"]
        if engine.name == "sqlite":
            with engine.connect() as connection:
                assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "delete"
        engine.dispose()

    def test_a_file_that_is_none(self, tmp_path):
        path = tmp_path / "history.db"
        path.write_bytes(b"not a database" * 1000)
        with pytest.raises(HistoryError, match="is not a history: file is not a database"):
            history(f"sqlite:///{path}")

    @pytest.mark.parametrize(
        ("place", "said"),
        [
            ("somewhere", "expected sqlite, none, sqlite:///FILE"),
            ("sqlite://", "expected a file"),
            ("sqlite:////nonexistent/history.db", "/nonexistent is not a directory"),
            ("sqlite:////tmp", "/tmp is a directory"),
            ("mysql://localhost/x", "expected SQLite or PostgreSQL, got mysql"),
            ("postgresql+nodriver://localhost/x", "its driver is not installed"),
            ("nonsense://x", "expected SQLite or PostgreSQL, got nonsense"),
        ],
    )
    def test_a_place_that_is_none(self, place, said):
        with pytest.raises(HistoryError, match=said):
            history(place)


WRITER = """
import asyncio, sys, time
from tests.service.history.kept import BUS, flow, running, verdict

async def main():
    async with running(sys.argv[1]) as history:
        for number in range(10**9):
            history.flow(BUS, flow(f"{sys.argv[2]}-{number}"), verdict())
            if number % 20 == 0:
                print(number, time.time(), flush=True)
                await asyncio.sleep(0.002)

asyncio.run(main())
"""
KILLS = int(os.environ.get("HISTORY_TEST_KILLS", "4"))


@pytest.mark.whole
@pytest.mark.slow
def test_a_kill_at_any_moment_loses_at_most_the_last_second(tmp_path):
    """`HISTORY_TEST_KILLS=200` for a longer loop."""
    path, generator = tmp_path / "history.db", random.Random(16)
    told = tmp_path / "told"
    for round_ in range(KILLS):
        with told.open("wb") as output:
            command = [sys.executable, "-c", WRITER, f"sqlite:///{path}", str(round_)]
            process = subprocess.Popen(command, stdout=output, env={**os.environ, "TAPLINE_HISTORY": "none"})
        deadline = time.monotonic() + 60
        while not told.stat().st_size:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(generator.uniform(0, 3))
        process.kill()
        killed_at = time.time()
        process.wait()
        with sqlite3.connect(path) as database:
            assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            query = "SELECT count(*) FROM flows WHERE uid LIKE ? || '-%'"
            (kept,) = database.execute(query, [round_]).fetchone()
            (counted,) = database.execute("SELECT sum(count) FROM minutes").fetchone() or (0,)
            (rows,) = database.execute("SELECT count(*) FROM flows").fetchone()
        database.close()
        given = [line.split() for line in told.read_text().splitlines(keepends=True) if line.endswith("\n")]
        assert kept >= max((int(number) for number, at in given if float(at) < killed_at - 1.0), default=0)
        assert (counted or 0) == rows  # verdicts and their sums are of one transaction


def test_metrics_tell_of_it(place):
    metrics = Metrics()

    async def body():
        async with running(place) as found:
            found._writer._metrics = metrics
            await keep(found, (flow("a"), verdict()))
            await until(lambda: metrics.registry.get_sample_value("tapline_history_up") == 1)

    asyncio.run(body())
    assert metrics.registry.get_sample_value("tapline_history_records_total", {"outcome": "kept"}) == 1
    assert metrics.registry.get_sample_value("tapline_history_write_seconds_count") >= 1
