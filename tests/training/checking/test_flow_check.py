"""A flow checkpoint on somebody's captures: what it says is what is served, beside what a real tool says of them."""

import csv
import json

import numpy as np
import pytest

from tapline.models.checkpoint import CheckpointError
from tapline.training.checking.checkpoint_check import find_checkpoint
from tapline.training.data.label_map import LabelError
from tapline.training.data.origins import ExtractError
from tapline.training.data.store import id_of
from tapline.training.evaluation.verdict_file import read_verdicts
from tapline.training.loop.config import TrainingError
from tests.paths import DATA
from tests.training.checking.flow_checks import CAPTURE, NFSTREAM, evaluate, labels_by_uid
from tests.training.command import invoke, tapline_train


def test_verdicts_are_those_that_are_served(tmp_path, served_flows):
    _, record = evaluate(tmp_path / "out", "--labels", labels_by_uid(tmp_path / "labels.csv", served_flows))
    verdicts = read_verdicts(tmp_path / "out")
    said = {
        number: (verdicts.about.labels[label], confidence)
        for number, label, confidence in zip(
            verdicts.ids.tolist(), verdicts.predicted, verdicts.confidence, strict=True
        )
    }
    names = {id_of("android.pcap/android.pcap", row["uid"]): row for row in served_flows}
    assert said == {number: (row["nearest"], float(row["confidence"])) for number, row in names.items()}
    assert (record["figures"]["things"], record["figures"]["macro_f1"], record["joined"]["by"]) == (
        66,
        1.0,
        {"uid": 66},
    )
    assert (record["figures"]["interval"], record["left_out"]) == (None, {"flow without payload": 3})


def test_labels_of_a_real_tool_by_endpoints_and_time(tmp_path):
    said, record = evaluate(tmp_path / "out", "--labels", NFSTREAM)
    assert record["joined"] | {"clock_hint": ""} == {
        "source": "nfstream-android.csv", "rows": 63, "rows_without_thing": 3, "rows_malformed": 0, "contradicted": 0,
        "by": {"endpoints": 60}, "clock_hint": "", "no_labels": {}, "names": record["joined"]["names"],
    }  # fmt: skip
    assert record["joined"]["names"]["TLS.Google"] == "TLS"
    assert record["figures"]["macro_f1"] == 1.0
    assert "found 60 by endpoints; 3 rows of no flow with payload here" in said
    page = (tmp_path / "out" / "report.html").read_text()
    for text in ("single capture: there is no interval", "TLS.Google as TLS", "Largest confusions"):
        assert text in page


def test_labels_of_other_names_and_labels_never_learned(tmp_path, served_flows):
    labels = labels_by_uid(tmp_path / "l.csv", served_flows, TLS="https2", DNS="dns", MDNS="Mine", HTTP="drop me")
    _, record = evaluate(tmp_path / "out", "--labels", labels, "--map", "https2=TLS", "--map", "drop me=")
    figures = record["figures"]
    assert record["joined"]["names"] == {"https2": "TLS", "dns": "DNS"}
    assert record["left_out"] == {"flow without a label": 3, "flow without payload": 3}
    assert (figures["things"], figures["never_learned"], figures["never_learned_called_unknown"]) == (61, 2, 0.0)
    assert figures["strange"] == [
        {"label": "Mine", "things": 2, "captures": 1, "called_unknown": 0.0, "called": [["MDNS", 2]]}
    ]
    assert figures["corpora"][0]["never_learned"] == 2
    by_file = tmp_path / "map.csv"
    by_file.write_text("label,becomes\nhttps2,TLS\ndrop me,\n")
    assert evaluate(tmp_path / "again", "--labels", labels, "--map", by_file)[1]["figures"] == figures


def tool(path, served_flows, changes):
    """What a tool says that says as the model but where `changes` has something of a flow's place, None: no row."""
    rows = [(row["uid"], changes.get(place, row["nearest"])) for place, row in enumerate(served_flows)]
    path.write_text("uid,prediction\n" + "".join(f"{uid},{word}\n" for uid, word in rows if word is not None))
    return path


