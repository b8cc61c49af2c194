"""Alerts are kept, found by each filter, seen to, and deleted with the rest."""

import asyncio
import time

import msgspec
import pytest
import sqlalchemy as sql

from tapline.service.alerts.alert import Alert
from tapline.service.history.database import Database
from tapline.service.history.export import rows
from tapline.service.history.filters import AlertFilter
from tapline.service.history.history_tables import alerts
from tapline.service.history.matches import alert_matches
from tapline.service.history.retention import Retention
from tests.paths import DATA
from tests.service.history.kept import running, settled
from tests.service.history.test_history import ask

DAY_US = 86_400_000_000


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


def test_who_sees_to_an_alert_first_stays(place):
    async def body(history):
        await keep(history, *ALERTS)
        assert await history.acknowledge("b", "anna")
        await settled(history)
        (first,) = (await history.alerts(AlertFilter(acknowledged=True))).items
        assert await history.acknowledge("b", "bert")
        assert await history.acknowledge("c", "bert")
        assert await history.acknowledge("c", "anna")  # in one batch with that before
        assert not await history.acknowledge("nobody's", "anna")
        await settled(history)
        again, other = (await history.alerts(AlertFilter(acknowledged=True), ascending=True)).items
        assert first == again == await history.alert_of(first.number)
        assert first.seen_us <= first.acknowledged_us <= time.time_ns() // 1000
        assert [first.acknowledged_by, other.acknowledged_by] == ["anna", "bert"]
        return await history.alerts(AlertFilter(acknowledged=False), ascending=True)

    left = ask(place, body)
    assert ids(left) == "ade"
    assert {one.acknowledged_by for one in left.items} == {None}


def test_a_name_is_bounded_and_prints(place):
    async def body(history):
        await keep(history, *ALERTS)
        await history.acknowledge("a", "x" * 300)
        await history.acknowledge("b", "an\0na\x1b[31m\ud800")
        await settled(history)
        return (await history.alerts(AlertFilter(acknowledged=True), ascending=True)).items

    assert [one.acknowledged_by for one in ask(place, body)] == ["x" * 255 + "…", "an�na�[31m�"]


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


def test_alerts_are_exported(place):
    async def main():
        async with running(place) as found:
            await keep(found, *ALERTS)
            await found.acknowledge("c", "anna")
            await settled(found)

    asyncio.run(main())
    database = Database(place, DATA)
    database.open(create=False)
    found = list(rows(database, AlertFilter(severity="high")))
    database.close()
    assert [(row["id"], row["rule"], row["top_uids"], row["acknowledged_by"]) for row in found] == [
        ("b", "scan", [], None),
        ("c", "malware", ["C1", "C\0"], "anna"),
    ]
