"""What is given to the history is found in it: every field, by every filter, page after page, each flow once."""

import asyncio
import itertools
import time

import msgspec
import pytest

from tapline.models.verdict import Alternative
from tapline.service.history.addresses import key_range
from tapline.service.history.filters import FilterError, FlowFilter, TraceFilter, time_us
from tapline.service.history.matches import flow_matches, trace_matches
from tests.conftest import make_flows
from tests.service.history.kept import BUS, flow, history, running, settled, trace, verdict


def ask(place, body, **options):
    """What `body` gives of a history that runs while it does."""

    async def main():
        async with running(place, **options) as found:
            return await body(found)

    return asyncio.run(main())


async def keep(history, *flows):
    """Keep flows with their verdicts."""
    for one, said in flows:
        history.flow(BUS, one, said)
    await settled(history)


def uids(page):
    return uids_of(page.items)


def uids_of(flows):
    return [found.uid for found in flows]


@pytest.mark.parametrize("content", [False, True])
def test_every_field_of_a_flow_comes_back(place, content):
    given = flow(
        orig_bytes=b"\x16\x03", resp_bytes=b"\x00\xff", payload_lengths=[70_000, -1, 2**31 - 1], service="ssl",
        conn_state="SF", server_name="www.example", resp_h="192.0.2.255", start_us=2**53 - 1501,
    )  # fmt: skip

    async def body(history):
        await keep(history, (given, verdict(port_label=None, unexpected_port=True)))
        (found,) = (await history.flows()).items
        assert await history.flow_of(found.number) == found
        assert await history.flow_of(found.number + 1) is None
        return found

    before = time.time_ns() // 1000
    found = ask(place, body, content=content)
    assert before <= found.seen_us <= time.time_ns() // 1000
    same = set(msgspec.structs.asdict(given)) & set(msgspec.structs.asdict(found)) - {"orig_bytes", "resp_bytes"}
    assert len(same) == 19
    assert {name: getattr(found, name) for name in same} == {name: getattr(given, name) for name in same}
    assert (found.source, found.community_id[:2]) == (BUS, "1:")
    assert (found.orig_bytes, found.resp_bytes) == (("1603", "00ff") if content else ("", ""))
    assert found.verdict == verdict(port_label=None, unexpected_port=True)
    assert found.verdict.alternatives == [Alternative("http", 0.0625)]


def test_a_verdict_that_knows_no_ports_comes_back_so(place):
    async def body(history):
        await keep(history, (flow(), verdict()))
        return (await history.flows()).items[0].verdict

    assert ask(place, body).port_label is msgspec.UNSET


def test_every_field_of_a_trace_comes_back(place):
    given = trace(suspicion=0.25, suspicious=False)

    async def body(history):
        history.trace(given)
        await settled(history)
        (found,) = (await history.traces()).items
        assert await history.trace_of(found.number) == found
        return found

    found = msgspec.structs.asdict(ask(place, body))
    assert {name: found[name] for name in given.__struct_fields__} == msgspec.structs.asdict(given)


VARIED = [
    (flow("a"), verdict("tls", 0.99, port_label="tls", unexpected_port=False)),
    (flow("b", orig_h="10.0.1.5", resp_p=53, sensor="lab"), verdict("dns", 0.7)),
    (flow("c", orig_h="2001:db8::5", resp_h="2001:db8::1"), verdict("ssh", 0.95, unexpected_port=True, port_label="a")),
    (flow("d", resp_h="10.0.1.5", resp_p=80), verdict("dns", 0.3, unknown=True)),
    (flow("e", complete=False), verdict("tls", 0.5, model="other", final=False)),
]  # fmt: skip


