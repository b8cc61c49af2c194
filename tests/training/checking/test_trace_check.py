"""A trace checkpoint on somebody's captures: traces as they are served, labelled by folder, host, capture or flows."""

import json

import pytest

from tapline.training.data.store import id_of
from tapline.training.evaluation.verdict_file import read_verdicts
from tests.paths import DATA
from tests.service.command.cli_runner import tapline
from tests.training.command import tapline_train

CAPTURES = DATA / "traces"


def evaluate(out, *arguments, checkpoint="iot-devices", captures=CAPTURES):
    tapline_train("evaluate", "--checkpoint", checkpoint, "--captures", captures, "--out", out, *arguments)
    return json.loads((out / "evaluation.json").read_text())


@pytest.fixture(scope="module")
def served():
    """What `tapline classify` says of each trace, by the path of its capture."""
    names = sorted(CAPTURES.rglob("*.pcap"))
    result = tapline("classify", *names, "--traces", "iot-devices", "--format", "json", "--show", "traces")
    return json.loads(result.stdout)["traces"]


def largest(served):
    """Of each capture the trace with most flows."""
    found = {}
    for trace in served:
        if trace["source"] not in found or trace["flows"] > found[trace["source"]]["flows"]:
            found[trace["source"]] = trace
    return found


def capture_of(source):
    return "traces/" + "/".join(source.split("/")[-2:])


def test_traces_are_those_that_are_served(tmp_path, served):
    record = evaluate(tmp_path / "out", "--label-from-folder")
    verdicts = read_verdicts(tmp_path / "out")
    said = dict(zip(verdicts.ids.tolist(), zip(verdicts.predicted, verdicts.confidence, strict=True), strict=True))
    expected = {
        id_of(capture_of(source), f"{trace['subject']} {trace['start_us']}"): (
            verdicts.about.labels.index(trace["verdict"]["nearest"]), trace["verdict"]["confidence"],
        )
        for source, trace in largest(served).items()
    }  # fmt: skip
    assert said == expected
    assert (record["unit"], record["figures"]["things"], record["figures"]["captures"]) == ("trace", 9, 9)
    assert {row["label"] for row in record["figures"]["classes"]} == {"Aria", "HomeMaticPlug", "MAXGateway"}


def test_labels_by_host_by_capture_and_by_flow_are_the_same(tmp_path, served):
    tops = largest(served)
    folder = evaluate(tmp_path / "folder", "--label-from-folder")["figures"]
    rows = [(source, trace, source.split("/")[-2]) for source, trace in tops.items()]
    tables = {
        "capture": ["pcap,label", *(f"{capture_of(source)},{label}" for source, _, label in rows)],
        "host": ["source,subject,label", *(f"{source},{trace['subject']},{label}" for source, trace, label in rows)],
        "flow": ["uid,label", *(f"{flow['uid']},{label}" for _, trace, label in rows for flow in trace["top_flows"])],
    }
    for name, lines in tables.items():
        (tmp_path / f"{name}.csv").write_text("\n".join(lines) + "\n")
        record = evaluate(tmp_path / name, "--labels", tmp_path / f"{name}.csv")
        assert record["figures"] == folder, name


def test_hosts_are_never_learned_and_suspicious(tmp_path):
    record = evaluate(
        tmp_path / "out", "--label-from-folder", "--map", "Aria=trickbot", checkpoint="intrusion",
    )["figures"]  # fmt: skip
    assert {row["label"] for row in record["strange"]} == {"HomeMaticPlug", "MAXGateway"}
    assert {row["label"]: row["traces"] for row in record["suspicion"]} == {
        "HomeMaticPlug": 3,
        "MAXGateway": 3,
        "trickbot": 3,
    }
    assert "Called suspicious" in (tmp_path / "out" / "report.html").read_text()


def test_another_tool_by_capture(tmp_path, served):
    lines = [f"{capture_of(source)},{'Aria' if n else 'unknown'}" for n, source in enumerate(sorted(largest(served)))]
    (tmp_path / "tool.csv").write_text("\n".join(["pcap,prediction", *lines]) + "\n")
    record = evaluate(tmp_path / "out", "--label-from-folder", "--predictions", tmp_path / "tool.csv")
    (tool,) = record["figures"]["tools"]
    assert (tool["things"], tool["with_row"], tool["said"]) == (9, 9, 8)
    assert tool["tool"]["accuracy"] == pytest.approx(2 / 8)
