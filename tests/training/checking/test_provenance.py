"""What an evaluation of a checkpoint is of: in its record, on its page, and as settings that differ."""

import hashlib
import json
import shutil
from datetime import UTC, datetime

from tapline.installation import version
from tapline.training.checking.checkpoint_check import find_checkpoint
from tests.training.checking.flow_checks import CAPTURE, NFSTREAM, evaluate, labels_by_uid
from tests.training.command import tapline_train


def test_the_record_says_what_decides_the_figures(tmp_path):
    _, record = evaluate(tmp_path, "--labels", NFSTREAM, "--map", "a=TLS", "--predictions", f"{NFSTREAM}=other")
    found = record["provenance"]
    weights = find_checkpoint("flow-protocols") / "model.onnx"
    table = hashlib.sha256(NFSTREAM.read_bytes()).hexdigest()
    assert found["checkpoint_files"]["model.onnx"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert found["labels"] == found["tools"]["other"] == {"name": NFSTREAM.name, "sha256": table}
    assert found["captures"] == [{"name": "android.pcap/android.pcap", "size_bytes": CAPTURE.stat().st_size}]
    assert (found["tapline"], found["maps"]) == (version(), ["a=TLS"])
    assert (found["bootstrap_draws"], found["bootstrap_seed"]) == (500, 0)
    assert abs((datetime.now(UTC) - datetime.fromisoformat(found["date"])).days) < 1
    page = (tmp_path / "report.html").read_text()
    for text in (f"by tapline {version()}", table[:12], found["date"], "500 draws of captures, seed 0", "a=TLS"):
        assert text in page


def test_captures_labels_joins_and_maps_are_settings(tmp_path, served_flows):
    shutil.copy(CAPTURE, tmp_path / "other.pcap")
    labels = labels_by_uid(tmp_path / "labels.csv", served_flows)
    evaluate(tmp_path / "a", "--labels", NFSTREAM)
    evaluate(tmp_path / "same", "--labels", NFSTREAM)
    evaluate(tmp_path / "b", "--labels", labels, "--map", "x=TLS", "--predictions", NFSTREAM)
    evaluate(tmp_path / "c", "--labels", NFSTREAM, captures=tmp_path / "other.pcap")

    def differ(other):
        said = tapline_train("compare", tmp_path / "a", tmp_path / other, "--format", "json")
        return {row["name"].removeprefix("measured."): row["values"] for row in json.loads(said)["settings"]}

    assert differ("same") == {}
    assert set(differ("b")) == {"labels", "labels_sha256", "joined_by", "maps", "predictions"}
    assert differ("b")["joined_by"] == ["endpoints", "uid"]
    assert differ("c").pop("captures") == ["1 of android.pcap", "1 of other.pcap"]
    assert set(differ("c")) == {"captures", "captures_sha256"}
