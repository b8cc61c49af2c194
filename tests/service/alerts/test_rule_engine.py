"""Alerts of a flow once, counted over time, suppressed by identifiers; all that is remembered is bounded."""

import msgspec
import pytest

from tapline.service.alerts import rule_engine
from tapline.service.alerts.rule_facts import flow_facts, trace_facts
from tapline.service.history.past import PastFlow, PastTrace
from tapline.service.history.rows import flow_record, trace_record
from tests.service.alerts.ruled import T0_US, Ruled, rule
from tests.service.history.kept import BUS, flow, trace, verdict

EARLY = {"final": False}
EACH = "{seconds = 0}"


def test_an_alert_has_what_joins_it_with_other_records(tmp_path):
    (alert,) = Ruled(tmp_path, rule(severity='"high"')).flow(server_name="a.example")
    record = msgspec.to_builtins(alert)
    assert len(record.pop("id")) == 36
    assert record == {
        "time_us": T0_US, "rule": "r", "severity": "high", "kind": "flow", "model": "random", "version": "1",
        "message": "tls (0.90) from 10.0.0.5 to 192.0.2.1:443", "source": BUS, "sensor": "gate", "label": "tls",
        "nearest": "tls", "confidence": 0.9, "start_us": T0_US, "end_us": T0_US + 1500, "uid": "C1",
        "community_id": "1:ipTPG2W+Y6CAGnu4TQVW7OakD5k=", "proto": "tcp", "orig_h": "10.0.0.5", "orig_p": 40_000,
        "resp_h": "192.0.2.1", "resp_p": 443, "server_name": "a.example",
    }  # fmt: skip


def test_an_alert_of_a_trace_names_its_flows(tmp_path):
    (alert,) = Ruled(tmp_path, rule(kind='"trace"')).trace(suspicion=0.75, suspicious=True)
    found = (alert.kind, alert.subject, alert.subject_kind, alert.flows, alert.suspicion, alert.suspicious)
    assert found == ("trace", "00:17:88:01:02:03", "mac", 3, 0.75, True)
    assert (alert.top_uids, alert.start_us, alert.end_us) == (["C1"], T0_US, T0_US + 600_000_000)


def test_an_alert_of_drift_says_what_moved(tmp_path):
    (alert,) = Ruled(tmp_path, rule(kind='"drift"', message='"{measure} {against} {distance}"')).drift()
    assert (alert.kind, alert.message, alert.reason, alert.matches) == (
        "drift",
        "labels baseline 0.50",
        "more DNS",
        900,
    )


@pytest.mark.parametrize("suppress", [EACH, '{by = "uid-less", seconds = 9}'.replace("uid-less", "sensor")])
def test_an_early_and_a_final_verdict_make_one_alert(tmp_path, suppress):
    ruled = Ruled(tmp_path, rule(suppress=suppress))
    found = [ruled.flow(second, said={"final": final}) for second, final in ((0, False), (1, False), (2, True))]
    assert [len(alerts) for alerts in found] == [1, 0, 0]
    assert ruled.suppressed == []  # it is one match, not three


def test_a_final_verdict_alerts_where_the_early_one_did_not(tmp_path):
    ruled = Ruled(tmp_path, rule(label='"ssh"', suppress=EACH))
    assert ruled.flow(said=EARLY) == []
    assert len(ruled.flow(said={"nearest": "ssh"})) == 1


def test_a_window_makes_one_alert_and_the_next_another(tmp_path):
    ruled = Ruled(tmp_path, rule(kind='"trace"', suppress=EACH))
    found = [ruled.trace(final=False), ruled.trace(), ruled.trace(start_us=T0_US + 600_000_000)]
    assert [len(alerts) for alerts in found] == [1, 0, 1]


def test_what_one_rule_alerted_of_another_does_too(tmp_path):
    ruled = Ruled(tmp_path, rule() + rule().replace('"r"', '"s"'))
    assert [alert.rule for alert in ruled.flow(said=EARLY)] == ["r", "s"]
    assert ruled.flow() == []


def test_matches_are_suppressed_by_identifier_and_told_with_the_next_alert(tmp_path):
    ruled = Ruled(tmp_path, rule(suppress='{by = ["originator", "port"], seconds = 60}'))
    steps = [
        (0, {}, 1), (59.9, {}, 0), (59.9, {"resp_h": "192.0.2.9"}, 0), (59.9, {"resp_p": 80}, 1),
        (59.9, {"orig_h": "10.0.0.6"}, 1), (60, {}, 1), (119, {}, 0),
    ]  # fmt: skip
    found = [ruled.flow(second, uid=str(number), **fields) for number, (second, fields, _) in enumerate(steps)]
    assert [len(alerts) for alerts in found] == [wanted for _, _, wanted in steps]
    assert [alert.suppressed for alerts in found for alert in alerts] == [0, 0, 0, 2]
    assert found[5][0].message.endswith("(2 more since the last alert)")
    assert ruled.suppressed == ["r"] * 3