ASKED_FLOWS = [
    ({}, "edcba"),
    ({"host": "10.0.1.5"}, "db"),
    ({"host": "10.0.0.0/8"}, "edba"),
    ({"host": "10.0.1.0/24"}, "db"),
    ({"host": "2001:db8::/32"}, "c"),
    ({"host": "::/0"}, "c"),
    ({"host": "0.0.0.0/0"}, "edba"),
    ({"port": 53}, "b"),
    ({"port": 443, "label": "tls"}, "ea"),
    ({"label": "unknown"}, "d"),
    ({"label": "dns"}, "b"),
    ({"nearest": "dns"}, "db"),
    ({"unknown": True}, "d"),
    ({"unknown": False, "host": "10.0.1.5"}, "b"),
    ({"min_confidence": 0.7}, "cba"),
    ({"max_confidence": 0.7}, "edb"),
    ({"min_confidence": 0.6, "max_confidence": 0.8}, "b"),
    ({"model": "other"}, "e"),
    ({"sensor": "lab"}, "b"),
    ({"source": BUS}, "edcba"),
    ({"source": "elsewhere"}, ""),
    ({"unexpected_port": True}, "c"),
    ({"unexpected_port": False}, "edba"),
    ({"final": False}, "e"),
    ({"uid": "c"}, "c"),
    ({"label": "t\0ls"}, ""),
]


def test_flows_are_found_by_each_filter_here_and_in_the_stream(place):
    asked = [(FlowFilter(**wanted), expected) for wanted, expected in ASKED_FLOWS]
    for wanted, expected in asked:
        assert "".join(one.uid for one, said in reversed(VARIED) if flow_matches(wanted, BUS, one, said)) == expected

    async def body(history):
        await keep(history, *VARIED)
        return [("".join(uids(await history.flows(wanted))), await history.count_flows(wanted)) for wanted, _ in asked]

    assert ask(place, body) == [(expected, len(expected)) for _, expected in asked]


ASKED_TRACES = [
    ({}, [3, 2, 1, 0]),
    ({"subject": "00:17:88:AA:00:01"}, [0]),
    ({"host": "10.0.0.0/24"}, [2]),
    ({"host": "10.0.0.7"}, [2]),
    ({"label": "unknown"}, [3]),
    ({"nearest": "camera"}, [3, 0]),
    ({"suspicious": True}, [2]),
    ({"suspicious": False}, [3, 1, 0]),
    ({"model": "intrusion"}, [3, 2, 1]),
    ({"final": False}, [1]),
]


def test_traces_are_found_by_each_filter_here_and_in_the_stream(place):
    given = [
        trace(subject="00:17:88:aa:00:01"),
        trace("plug", subject="10.0.0.1 - 10.0.0.9", model="intrusion", final=False, suspicious=False),
        trace("scan", subject="10.0.0.7", model="intrusion", suspicious=True),
        trace(subject="2001:db8::7", model="intrusion", unknown=True),
    ]
    asked = [(TraceFilter(**wanted), expected) for wanted, expected in ASKED_TRACES]
    for wanted, expected in asked:
        assert [number for number in (3, 2, 1, 0) if trace_matches(wanted, given[number])] == expected

    async def body(history):
        for one in given:
            history.trace(one)
        await settled(history)
        return [[found.subject for found in (await history.traces(wanted)).items] for wanted, _ in asked]

    assert ask(place, body) == [[given[number].subject for number in expected] for _, expected in asked]


def test_times_are_those_at_which_verdicts_came(place, monkeypatch):
    async def body(history):
        for number in range(10):
            monkeypatch.setattr("tapline.service.history.history.time.time_ns", lambda at=number: (1000 + at) * 10**9)
            await keep(history, (flow(str(number)), verdict()))
        found = []
        for since, until in ((1003, 1006), (None, 1002), (1008, None), (1020, None), (None, 900), (1006, 1003)):
            wanted = FlowFilter(since_us=since and since * 10**6, until_us=until and until * 10**6)
            found.append("".join(uids(await history.flows(wanted, ascending=True))))
        return found

    assert ask(place, body, days=36_500) == ["345", "01", "89", "", "", ""]


