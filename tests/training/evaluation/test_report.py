"""The figures of a cross-validation: the early point, calibration across folds, outcomes kept on disk."""

from dataclasses import replace

import numpy as np
import pytest

from tapline.training.evaluation.evaluation_record import EvaluationSettings
from tapline.training.evaluation.flow_figures import early_packets, evaluate
from tapline.training.evaluation.outcomes import FlowOutcome, read_outcomes, write_outcomes
from tapline.training.loop.config import TrainingError
from tapline.training.loop.run_files import OUTCOMES


def outcome(fold, seed=0, flows=60):
    rng = np.random.default_rng((seed, fold))
    truth = np.arange(flows) % 3
    logits = rng.normal(0, 1, (flows, 4)).astype(np.float32)
    logits[np.arange(flows), truth] += 3
    weak = rng.normal(0, 1, (flows, 4)).astype(np.float32)
    return FlowOutcome(
        fold=fold, captures=[f"{fold}-{n // 6}" for n in range(flows)], truth=truth, logits=logits,
        prefixes={1: weak, 8: logits}, contents={0: weak}, unknown_captures=["u"] * 9,
        unknown_logits=rng.normal(0, 1, (9, 4)).astype(np.float32), trees=truth, trees_confidence=np.full(flows, 0.8),
        trees_unknown_confidence=np.full(9, 0.4), forest=np.zeros(flows, np.int64), majority=0, int8=np.full(flows, 2),
    )  # fmt: skip


def test_the_early_point_is_the_first_that_costs_little():
    f1 = {"1": 0.60, "2": 0.70, "4": 0.795, "8": 0.80, "all": 0.80}
    error = {"1": 0.05, "2": 0.05, "4": 0.09, "8": 0.05}
    assert early_packets(f1, error) == 8
    assert early_packets(f1, {**error, "4": 0.06}) == 4
    assert early_packets({"1": 0.1, "2": 0.2, "all": 0.9}, {"1": 0.1, "2": 0.1}) == 2


def test_figures_of_a_cross_validation():
    outcomes = [outcome(fold) for fold in range(3)]
    figures = evaluate(outcomes, ["a", "b", "c"], EvaluationSettings(3, tuned=(1,)))
    assert [fold.tuned for fold in figures.folds] == [False, True, False]
    assert figures.macro_f1_trees == 1
    assert figures.macro_f1_forest == figures.macro_f1_majority == figures.macro_f1_int8 == pytest.approx(0.5 / 3)
    unasked = [replace(outcome, int8=np.zeros(0, np.int64)) for outcome in outcomes]
    assert evaluate(unasked, ["a", "b", "c"], EvaluationSettings(3)).macro_f1_int8 is None
    reported = [fold for fold in figures.folds if not fold.tuned]
    assert figures.macro_f1 == pytest.approx(np.mean([fold.macro_f1 for fold in reported]))
    assert figures.macro_f1_by_packets["8"] == figures.macro_f1_by_packets["all"] == pytest.approx(figures.macro_f1)
    assert figures.macro_f1_by_packets["1"] < 0.6 < figures.macro_f1
    assert figures.early_packets == 8
    assert figures.calibration_error < 0.15
    strict = evaluate(outcomes, ["a", "b", "c"], EvaluationSettings(3, tuned=(1,)), 0.5)
    assert strict.threshold > figures.threshold
    assert strict.known_rejected == pytest.approx(0.5, abs=0.2)


def test_outcomes_are_read_back(tmp_path):
    outcomes = [outcome(fold) for fold in range(2)]
    write_outcomes(tmp_path, outcomes)
    assert [path.name for path in tmp_path.iterdir()] == [OUTCOMES]
    for before, after in zip(outcomes, read_outcomes(tmp_path), strict=True):
        assert (after.fold, after.captures, after.majority) == (before.fold, before.captures, before.majority)
        np.testing.assert_array_equal(after.logits, before.logits)
        assert set(after.prefixes) == {1, 8}
        np.testing.assert_array_equal(after.prefixes[1], before.prefixes[1])
    (tmp_path / OUTCOMES).write_bytes(b"PK no archive")
    with pytest.raises(TrainingError, match="damaged: run `evaluate` again"):
        read_outcomes(tmp_path)
    with pytest.raises(TrainingError, match="run `evaluate` first"):
        read_outcomes(tmp_path / "absent")


def test_outcomes_from_before_int8_was_measured_are_read(tmp_path):
    write_outcomes(tmp_path, [outcome(0)])
    with np.load(tmp_path / OUTCOMES) as file:
        kept = {name: file[name] for name in file.files if not name.endswith("/int8")}
    np.savez(tmp_path / OUTCOMES, **kept)
    (read,) = read_outcomes(tmp_path)
    assert len(read.int8) == 0
    np.testing.assert_array_equal(read.logits, outcome(0).logits)
