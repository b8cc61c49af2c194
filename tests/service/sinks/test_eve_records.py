"""Records under Suricata's names and types, as its `etc/schema.json` has them, with the keys that join them."""

import json
import re

import msgspec
import pytest

from tapline.models.verdict import Verdict
from tapline.service.alerts.alert import Alert
from tapline.service.community_id import community_id
from tapline.service.sinks.eve_records import (
    EVE_SEVERITY,
    eve_alert,
    eve_flow,
    eve_trace,
    flow_id,
    signature_id,
    timestamp,
)
from tests.service.sinks.records import ALERT, FLOW, TRACE, VERDICT

TIMESTAMP = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}\.\d{6}[+-]\d{4}")
SEEN_US = 1_700_000_010_000_001


def changed(**changes):
    return msgspec.structs.replace(FLOW, **changes)


def flow_record(flow=FLOW, verdict=VERDICT):
    return json.loads(eve_flow(SEEN_US, "ws://sensor:27759", flow, verdict))


def test_a_flow():
    assert flow_record() == {
        "timestamp": "2023-11-14T22:13:30.000001+0000",
        "flow_id": flow_id(FLOW.uid),
        "event_type": "flow",
        "src_ip": "10.0.0.5",
        "src_port": 49152,
        "dest_ip": "192.0.2.7",
        "dest_port": 443,
        "proto": "TCP",
        "app_proto": "tls",
        "community_id": community_id(FLOW),
        "flow": {
            "pkts_toserver": 7,
            "pkts_toclient": 9,
            "bytes_toserver": 900,
            "bytes_toclient": 5000,
            "start": "2023-11-14T22:13:20.123456+0000",
            "end": "2023-11-14T22:13:23.023456+0000",
            "age": 3,
            "state": "closed",
        },
        "tapline": {
            "uid": "CHhAvVGS1DHFjwGM9",
            "label": "TLS",
            "nearest": "TLS",
            "confidence": 0.98,
            "unknown": False,
            "final": True,
            "model": "flow-protocols",
            "version": "2",
            "port_label": "TLS",
            "unexpected_port": False,
            "sensor": "gate",
            "source": "ws://sensor:27759",
            "conn_state": "SF",
            "server_name": "www.example.org",
        },
    }


def test_an_alert_on_a_flow_joins_its_flow():
    alert, flow = json.loads(eve_alert(ALERT)), flow_record()
    assert alert["event_type"] == "alert"
    assert alert["alert"] == {
        "action": "allowed",
        "gid": 27759,
        "signature_id": signature_id("tls-on-odd-port"),
        "rev": 1,
        "signature": "TAPLINE tls-on-odd-port",
        "category": "Flow verdict",
        "severity": 2,
    }
    for key in ("flow_id", "src_ip", "src_port", "dest_ip", "proto"):
        assert alert[key] == flow[key]
    for key in ("uid", "model", "version", "sensor", "source", "label", "confidence"):
        assert alert["tapline"][key] == flow["tapline"][key]
    assert alert["flow"]["start"] == flow["flow"]["start"]
    assert (alert["community_id"], alert["tapline"]["alert_id"], alert["tapline"]["suppressed"]) == ("1:x=", "01HFQ", 3)


def test_a_trace_names_its_flows():
    trace = json.loads(eve_trace(SEEN_US, TRACE))
    assert (trace["event_type"], trace["src_ip"]) == ("tapline_trace", "10.0.0.5")
    assert (trace["tapline"]["model"], trace["tapline"]["version"]) == ("intrusion", "3")
    assert (trace["tapline"]["label"], trace["tapline"]["nearest"]) == ("unknown", "mirai")
    assert (trace["tapline"]["suspicion"], trace["tapline"]["suspicious"]) == (0.2, False)
    (top,) = trace["tapline"]["top_flows"]
    assert {name: top[name] for name in ("uid", "flow_id", "community_id", "src_ip", "dest_port", "proto")} == {
        "uid": FLOW.uid, "flow_id": flow_id(FLOW.uid), "community_id": "1:x=", "src_ip": "10.0.0.5", "dest_port": 443,
        "proto": "TCP",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "subject", "fields"),
    [
        ("originator", "10.0.0.5", {"src_ip": "10.0.0.5"}),
        ("responder", "10.0.0.5", {"dest_ip": "10.0.0.5"}),
        ("pair", "10.0.0.5 - 192.0.2.7", {"src_ip": "10.0.0.5", "dest_ip": "192.0.2.7"}),
        ("mac", "00:11:22:33:44:55", {"ether": {"src_mac": "00:11:22:33:44:55"}}),
    ],
)
def test_a_subject_stands_where_it_is_looked_for(kind, subject, fields):
    names = ("src_ip", "dest_ip", "ether")
    trace = json.loads(eve_trace(SEEN_US, msgspec.structs.replace(TRACE, subject_kind=kind, subject=subject)))
    alert = Alert("1", SEEN_US, "r", "low", "trace", "m", "intrusion", "3", subject=subject, subject_kind=kind)
    for record in (trace, json.loads(eve_alert(alert))):
        assert {name: record[name] for name in names if name in record} == fields
        assert record["tapline"]["subject"] == subject