def test_pages_hold_everything_once_and_in_order(place, monkeypatch):
    monkeypatch.setattr("tapline.service.history.pages.FEW_ROWS", 5)  # hosts are looked for as where there are many
    given = make_flows(60)
    for number, one in enumerate(given):
        one.orig_h, one.orig_ip_bytes = f"10.0.0.{number % 9}", number % 7
    wanted = {FlowFilter(): given, FlowFilter(host="10.0.0.7"): given[7::9], FlowFilter(host="10.0.0.0/8"): given,
              FlowFilter(label="dns"): given[::2]}  # fmt: skip
    values = {
        "time": lambda one: one.number,
        "bytes": lambda one: one.orig_ip_bytes + one.resp_ip_bytes,
        "confidence": lambda one: one.verdict.confidence,
    }

    async def all_pages(history, asked, sort, ascending):
        found, cursor = [], None
        while len(found) <= len(given):
            page = await history.flows(asked, sort=sort, ascending=ascending, limit=7, cursor=cursor)
            found += page.items
            if (cursor := page.next) is None:
                break
        return found

    async def body(history):
        said = (verdict(("dns", "tls")[number % 2], number % 5 / 8) for number in range(60))
        await keep(history, *zip(given, said, strict=True))
        for asked, sort, ascending in itertools.product(wanted, values, (False, True)):
            found = await all_pages(history, asked, sort, ascending)
            key = [(values[sort](one), one.number) for one in found]
            assert key == sorted(key, reverse=not ascending), (asked, sort, ascending)
            assert sorted(uids_of(found)) == sorted(uids_of(wanted[asked])), (asked, sort, ascending)

    ask(place, body)


def test_what_comes_meanwhile_shifts_no_page(place):
    async def body(history):
        await keep(history, *((flow(str(number)), verdict()) for number in range(6)))
        first = await history.flows(limit=3)
        await keep(history, (flow("late"), verdict()))
        return uids(first) + uids(await history.flows(limit=3, cursor=first.next))

    assert ask(place, body) == list("543210")


def test_a_cursor_that_is_none_is_refused(place):
    async def body(history):
        for cursor in ("", "x", "-1", "1:2", "٣", "9" * 20, "1.5"):
            with pytest.raises(FilterError, match="cursor: expected"):
                await history.flows(cursor=cursor)
        for cursor in ("5", "5:x", "x:5", "5:" + "9" * 20):
            with pytest.raises(FilterError, match="cursor: expected"):
                await history.flows(cursor=cursor, sort="bytes")

    ask(place, body)


def test_an_early_verdict_is_replaced_by_the_next_and_a_final_one_stays(place):
    async def body(history):
        early = verdict("tls", final=False)
        await keep(history, (flow("a", complete=False), early), (flow("b", complete=False), early))
        (first, _) = (await history.flows(ascending=True)).items
        await keep(history, (flow("other"), verdict()), (flow("a"), verdict("http")))
        await keep(history, (flow("c", complete=False), early), (flow("c"), verdict("dns")))  # both in one batch
        await keep(history, (flow("a", sensor="another"), verdict()), (flow("a"), verdict("again")))
        return first, (await history.flows(ascending=True)).items

    first, found = ask(place, body)
    assert [(one.uid, one.sensor, one.verdict.label, one.verdict.final) for one in found] == [
        ("a", "gate", "http", True), ("b", "gate", "tls", False), ("other", "gate", "tls", True),
        ("c", "gate", "dns", True), ("a", "another", "tls", True), ("a", "gate", "again", True),
    ]  # fmt: skip
    assert (found[0].number, found[0].seen_us) == (first.number, first.seen_us)


def test_an_early_verdict_is_replaced_after_a_restart(place):
    ask(place, lambda history: keep(history, (flow("a", complete=False), verdict("tls", final=False))))

    async def body(history):
        await keep(history, (flow("a"), verdict("http")))
        history.trace(trace(final=False, flows=1))
        history.trace(trace(final=False, flows=2))
        await settled(history)
        history.trace(trace("plug", flows=5))
        history.trace(trace("plug", model="intrusion", final=False))
        await settled(history)
        found = (await history.traces(ascending=True)).items
        return uids(await history.flows()), [(one.verdict.label, one.flows, one.verdict.model) for one in found]

    assert ask(place, body) == (["a"], [("plug", 5, "devices"), ("plug", 3, "intrusion")])


