"""The table of verdicts: a row for each labelled thing, what names it, and what was said, by tools too."""

import csv
import json

from tests.paths import DATA
from tests.training.checking.flow_checks import NFSTREAM, evaluate, labels_by_uid
from tests.training.command import tapline_train


def test_every_flow_is_named_with_all_that_was_said(tmp_path, served_flows):
    labels = labels_by_uid(tmp_path / "l.csv", served_flows, MDNS="Mine", HTTP="DNS")
    said, record = evaluate(tmp_path / "out", "--labels", labels, "--predictions", f"{NFSTREAM}=NFStream")
    rows = list(csv.DictReader((tmp_path / "out" / "verdicts.csv").read_text().splitlines()))
    served = {row["uid"]: row for row in served_flows}
    assert len(rows) == len(served) == 66
    for row in rows:
        own = served[row["uid"]]
        for name in ("start_us", "proto", "orig_h", "orig_p", "resp_h", "resp_p", "label", "nearest", "confidence"):
            assert row[name] == own[name]
        truth = {"MDNS": "Mine", "HTTP": "DNS"}.get(own["nearest"], own["nearest"])
        assert (row["truth"], row["unknown"], row["capture"]) == (truth, own["unknown"], "android.pcap/android.pcap")
        assert row["right"] == {"Mine": "", "DNS": str(own["nearest"] == "DNS")}.get(truth, "True")
    figures = record["figures"]
    assert sum(row["right"] == "True" for row in rows) == round(figures["accuracy"] * figures["things"])
    assert sum(row["right"] == "" for row in rows) == figures["never_learned"]
    assert {"TLS.Google", ""} <= {row["NFStream says"] for row in rows}
    assert f"each verdict: {tmp_path / 'out' / 'verdicts.csv'}" in said
    assert "verdicts.csv beside this page" in (tmp_path / "out" / "report.html").read_text()


def test_a_table_of_verdicts_as_labels_is_warned_of(tmp_path):
    evaluate(tmp_path / "out", "--labels", NFSTREAM)
    _, record = evaluate(tmp_path / "again", "--labels", tmp_path / "out" / "verdicts.csv")
    assert "has the columns confidence, nearest, unknown: its labels look like a model's" in record["notes"][0]


def test_every_trace_is_named(tmp_path):
    arguments = ["--checkpoint", "iot-devices", "--captures", DATA / "traces", "--label-from-folder"]
    tapline_train("evaluate", *arguments, "--out", tmp_path)
    rows = list(csv.DictReader((tmp_path / "verdicts.csv").read_text().splitlines()))
    figures = json.loads((tmp_path / "evaluation.json").read_text())["figures"]
    assert len(rows) == figures["things"] == 9
    assert all(row["subject"] and int(row["end_us"]) >= int(row["start_us"]) for row in rows)
    assert {row["truth"] for row in rows} == {"Aria", "HomeMaticPlug", "MAXGateway"}
