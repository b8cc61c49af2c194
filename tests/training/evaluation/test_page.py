"""The report: its figures are those of the predictions, it needs nothing outside, and names are not markup."""

import json
import re

import numpy as np
import pytest

from tapline.training.evaluation.measured import Curve, Measured, figures_of
from tapline.training.evaluation.page import write_report
from tapline.training.loop.scores import macro_f1_draws, weighted_f1


def measured(**more):
    rng = np.random.default_rng(3)
    truth = np.arange(300) % 3
    right = rng.random(300) < 0.9
    said = np.where(right, truth, (truth + 1) % 3)
    probabilities = np.full((300, 3), 0.05)
    probabilities[np.arange(300), said] = 0.9
    return Measured(
        title="A <b>model</b>", unit="trace", labels=["one", "two & $x$", "<three>"], truth=truth,
        probabilities=probabilities, captures=[f"c{n // 10}" for n in range(300)],
        rivals={"always one": np.zeros(300, np.int64)}, **more,
    )  # fmt: skip


def test_figures_follow_from_the_predictions():
    given = measured(unknown_confidence=np.array([0.2, 0.3, 0.95]), threshold=0.5)
    figures = figures_of(given)
    accuracy = float((given.predicted == given.truth).mean())
    assert figures.accuracy == pytest.approx(accuracy)
    assert figures.calibration_error == pytest.approx(abs(0.9 - accuracy))
    assert [model.name for model in figures.models] == ["this model", "always one"]
    assert figures.models[1].macro_f1 == pytest.approx(0.5 / 3)
    assert figures.models[1].gain == pytest.approx(figures.models[0].macro_f1 - 0.5 / 3)
    own = figures.models[0]
    assert own.interval.low < own.macro_f1 < own.interval.high
    assert figures.unknown_rejected == pytest.approx(2 / 3)
    assert figures.known_rejected == 0
    assert figures.unknown_auroc == pytest.approx(2 / 3)
    assert figures.risk[-1].risk == pytest.approx(1 - accuracy)
    assert sum(mistake.count for mistake in figures.mistakes) == 300 - (given.predicted == given.truth).sum()
    assert sum(bin_.count for bin_ in figures.bins) == 300


def test_macro_f1_is_the_mean_over_folds():
    folds = np.arange(300) // 150
    given = measured(folds=folds)
    parts = given.by_fold(given.predicted)
    assert [len(part.truth) for part in parts] == [150, 150]
    draws = macro_f1_draws(parts, 3, 1)
    assert figures_of(given).models[0].macro_f1 == pytest.approx(given.macro_f1(given.predicted))
    assert draws.min() < given.macro_f1(given.predicted) < draws.max()


def test_weighted_f1_weighs_by_support():
    truth, said = np.array([0, 0, 0, 1]), np.array([0, 0, 0, 0])
    assert weighted_f1(truth, said, 2) == pytest.approx(0.75 * 6 / 7)


def test_the_page_is_whole_and_safe(tmp_path):
    curves = [Curve("How early?", "packets", ["1", "all"], [0.5, 0.6], [0.1, 0.05], note="a < b")]
    write_report(tmp_path, measured(curves=curves, unknown_confidence=np.array([0.1, 0.99]), threshold=0.5))
    page = (tmp_path / "report.html").read_text()
    assert "A &lt;b&gt;model&lt;/b&gt;" in page
    assert "<three>" not in page
    assert "two &amp; $x$" in page
    assert page.count("<svg") == 7
    assert not re.search(r'(src|href)="(?!#|data:image/png)', page.replace("xlink:href", "href"))
    assert not re.search(r"@import|url\((?!#)", page)
    figures = json.loads((tmp_path / "report.json").read_text())
    assert figures["measured"] == 300
    assert f">{figures['models'][0]['macro_f1']:.3f}<" in page


def test_a_perfect_model_has_a_page_too(tmp_path):
    truth = np.arange(20) % 2
    perfect = Measured("Perfect", "flow", ["a", "b"], truth, np.eye(2)[truth], [f"c{n}" for n in range(20)])
    figures = write_report(tmp_path, perfect)
    assert (figures.accuracy, figures.calibration_error, figures.mistakes) == (1.0, 0.0, [])
    assert "every one is right" in (tmp_path / "report.html").read_text()
