"""A verdict that is unknown says so under its label, in every format; the nearest label stands beside it."""

import csv
import io
import json
from collections import Counter

import pytest

from tapline.models.checkpoint import Unknown
from tests.conftest import LABELS, make_checkpoint, make_trace_checkpoint
from tests.paths import DATA
from tests.service.command.cli_runner import tapline

pytestmark = pytest.mark.whole

CAPTURE = DATA / "captures" / "android.pcap"


@pytest.fixture(scope="module")
def classify(tmp_path_factory):
    """By models to whom some flows, and all traces, are unknown."""
    folder = tmp_path_factory.mktemp("repository")
    flows = make_checkpoint(folder / "random" / "1", unknown=Unknown(0.8))
    traces = make_trace_checkpoint(folder / "random-tracegram" / "1", unknown=Unknown(1.0))

    def run(*options):
        result = tapline("classify", CAPTURE, "--checkpoint", flows, "--traces", traces, *options)
        assert result.returncode == 0, result.stderr
        return result.stdout

    return run


def test_json_lines_and_sheets_say_the_same(classify):
    whole = json.loads(classify("-f", "json"))
    said = [
        (verdict["label"], verdict["nearest"], verdict["unknown"])
        for verdict in (flow["verdict"] for flow in whole["flows"])
    ]
    assert {unknown for _, _, unknown in said} == {True, False}
    for label, nearest, unknown in said:
        assert nearest in LABELS
        assert label == ("unknown" if unknown else nearest)
    assert {entry["label"]: entry["flows"] for entry in whole["summary"]["labels"]} == Counter(row[0] for row in said)
    rows = list(csv.DictReader(io.StringIO(classify("-f", "csv"))))
    assert [(row["label"], row["nearest"], row["unknown"] == "True") for row in rows] == said
    own = {flow["uid"]: flow["verdict"]["label"] for flow in whole["flows"]}
    for trace in whole["traces"]:
        assert (trace["verdict"]["label"], trace["verdict"]["unknown"]) == ("unknown", True)
        assert trace["verdict"]["nearest"] in LABELS
        assert all(flow["label"] == own[flow["uid"]] for flow in trace["top_flows"])
    traces = list(csv.DictReader(io.StringIO(classify("-f", "csv", "--show", "traces"))))
    assert {row["label"] for row in traces} == {"unknown"}
    assert {row["nearest"] for row in traces} <= set(LABELS)


def test_tables_and_pages_name_the_nearest_beside_it(classify, tmp_path):
    page = tmp_path / "report.html"
    table = classify("--limit", "0", "--report", page)
    for text in (table, page.read_text().replace("</span>", "").replace('<span class="quiet">', "")):
        assert any(f"unknown (nearest {label})" in text for label in LABELS)