def test_suppression_by_nothing_is_of_the_whole_rule(tmp_path):
    ruled = Ruled(tmp_path, rule(suppress="{by = [], seconds = 60}"))
    assert [len(ruled.flow(0, uid=uid, orig_h=f"10.0.0.{uid}")) for uid in "123"] == [1, 0, 0]


def test_a_rule_that_says_nothing_is_suppressed_by_originator_and_label(tmp_path):
    ruled = Ruled(tmp_path, rule())
    steps = [(0, "tls", 5), (599, "tls", 5), (599, "ssh", 5), (599, "tls", 6), (600, "tls", 5)]
    found = [
        ruled.flow(second, uid=str(number), said={"nearest": label}, orig_h=f"10.0.0.{host}")
        for number, (second, label, host) in enumerate(steps)
    ]
    assert [len(alerts) for alerts in found] == [1, 0, 1, 1, 1]


RATE = '{count = 3, seconds = 60, by = "originator"}'


def test_matches_in_a_time_make_one_alert(tmp_path):
    ruled = Ruled(tmp_path, rule(rate=RATE, suppress=EACH))
    seconds = [
        0,
        30,
        59,
        60,
        100,
        125,
    ]  # three within 60 seconds; then three within 65: a part of 60 more than they may be apart
    found = [ruled.flow(second, uid=str(second)) for second in seconds]
    assert [len(alerts) for alerts in found] == [0, 0, 1, 0, 0, 0]
    (alert,) = found[2]
    assert (alert.kind, alert.matches, alert.uid) == ("rate", 3, "59")
    assert alert.message == "r: 3 matches in 60 s, originator 10.0.0.5, the last tls"
    assert T0_US - 2_000_000 <= alert.start_us <= T0_US
    assert alert.end_us == T0_US + 59_000_000


def test_matches_are_counted_by_identifier(tmp_path):
    ruled = Ruled(tmp_path, rule(rate=RATE, suppress=EACH))
    found = [ruled.flow(0, uid=str(number), orig_h=f"10.0.0.{number % 2}") for number in range(5)]
    assert [len(alerts) for alerts in found] == [0, 0, 0, 0, 1]


def test_early_and_final_verdicts_of_a_flow_count_once(tmp_path):
    ruled = Ruled(tmp_path, rule(rate=RATE, suppress=EACH))
    found = [ruled.flow(0, uid=uid, said={"final": final}) for uid in "ab" for final in (False, True)]
    assert [len(alerts) for alerts in found] == [0] * 4
    assert len(ruled.flow(0, uid="c")) == 1


SHARE = '{min = 0.5, seconds = 3600, min_flows = 4, by = "sensor"}'


def test_an_unknown_share_needs_enough_flows(tmp_path):
    ruled = Ruled(tmp_path, rule(unknown_share=SHARE, suppress=EACH))
    found = [ruled.flow(number, uid=str(number), said={"unknown": number in (0, 3)}) for number in range(4)]
    assert [len(alerts) for alerts in found] == [0, 0, 0, 1]
    assert found[3][0].message == "r: 50% of 4 flows unknown in 3600 s, sensor gate"


def test_a_share_goes_by_the_newest_verdict_of_each_flow(tmp_path):
    ruled = Ruled(tmp_path, rule(unknown_share=SHARE, suppress=EACH))
    for uid in "abcd":
        assert ruled.flow(0, uid=uid, said={"unknown": uid == "a", "final": False}) == []
    assert ruled.flow(1, uid="a", said={"unknown": False}) == []
    assert ruled.flow(1, uid="b", said={"unknown": True}) == []
    assert len(ruled.flow(1, uid="c", said={"unknown": True})) == 1


def test_a_share_of_long_ago_is_forgotten(tmp_path):
    ruled = Ruled(tmp_path, rule(unknown_share=SHARE, suppress=EACH))
    for uid in "abc":
        ruled.flow(0, uid=uid, said={"unknown": True})
    assert ruled.flow(3700, uid="d", said={"unknown": True}) == []


def test_time_that_goes_back_begins_anew(tmp_path):
    """As from one capture to an older one; a little, as among flows of one capture, is nothing."""
    ruled = Ruled(tmp_path, rule(rate=RATE, suppress="{seconds = 60}"))
    found = [ruled.flow(second, uid=str(number)) for number, second in enumerate([0, 0, -1e6, -1e6, -1e6 - 5, 0, 0, 0])]
    assert [len(alerts) for alerts in found] == [0, 0, 0, 0, 1, 0, 0, 1]


def test_lists_let_pass(tmp_path):
    text = (
        '[list.nets]\nof = "networks"\nentries = ["192.0.2.1", {value = "10.9.0.0/16", until = 2023-11-14}]\n'
        '[list.names]\nof = "server names"\nentries = ["*.example"]\n'
        '[list.labels]\nof = "labels"\nentries = ["dns"]\n'
    ) + rule(allow='["nets", "names", "labels"]', suppress=EACH)
    ruled = Ruled(tmp_path, text)
    assert ruled.flow() == []
    assert ruled.flow(resp_h="192.0.2.2", server_name="a.example") == []
    assert ruled.flow(resp_h="192.0.2.2", said={"nearest": "dns", "unknown": True}) == []
    assert len(ruled.flow(resp_h="192.0.2.2", server_name="a.example.org")) == 1
    day_end = 86_400 - 80_000  # of the 14th, in UTC, seconds from T0
    assert ruled.flow(day_end - 1, orig_h="10.9.1.1", resp_h="192.0.2.2") == []
    assert len(ruled.flow(day_end, orig_h="10.9.1.1", resp_h="192.0.2.2")) == 1


