"""Figures of merit against values worked out by hand, and against scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import f1_score, roc_auc_score

from training.calibrate import capture_weights, fit_temperature, rejection_threshold, softmax
from training.metrics import auroc, bootstrap_draws, calibration_error, class_scores, macro_f1


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


def test_temperature_undoes_a_scale(rng):
    logits = rng.normal(0, 2, (4000, 4)).astype(np.float32)
    truth = np.array([rng.choice(4, p=row) for row in softmax(logits)])
    assert fit_temperature(logits * 3, truth, np.ones(4000)) == pytest.approx(3, rel=0.1)


def test_threshold_rejects_the_share_asked_for():
    confidence = np.linspace(0, 1, 101)
    assert (confidence < rejection_threshold(confidence, np.ones(101), 0.05)).mean() == pytest.approx(0.05, abs=0.01)


def test_a_capture_weighs_the_root_of_its_flows():
    weights = capture_weights(["a", "a", "a", "a", "b"])
    assert weights[:4].sum() == pytest.approx(2)
    assert weights[4] == 1