def test_series_count_each_flow_and_each_window_once(place, monkeypatch):
    minute = 60 * 10**9

    async def body(history):
        def at(minutes):
            monkeypatch.setattr("tapline.service.history.history.time.time_ns", lambda: round(minutes * minute))

        at(100)
        await keep(history, (flow("a", complete=False), verdict("tls", final=False)), (flow("b"), verdict("tls")))
        at(101.5)
        await keep(history, (flow("a"), verdict("http")), (flow("c", sensor="lab"), verdict("tls", unknown=True)))
        history.trace(trace(final=False))
        await settled(history)
        at(105)
        history.trace(trace("plug"))
        await keep(history, (flow("d"), verdict("dns")))

        async def series(step_minutes, **options):
            found = await history.series(100 * 60 * 10**6, 106 * 60 * 10**6, step_minutes * 60, **options)
            return [(point.time_us // (60 * 10**6), point.name, point.count, point.ip_bytes) for point in found]

        return (
            await series(1),
            await series(3),
            await series(60, by="sensor"),
            await series(1, kind="trace", by="model"),
        )

    by_minute, by_three, by_sensor, traces = ask(place, body, days=36_500)
    assert by_minute == [
        (100, "http", 1, 2200), (100, "tls", 1, 2200), (101, "unknown", 1, 2200), (105, "dns", 1, 2200),
    ]  # fmt: skip
    assert by_three == [(99, "http", 1, 2200), (99, "tls", 1, 2200), (99, "unknown", 1, 2200), (105, "dns", 1, 2200)]
    assert by_sensor == [(60, "gate", 3, 6600), (60, "lab", 1, 2200)]
    assert traces == [(101, "devices", 1, 0)]


def test_flows_of_a_replay_are_of_no_sensor(place):
    async def body(history):
        await keep(history, (flow("a", sensor=""), verdict()), (flow("b", sensor="lab"), verdict()))
        return await history.recent_sensors()

    assert ask(place, body) == {"lab": 1}


def test_series_in_other_than_whole_minutes_are_refused(place):
    async def body(history):
        for step in (0, 30, 90, -60):
            with pytest.raises(FilterError, match="whole minutes"):
                await history.series(0, 10**9, step)
        with pytest.raises(FilterError, match="at most 2000 steps"):
            await history.series(0, 10**12, 60)

    ask(place, body)


def test_hosts_are_told_by_what_they_began(place, monkeypatch):
    async def body(history):
        await keep(
            history,
            (flow("a", orig_h="10.0.0.1"), verdict()),
            (flow("b", orig_h="10.0.0.1", resp_p=22), verdict("ssh", port_label="tls", unexpected_port=True)),
            (flow("c", orig_h="10.0.0.1", resp_h="192.0.2.9"), verdict(unknown=True)),
            (flow("d", orig_h="10.0.0.2"), verdict()),
        )
        everything = await history.hosts()
        monkeypatch.setattr("tapline.service.history.sums.HOST_FLOWS", 2)
        return everything, await history.hosts(), await history.hosts(FlowFilter(port=22))

    found, newest, asked = ask(place, body)
    first, second = found.hosts
    assert (found.flows_read, found.complete) == (4, True)
    assert (first.host, first.flows, first.ip_bytes, first.unknown, first.unexpected_ports) == (
        "10.0.0.1",
        3,
        6600,
        1,
        1,
    )
    assert (first.peers, first.ports) == (2, 2)
    assert {(label.label, label.flows) for label in first.labels} == {("tls", 1), ("ssh", 1), ("unknown", 1)}
    assert (second.host, second.flows, second.labels[0].label) == ("10.0.0.2", 1, "tls")
    assert (newest.flows_read, newest.complete, {host.flows for host in newest.hosts}) == (2, False, {1})
    assert [(host.host, host.flows) for host in asked.hosts] == [("10.0.0.1", 1)]


def test_flows_without_a_verdict_count_for_the_host_that_began_them(place):
    def tried(number, **fields):
        return flow(f"s{number}", payload_lengths=[], **{"orig_h": "10.0.0.66", "resp_p": number, **fields}), None

    async def body(history):
        for _ in range(2):  # the second adds to what is kept
            await keep(history, *(tried(port) for port in range(1, 1400)))
        await keep(history, tried(1, complete=False), tried(7, orig_h="10.0.0.5", resp_h="2001:db8::1", sensor="lab"))
        await keep(history, (flow("few", orig_h="10.0.0.5"), None), tried(0, orig_h="10.0.0.5", proto="icmp"))
        return await history.unclassified(), await history.unclassified(host="10.0.0.5"), await history.flows()

    (scanner, other), asked, page = ask(place, body)
    assert (scanner.host, scanner.without_payload, scanner.below_min_packets) == ("10.0.0.66", 2798, 0)
    assert (scanner.ports, scanner.peers, scanner.more) == (1024, 1, True)
    assert scanner.some_ports == list(range(1, 51))
    assert (other.without_payload, other.below_min_packets, other.more) == (2, 1, False)
    assert (other.some_ports, other.some_peers) == ([7, 443], ["192.0.2.1", "2001:db8::1"])
    assert asked == [other]
    assert page.items == []


def test_foreign_text_that_no_database_takes_is_replaced(place):
    odd = flow("a\0\ud800", sensor="g\0", service="\udfff", server_name="x\0y")

    async def body(history):
        history.flow("\0", odd, verdict())
        history.flow("\0", odd, None)
        history.trace(trace(subject="\0\ud800", source="\0"))
        await settled(history)
        return history.counts, (await history.flows()).items[0], (await history.traces()).items[0]

    counts, found, traced = ask(place, body)
    assert (counts.kept, counts.failed) == (3, 0)
    assert (found.uid, found.sensor, found.service, found.server_name) == ("a\ufffd?", "g\ufffd", "?", "x\ufffdy")
    assert traced.subject == "\ufffd?"


def test_a_record_that_cannot_be_kept_costs_itself_alone(place):
    async def body(history):
        said = [verdict(confidence=object() if number == 7 else 0.5) for number in range(20)]
        await keep(history, *((flow(str(number)), one) for number, one in enumerate(said)))
        return history.counts, history.problem, uids(await history.flows(ascending=True))

    counts, problem, found = ask(place, body)
    assert (counts.kept, counts.failed, counts.pending, problem) == (19, 1, 0, None)
    assert found == [str(number) for number in range(20) if number != 7]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1970-01-01T00:01:00Z", 60_000_000), ("1970-01-01T01:01:00+01:00", 60_000_000),
        ("1970-01-01T00:00:00.5", 500_000), ("90", 90_000_000), ("1700000000000000", 1_700_000_000_000_000),
        ("2m", 9_880_000_000), ("365d", 0),
    ],
)  # fmt: skip
def test_times_are_read(text, expected):
    assert time_us(text, 10_000_000_000) == expected


@pytest.mark.parametrize("text", ["", "soon", "-5m", "1e9", "5y", "9999999999999999999", "1900-01-01", "²"])
def test_what_is_no_time_is_refused(text):
    with pytest.raises(FilterError, match="expected a time"):
        time_us(text)


@pytest.mark.parametrize("host", ["", "10.0.0", "10.0.0.0/33", "fe80::1%eth0", "x"])
def test_a_host_that_is_none_is_refused(host):
    with pytest.raises(FilterError, match="expected an address, or a network"):
        key_range(host)


def test_its_place_is_told_without_a_password():
    if pytest.importorskip("psycopg"):
        found = history("postgresql+psycopg://me:secret@127.0.0.1:9/none")
    assert found.place == "postgresql+psycopg://me:***@127.0.0.1:9/none"
    assert found.problem
    assert "secret" not in found.problem