def test_lists_let_traces_pass(tmp_path):
    text = (
        '[list.names]\nof = "server names"\nentries = ["cam.example"]\n'
        '[list.nets]\nof = "networks"\nentries = ["10.0.0.5"]\n'
    )
    assert Ruled(tmp_path, text + rule(kind='"trace"', allow='"names"')).trace() == []
    assert len(Ruled(tmp_path, text + rule(kind='"trace"', allow='"nets"')).trace()) == 1
    assert Ruled(tmp_path, text + rule(kind='"trace"', allow='"nets"')).trace(subject="10.0.0.5") == []


def test_new_rules_remember_what_the_old_ones_of_their_name_said(tmp_path):
    ruled = Ruled(tmp_path, rule(rate='{count = 2, seconds = 60, by = "label"}'))
    assert ruled.flow(uid="a") == []
    ruled.engine.use(ruled.ready(rule(severity='"low"', rate='{count = 2, seconds = 60, by = "label"}')))
    assert [alert.severity for alert in ruled.flow(uid="b")] == ["low"]
    ruled.engine.use(ruled.ready(rule()))
    assert len(ruled.flow(uid="c")) == 1  # suppressed by something else than before
    ruled.engine.use([])
    assert ruled.flow(uid="d", orig_h="10.0.0.9") == []


@pytest.mark.parametrize(
    ("bound", "memory", "conditions", "fields"),
    [
        ("MAX_EARLY", "early", {"suppress": EACH}, EARLY),
        ("MAX_IDENTIFIERS", "suppressed", {"suppress": '{by = "originator"}'}, {}),
        ("MAX_COUNTS", "counted", {"rate": RATE}, {}),
    ],
)
def test_what_is_remembered_is_bounded_and_told(tmp_path, monkeypatch, bound, memory, conditions, fields):
    monkeypatch.setattr(rule_engine, bound, 10)
    ruled = Ruled(tmp_path, rule(**conditions))
    for number in range(30):
        ruled.flow(0, uid=str(number), orig_h=f"10.0.0.{number}", said=fields)
    assert ruled.forgotten == [memory] * 20
    assert [len(ruled.engine._early), len(ruled.engine._told), len(ruled.engine._counts)].count(10) == 1


def test_answers_by_verdict_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(rule_engine, "_MAX_VERDICTS", 10)
    ruled = Ruled(tmp_path, rule(label='"l3"'))
    found = [ruled.flow(uid=str(number), said={"nearest": f"l{number}"}) for number in range(30)]
    assert [number for number, alerts in enumerate(found) if alerts] == [3]
    assert len(ruled.engine._candidates) == 10


def test_messages_show_foreign_text_and_are_not_steered_by_it(tmp_path):
    ruled = Ruled(tmp_path, rule(message='"{server_name} {{}} {suppressed} {share} {originator_port} {time}"'))
    (alert,) = ruled.flow(server_name="\x1b[2J{label}" + "x" * 240)
    shown, braces, *rest = alert.message.split(" ")
    assert (len(shown), shown[:12]) == (128, "\N{REPLACEMENT CHARACTER}[2J{label}x")
    assert (braces, rest) == ("{}", ["0", "-", "40000", "2023-11-14T22:13:20Z"])


def test_the_history_gives_the_facts_that_the_live_path_gave(tmp_path):
    """One that a rule of every condition would tell apart."""
    said, name = verdict(port_label="dns", unexpected_port=True), b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n"
    live = flow(orig_bytes=name)
    past = PastFlow(**msgspec.structs.asdict(flow_record(T0_US, BUS, live, said)), number=7)
    ruled = Ruled(tmp_path, rule(server_name='"a.example"', suppress=EACH))
    (one,) = ruled.engine.alerts(flow_facts(BUS, live, said, T0_US))
    (two,) = ruled.engine.alerts(flow_facts(past.source, past, past.verdict, T0_US))
    assert msgspec.structs.replace(two, id=one.id) == one
    assert (one.port_label, one.unexpected_port) == ("dns", True)
    seen = trace(suspicion=0.5, suspicious=True)
    kept = PastTrace(**msgspec.structs.asdict(trace_record(T0_US, seen)), number=7)
    ruled = Ruled(tmp_path, rule(kind='"trace"', suppress=EACH))
    (one,) = ruled.engine.alerts(trace_facts(seen, T0_US))
    (two,) = ruled.engine.alerts(trace_facts(kept, T0_US))
    assert msgspec.structs.replace(two, id=one.id) == one
