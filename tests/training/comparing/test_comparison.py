"""What compare says: settings that differ, figures, the difference on the same things, and when there is none."""

import json
from dataclasses import replace

import numpy as np
import pytest

from tapline.training.comparing.comparison import compare
from tapline.training.comparing.comparison_text import WIDTH, comparison_lines
from tapline.training.comparing.evaluated import read_evaluated
from tapline.training.evaluation.measured import Measured
from tapline.training.evaluation.page import write_report
from tapline.training.evaluation.verdict_file import read_verdicts, write_verdicts
from tapline.training.loop.config import TrainingError
from tests.training.command import invoke, tapline_train

LABELS = ["DNS", "HTTP", "TLS"]
SMALL = ["-d", 16, "-nh", 2, "-l", 1, "-f", 32, "--packets", 8, "--content-bytes", 16, "--draws", 64]


def measured(wrong=(), n=300, labels=LABELS, **more):
    """Of n flows of 30 captures the places in `wrong` are called by the next label."""
    truth = np.arange(n) % 3
    said = truth.copy()
    said[list(wrong)] = (said[list(wrong)] + 1) % 3
    return Measured(
        "A model", "flow", labels, truth, 0.9 * np.eye(3)[said], [f"c/{i // 10}" for i in range(n)],
        ids=np.arange(n).astype(np.uint64), **more,
    )  # fmt: skip


def write(folder, given, how="folds", **settings):
    folder.mkdir(parents=True)
    write_report(folder, given)
    write_verdicts(folder, given, how, {"config": {"epochs": 3, "rate": 0.002}, "seconds": len(folder.name)} | settings)
    return folder


def compared(*folders):
    return compare([read_evaluated(folder) for folder in folders])


def test_verdicts_are_read_as_they_were_written(tmp_path):
    given = measured(range(5), folds=np.arange(300) % 2)
    found = read_verdicts(write(tmp_path / "a", given))
    assert (found.about.labels, found.about.how, found.about.unit, found.captures) == (
        LABELS,
        "folds",
        "flow",
        given.captures,
    )
    for name in ("ids", "truth", "predicted", "confidence", "folds"):
        np.testing.assert_array_equal(getattr(found, name), getattr(given, name))
    assert read_verdicts(tmp_path) is None
    (tmp_path / "a" / "verdicts.npz").write_bytes(b"half")
    with pytest.raises(TrainingError, match="damaged: evaluate again"):
        read_verdicts(tmp_path / "a")
    write_verdicts(tmp_path / "a", replace(given, ids=given.ids[:0]), "folds", {})
    assert read_verdicts(tmp_path / "a") is None


def test_only_settings_that_differ_are_shown(tmp_path):
    one = write(tmp_path / "a", measured())
    two = write(tmp_path / "long", measured(), config={"epochs": 5, "rate": 0.002, "new": True}, min_captures=3)
    found = compared(one, two)
    assert [(row.name, row.values) for row in found.settings] == [
        ("epochs", ["3", "5"]), ("min_captures", ["-", "3"]), ("new", ["-", "yes"]),
    ]  # fmt: skip


def test_the_difference_on_the_same_flows(tmp_path):
    found = compared(write(tmp_path / "a", measured(range(60))), write(tmp_path / "b", measured(range(50, 80))))
    (paired,) = found.paired
    assert (paired.why, paired.common, paired.captures) == ("", 300, 30)
    assert (paired.only_first_right, paired.only_second_right) == (20, 50)
    assert paired.gain == pytest.approx(paired.second - paired.first)
    assert paired.gain == pytest.approx(found.sides[1].figures.macro_f1 - found.sides[0].figures.macro_f1)
    assert paired.gain_interval.low < paired.gain < paired.gain_interval.high
    same = compared(tmp_path / "a", tmp_path / "a").paired[0]
    assert (same.gain, same.gain_interval.low, same.gain_interval.high) == (0, 0, 0)


def test_figures_of_other_labels_are_said_to_be_so(tmp_path):
    folders = [write(tmp_path / str(least), measured(min_support=least)) for least in (5, 10)]
    text = " ".join(" ".join(comparison_lines(compared(*folders))).split())
    assert "note: macro-F1 counts other labels, those with 5 or more things in 1, 10 or more things in 2" in text
    assert "note: macro-F1" not in "\n".join(comparison_lines(compared(folders[0], folders[0])))


def test_flows_that_differ_are_left_out_and_counted(tmp_path):
    given = measured()
    fewer = replace(given, truth=given.truth[::-1][:200], probabilities=given.probabilities[::-1][:200],
                    captures=given.captures[::-1][:200], ids=given.ids[::-1][:200])  # fmt: skip
    relabelled = replace(fewer, truth=np.where(np.arange(200) < 7, (fewer.truth + 1) % 3, fewer.truth))
    one, two = write(tmp_path / "a", given), write(tmp_path / "b", relabelled, features={"x": "0" * 64})
    paired = compared(one, two).paired[0]
    assert (paired.common, paired.only_in_first, paired.only_in_second, paired.relabelled) == (193, 100, 0, 7)
    assert "they learned from other data, and are compared on the flows that both were measured on" in paired.note
    assert (paired.first, paired.second) == (1.0, 1.0)


