"""One meaning of a figure everywhere that it is shown: over which labels, of how many things."""

import numpy as np
import pytest

from tapline.training.evaluation.verdict_file import read_verdicts
from tests.paths import DATA
from tests.training.checking.flow_checks import evaluate


def test_figures_of_groups_count_the_labels_that_the_headline_counts(tmp_path):
    captures, table = DATA / "protocols" / "pcap", DATA / "protocols" / "flows.csv"
    said, record = evaluate(tmp_path, "--labels", table, captures=captures)
    figures, verdicts = record["figures"], read_verdicts(tmp_path)
    of_capture, least = np.array(verdicts.captures), figures["min_support"]
    assert least == 5
    for row in [*figures["by_capture"], *figures["corpora"]]:
        truth, predicted = (
            values[np.char.startswith(of_capture, row["name"])] for values in (verdicts.truth, verdicts.predicted)
        )
        f1 = [
            2 * (truth[predicted == label] == label).sum() / ((truth == label).sum() + (predicted == label).sum())
            for label in set(truth.tolist())
            if (truth == label).sum() >= least
        ]
        assert row["macro_f1"] == (pytest.approx(np.mean(f1)) if f1 else None)
    assert {row["macro_f1"] for row in figures["by_capture"]} == {None}
    (corpus,) = figures["corpora"]
    assert corpus["macro_f1"] == pytest.approx(figures["macro_f1"])
    counted = sum(row["support"] >= least for row in figures["classes"])
    assert f"over the {counted} of {len(figures['classes'])} labels with 5 flows or more (" in said
    page = (tmp_path / "report.html").read_text()
    assert "Macro-F1 counts the labels with 5 flows or more there: - where there is none." in page
    assert f"{counted} of the {len(figures['classes'])} that occur" in page