def test_an_alert_about_no_flow_claims_none():
    drift = Alert("1", SEEN_US, "drifted", "low", "drift", "it moved", "flow-protocols", "2", reason="labels 0.4")
    record = json.loads(eve_alert(drift))
    assert not {"src_ip", "dest_ip", "flow_id", "flow", "community_id", "proto"} & set(record)
    assert record["tapline"]["reason"] == "labels 0.4"
    assert record["alert"]["category"] == "Model drift"


@pytest.mark.parametrize(
    ("proto", "address", "fields"),
    [
        ("udp", "10.0.0.5", {"proto": "UDP", "src_port": 8, "dest_port": 0}),
        ("132", "10.0.0.5", {"proto": "SCTP", "src_port": 8, "dest_port": 0}),
        ("icmp", "10.0.0.5", {"proto": "ICMP", "icmp_type": 8}),
        ("icmp", "2001:db8::1", {"proto": "IPv6-ICMP", "icmp_type": 8}),
        ("47", "10.0.0.5", {"proto": "GRE"}),
        ("250", "10.0.0.5", {"proto": "250"}),
    ],
)
def test_protocols(proto, address, fields):
    record = flow_record(changed(proto=proto, orig_h=address, resp_h=address, orig_p=8, resp_p=0))
    names = ("proto", "src_port", "dest_port", "icmp_type")
    assert {name: record[name] for name in names if name in record} == fields


@pytest.mark.parametrize(
    ("service", "found"), [("ssl", "tls"), ("gssapi,smb", "smb"), ("", None), ("tapline_odd", None), ("SSL", "tls")]
)
def test_services_have_suricatas_names(service, found):
    assert flow_record(changed(service=service)).get("app_proto") == found


@pytest.mark.parametrize(
    ("complete", "packets", "state"), [(True, 0, "closed"), (False, 0, "new"), (False, 1, "established")]
)
def test_states(complete, packets, state):
    assert flow_record(changed(complete=complete, resp_pkts=packets))["flow"]["state"] == state


def test_age_is_that_of_whole_seconds():
    assert flow_record(changed(start_us=1_999_999, duration_us=1))["flow"]["age"] == 1


def test_times_are_suricatas():
    for at_us in (0, 1, 999_999, SEEN_US, 2**53 - 1):
        assert TIMESTAMP.fullmatch(timestamp(at_us))


def test_numbers_of_flows_are_stable_and_fit_a_double():
    assert flow_id("CHhAvVGS1DHFjwGM9") == 1763856801657656
    assert all(0 <= flow_id(f"C{number}") < 2**51 for number in range(1000))
    assert len({flow_id(f"C{number}") for number in range(1000)}) == 1000


def test_severities_are_suricatas_priorities():
    assert [EVE_SEVERITY[name] for name in ("critical", "high", "medium", "low")] == [1, 2, 3, 4]
    assert 1 <= signature_id("x") < 2**31


@pytest.mark.parametrize("foreign", ["\ud800", 'a"\n\u2028', "\x00", "ü" * 255])
def test_text_from_outside_breaks_no_line(foreign):
    for line in (
        eve_flow(SEEN_US, foreign, changed(uid=foreign, sensor=foreign, server_name=foreign), VERDICT),
        eve_alert(msgspec.structs.replace(ALERT, uid=foreign, rule=foreign, message=foreign)),
        eve_trace(SEEN_US, msgspec.structs.replace(TRACE, source=foreign, subject=foreign)),
    ):
        assert b"\n" not in line
        assert json.loads(line.decode())["tapline"]


def test_no_payload_leaves():
    flow = changed(orig_bytes=b"hunter2hunter2", resp_bytes=b"hunter2", server_name="")
    verdict = Verdict("TLS", "TLS", 0.98, False, [], "m", "1")
    line = eve_flow(SEEN_US, "s", flow, verdict)
    assert b"hunter2" not in line
    assert flow.orig_bytes.hex().encode() not in line