def test_labels_have_the_same_names_in_any_order(tmp_path):
    one, two = measured(range(30)), measured(range(30), labels=LABELS)
    turned = replace(two, labels=["TLS", "DNS", "HTTP"], truth=(two.truth + 1) % 3,
                     probabilities=np.roll(two.probabilities, 1, axis=1))  # fmt: skip
    paired = compared(write(tmp_path / "a", one), write(tmp_path / "b", turned)).paired[0]
    assert (paired.common, paired.gain, paired.only_first_right) == (300, 0, 0)


@pytest.mark.parametrize(
    ("change", "how", "why"),
    [
        ({"unit": "trace"}, "folds", "1 is of flows and 2 of traces"),
        ({}, "a split", "they were measured otherwise: 1 by folds, 2 by a split"),
        ({"ids": np.arange(300, 600).astype(np.uint64)}, "folds", "no flow was measured by both: other data"),
        ({"ids": np.zeros(0, np.uint64)}, "folds", None),
    ],
)
def test_what_is_not_compared(tmp_path, change, how, why):
    one, two = write(tmp_path / "a", measured()), write(tmp_path / "b", replace(measured(), **change), how)
    if why is None:
        with pytest.raises(TrainingError, match="nothing to compare: expected a run"):
            compared(one, two)
        return
    found = compared(one, two)
    assert why in found.paired[0].why
    assert f"no difference is shown: {why}" in " ".join(" ".join(comparison_lines(found)).split())


def test_a_terminal_of_80_columns(tmp_path):
    folders = [
        write(
            tmp_path / f"long-name-{n}", measured(range(n)), config={"epochs": n, "a.very.long.name": "x" * 90 + str(n)}
        )
        for n in range(5)
    ]
    lines = list(comparison_lines(compared(*folders)))
    assert max(map(len, lines)) <= WIDTH
    assert sum(line.startswith("figures ") for line in lines) == 2
    assert any(line.startswith("5 - 1  macro-F1 ") for line in lines)


@pytest.mark.parametrize("arguments", [["nowhere"], ["{a}"], ["{a}", "{empty}"]])
def test_what_cannot_be_compared_is_said(tmp_path, arguments):
    write(tmp_path / "a", measured())
    (tmp_path / "empty").mkdir()
    error = invoke(
        "compare", *(each.format(a=tmp_path / "a", empty=tmp_path / "empty") for each in arguments)
    ).exception
    assert isinstance(error, TrainingError)


@pytest.mark.whole
def test_runs_of_flows_and_a_checkpoint(protocols, tmp_path, monkeypatch):
    monkeypatch.setattr("tapline.training.evaluation.rivals.FLOW_TREES", 5)
    data = ["--features", protocols]
    for name, epochs in (("short", 1), ("long", 6)):
        tapline_train("finetune", *data, "--out", tmp_path / name, *SMALL, "-ep", epochs)
    assert "not evaluated" in tapline_train("compare", tmp_path / "short", tmp_path / "long")
    for name in ("short", "long"):
        tapline_train("evaluate", *data, "--run", tmp_path / name, "--folds", 2)
    tapline_train("export", "--run", tmp_path / "long", "--out", tmp_path / "zoo", "--name", "small", "--version", "1")
    sides = [tmp_path / "short", tmp_path / "long", tmp_path / "zoo" / "small" / "1"]
    found = json.loads(tapline_train("compare", *sides, "--format", "json", "--report", tmp_path / "c.html"))
    (row,) = (row for row in found["settings"] if row["name"] == "epochs")
    assert row["values"] == ["1", "6", "-"]
    assert all(len(set(row["values"]) - {"-"}) > 1 for row in found["settings"])
    records = [json.loads((side / "evaluation.json").read_text())["figures"] for side in sides[:2]]
    assert [side["figures"]["macro_f1"] for side in found["sides"]] == pytest.approx(
        [records[0]["macro_f1"], records[1]["macro_f1"], records[1]["macro_f1"]]
    )
    paired = found["paired"][0]
    assert paired["gain"] == pytest.approx(records[1]["macro_f1"] - records[0]["macro_f1"])
    assert (paired["common"], paired["only_in_first"]) == (sum(row["support"] for row in records[0]["classes"]), 0)
    assert "a checkpoint keeps figures alone" in found["paired"][1]["why"]
    assert "Settings that differ" in (tmp_path / "c.html").read_text()


@pytest.mark.whole
def test_runs_of_traces(features, tmp_path, monkeypatch):
    monkeypatch.setattr("tapline.training.evaluation.rivals.TRACE_TREES", 5)
    for name, context in (("all", "all"), ("behaviour", "behaviour")):
        arguments = ["--features", features, "--out", tmp_path / name, "--context", context]
        tapline_train("train-traces", *arguments, "-ep", 2, "--draws", 16, "-b", 8)
        arguments = ["--features", features, "--run", tmp_path / name, "--folds", 2]
        tapline_train("evaluate-traces", *arguments, "--out", tmp_path / f"of-{name}")
    found = json.loads(tapline_train("compare", tmp_path / "of-all", tmp_path / "of-behaviour", "--format", "json"))
    assert [row["name"] for row in found["settings"]] == ["network.context"]
    paired = found["paired"][0]
    assert (paired["why"], paired["common"], paired["captures"]) == ("", 9, 9)
    assert paired["gain"] == pytest.approx(
        found["sides"][1]["figures"]["macro_f1"] - found["sides"][0]["figures"]["macro_f1"]
    )