def test_another_tool_is_measured_on_the_same_flows(tmp_path, served_flows):
    labels = labels_by_uid(tmp_path / "l.csv", served_flows)
    path = tool(
        tmp_path / "other.csv", served_flows, {0: None, 1: None, 2: "unknown", 3: "Mystery", 4: "SSH", 5: "SSH"}
    )
    said, record = evaluate(
        tmp_path / "out", "--labels", labels, "--predictions", f"{path}=Other", "--predictions", NFSTREAM
    )
    other, nfstream = record["figures"]["tools"]
    assert (other["name"], other["things"], other["with_row"], other["said"]) == ("Other", 66, 64, 63)
    assert other["tool"]["accuracy"] == pytest.approx(60 / 63)
    assert (other["model"]["accuracy"], other["model"]["macro_f1"]) == (1.0, 1.0)
    assert other["gain"] == pytest.approx(1 - other["tool"]["macro_f1"])
    assert (other["only_model_right"], other["only_tool_right"], other["both_wrong"]) == (3, 0, 0)
    assert other["strange_words"] == [["Mystery", 1]]
    assert sum(each["things"] for each in other["disagreements"]) == 3
    assert (nfstream["name"], nfstream["said"], nfstream["tool"]["accuracy"]) == ("nfstream-android", 60, 1.0)
    assert "Other says something of 63 of 66 flows" in said
    charted = json.loads((tmp_path / "out" / "report.json").read_text())["models"]
    drawn = next(row["macro_f1"] for row in charted if row["name"] == "Other, silence as wrong")
    assert other["macro_f1_of_all"] == drawn < other["tool"]["macro_f1"]
    told = f"On all 66 flows, silence as wrong, Other has macro-F1 {drawn:.3f}."
    assert told in said
    assert told in (tmp_path / "out" / "report.html").read_text()
    assert "--map NAME=LABEL): Mystery (1)" in said
    mapped = "--map", f"Mystery={served_flows[3]['nearest']}"
    again = evaluate(tmp_path / "again", "--labels", labels, "--predictions", path, *mapped)[1]["figures"]["tools"][0]
    assert again["tool"]["accuracy"] == pytest.approx(61 / 63)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Beside Other" in page
    assert "Where nfstream-android disagrees" in page


def test_the_difference_from_a_tool_has_an_interval_over_captures(tmp_path):
    captures, table = DATA / "protocols" / "pcap", DATA / "protocols" / "flows.csv"
    rows = list(csv.DictReader(table.read_text().splitlines()))
    path = tmp_path / "tool.csv"
    with path.open("w") as file:
        writer = csv.DictWriter(file, [*rows[0], "prediction"])
        writer.writeheader()
        writer.writerows(row | {"prediction": "DNS" if row["protocol"] == "TLS" else row["protocol"]} for row in rows)
    _, record = evaluate(tmp_path / "out", "--labels", table, "--predictions", path, captures=captures)
    other = record["figures"]["tools"][0]
    low, high = (other["gain_interval"][end] for end in ("low", "high"))
    assert 0 < low <= other["gain"] <= high
    assert (
        record["figures"]["interval"]["low"] <= record["figures"]["macro_f1"] <= record["figures"]["interval"]["high"]
    )
    assert len(record["figures"]["by_capture"]) > 10


