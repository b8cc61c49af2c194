"""Figures of merit against values worked out by hand, and against scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import f1_score, roc_auc_score

from tapline.training.evaluation.calibration import (
    MOST_FLOWS,
    capped_weights,
    fit_temperature,
    rejection_threshold,
    softmax,
)
from tapline.training.loop.scores import (
    Predictions,
    auroc,
    bootstrap_draws,
    calibration_error,
    class_scores,
    f1_scores,
    interval,
    macro_f1,
    macro_f1_draws,
)


def test_macro_f1_counts_classes_with_enough_flows(rng):
    truth, predicted = rng.integers(0, 6, (2, 300))
    assert macro_f1(truth, predicted, 6, 1) == pytest.approx(f1_score(truth, predicted, average="macro"))
    truth, predicted = np.array([0, 0, 0, 1]), np.array([0, 0, 1, 2])
    assert macro_f1(truth, predicted, 3, 2) == pytest.approx(0.8)
    assert np.isnan(macro_f1(truth, predicted, 3, 5))


def test_auroc_with_ties(rng):
    known, unknown = rng.integers(0, 9, 80).astype(float), rng.integers(-3, 6, 50).astype(float)
    expected = roc_auc_score(np.r_[np.ones(80), np.zeros(50)], np.r_[known, unknown])
    assert auroc(known, unknown) == pytest.approx(expected)


def test_calibration_error():
    confidence = np.array([0.9, 0.9, 0.9, 0.9, 1.0])
    assert calibration_error(confidence, np.array([1, 1, 1, 0, 1], bool)) == pytest.approx((4 * 0.9 - 3) / 5)


def test_class_scores():
    rows = class_scores(np.array([0, 0, 1]), np.array([0, 1, 1]), ["a", "b", "c"], ["x", "y", "x"])
    assert [(row.label, row.captures, row.support, row.precision, row.recall) for row in rows] == [
        ("a", 2, 2, 1.0, 0.5), ("b", 1, 1, 0.5, 1.0),
    ]  # fmt: skip


def test_bootstrap_draws_whole_captures():
    captures = ["a"] * 9 + ["b"]
    draws = bootstrap_draws(captures, lambda rows: float((rows < 9).mean()), rounds=200)
    assert set(draws.tolist()) == {0.0, 0.9, 1.0}


def test_temperature_makes_confidence_match_accuracy(rng):
    logits = rng.normal(0, 2, (4000, 4)).astype(np.float32)
    truth = np.array([rng.choice(4, p=row) for row in softmax(logits)])
    assert fit_temperature(logits * 3, truth, np.ones(4000), 4) == pytest.approx(3, rel=0.15)


def test_threshold_rejects_the_share_asked_for():
    confidence = np.linspace(0, 1, 101)
    assert (confidence < rejection_threshold(confidence, np.ones(101), 0.05)).mean() == pytest.approx(0.05, abs=0.01)


def test_a_capture_counts_for_so_many_flows_of_a_class():
    weights = capped_weights(["a"] * 100 + ["b"], np.array([0] * 80 + [1] * 20 + [0]))
    assert weights[:80].sum() == pytest.approx(MOST_FLOWS)
    assert weights[80:].tolist() == [1] * 21


def test_weights_count_in_f1():
    truth, predicted = np.array([0, 0, 1]), np.array([0, 1, 1])
    assert f1_scores(truth, predicted, 2, np.array([1, 0.5, 1])) == pytest.approx([2 / 2.5, 2 / 2.5])


def test_draws_without_a_class_that_counts_are_left_out_of_the_interval():
    classes = np.array([0] * 6 + [1, 2])  # only class 0 has six flows, all of one capture
    fold = Predictions(classes, classes, ["a"] * 6 + ["b", "c"])
    draws = macro_f1_draws([fold], 3, 6)
    assert 0 < np.isnan(draws).mean() < 0.6
    assert (draws[~np.isnan(draws)] == 1).all()
    assert interval(draws).low == 1
    both = macro_f1_draws([fold, Predictions(np.zeros(6, int), np.ones(6, int), ["d"] * 6)], 3, 6)
    assert set(both.tolist()) == {0.0, 0.5}  # the mean over the folds that have a class in the draw


def test_a_temperature_is_found_where_background_takes_the_share_of_flows_that_are_right() -> None:
    sure, barred = [4.0, 0.0, -9.0], [1.0, 0.0, 9.0]  # two labels and the background
    logits = np.array([sure] * 90 + [barred] * 8 + [sure] * 5, np.float32)
    truth = np.array([0] * 98 + [1] * 5)
    assert 0.5 < fit_temperature(logits, truth, np.ones(103), 2) < 3