def test_ports_off_is_as_served_with_ports_off(tmp_path, served_flows):
    labels = labels_by_uid(tmp_path / "l.csv", served_flows)
    on, off = (evaluate(tmp_path / ports, "--labels", labels, "--ports", ports)[1] for ports in ("on", "off"))
    assert off["ports"] == "off"
    assert (
        off["figures"]["macro_f1"]
        == off["figures"]["macro_f1_without_ports"]
        == on["figures"]["macro_f1_without_ports"]
    )
    with np.load(tmp_path / "on" / "verdicts.npz") as a, np.load(tmp_path / "off" / "verdicts.npz") as b:
        assert (a["confidence"] != b["confidence"]).any()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("uid,label\nnobody,TLS\n", "none of its rows (1 label) is of a flow in these captures: no uid, Community ID"),
        ("mac,label\n00:00:00:00:00:01,TLS\n", "its rows are of hosts, by which only traces can be labelled"),
        ("pcap,label\nother.pcap,TLS\n", "it names captures as other.pcap, and these are called as android.pcap"),
        ("uid,label\n{uid},Kettle\n", "of 1 labelled flow none bears a label of flow-protocols 5"),
        ("ts;proto;src_ip;src_port;dst_ip;dst_port;label\n{late};{proto};{orig_h};{orig_p};{resp_h};{resp_p};TLS\n",
         "s off: a time zone of -1 h? Then give --time-shift 3600"),
    ],
)  # fmt: skip
def test_labels_of_nothing(tmp_path, served_flows, text, why):
    row = served_flows[0]
    path = tmp_path / "labels.csv"
    path.write_bytes(text.format(late=int(row["start_us"]) / 1e6 - 3600, **row).encode("utf-8-sig"))
    arguments = ["--checkpoint", "flow-protocols", "--captures", CAPTURE, "--labels", path, "--out", tmp_path / "out"]
    error = invoke("evaluate", *arguments).exception
    assert isinstance(error, LabelError)
    assert why in str(error)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "kind", "why"),
    [
        ([], TrainingError, "what is to be evaluated? Give --run"),
        (["--run", "x", "--checkpoint", "y"], TrainingError, "not both"),
        (["--checkpoint", "x", "--folds", 3, "--out", "o"], TrainingError, "--folds says nothing with --checkpoint"),
        (["--checkpoint", "x", "--features", "f"], TrainingError, "--features says nothing with --checkpoint"),
        (["--run", "x", "--features", "f", "--labels", "l"], TrainingError, "--labels says nothing with --run"),
        (["--run", "x"], TrainingError, "--features is needed"),
        (["--checkpoint", "flow-protocols"], TrainingError, "--out is needed"),
        (["--checkpoint", "nothing", "--out", "o"], CheckpointError, "neither a checkpoint directory nor the name"),
        (["--checkpoint", "intrusion", "--out", "o", "--ports", "off"], TrainingError, "intrusion is of traces"),
        (["--checkpoint", "flow-protocols", "--out", "o"], ExtractError, "no captures: give --captures"),
        (["--checkpoint", "flow-protocols", "--out", "o", "--captures", CAPTURE], LabelError, "do labels come from?"),
        (["--checkpoint", "flow-protocols", "--out", "o", "--captures", CAPTURE, "--labels", NFSTREAM,
          "--label-from-folder"], LabelError, "give one of them"),
        (["--checkpoint", "flow-protocols", "--out", "o", "--captures", CAPTURE, "--labels", NFSTREAM, "--map", "TLS"],
         LabelError, "--map TLS: expected NAME=LABEL"),
        (["--checkpoint", "flow-protocols", "--out", "o", "--captures", CAPTURE, "--labels", NFSTREAM,
          "--map", "a=TLS", "--map", "a=DNS"], LabelError, "'a' is mapped twice"),
        (["--checkpoint", "flow-protocols", "--out", "o", "--captures", CAPTURE, "--labels", NFSTREAM,
          "--predictions", NFSTREAM, "--predictions", NFSTREAM], LabelError, "a second tool called nfstream-android"),
    ],
)  # fmt: skip
def test_what_is_refused_before_anything_is_read(arguments, kind, why):
    for dry in ([], ["--dry-run"]):
        error = invoke("evaluate", *arguments, *dry).exception
        assert isinstance(error, kind)
        assert why in str(error)


def test_a_run_or_a_checkpoint_is_never_written_over(tmp_path):
    zoo = find_checkpoint("flow-protocols")
    arguments = ["evaluate", "--checkpoint", zoo, "--captures", CAPTURE, "--labels", NFSTREAM]
    assert "holds a checkpoint: give another --out" in str(invoke(*arguments, "--out", zoo).exception)
    (tmp_path / "run.json").write_text("{}")
    assert "holds a run: give another --out" in str(invoke(*arguments, "--out", tmp_path).exception)


def test_a_dry_run_says_what_is_there_and_writes_nothing(tmp_path):
    said = tapline_train(
        "evaluate", "--checkpoint", "flow-protocols", "--captures", CAPTURE, "--labels", NFSTREAM,
        "--predictions", NFSTREAM, "--out", tmp_path / "out", "--dry-run",
    )  # fmt: skip
    assert "1 capture or log, labels by nfstream-android.csv (63 rows), beside nfstream-android (63 rows)" in said
    assert not (tmp_path / "out").exists()
