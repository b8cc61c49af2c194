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


def with_ports(before, seed=9):
    """The outcome of a model with ports, which finds half of what it finds without them."""
    rng = np.random.default_rng((seed, before.fold))
    worse = before.logits.copy()
    worse[::2] = rng.normal(0, 1, (len(worse[::2]), 4))
    return replace(
        before, without_ports=worse, random_ports=worse, forged_ports=worse[:, ::-1].copy(),
        unknown_without_ports=before.unknown_logits, unknown_labels=["strange"] * 9,
        context_trees=before.truth, context_trees_random=before.forest, context_trees_forged=before.forest,
        ports=before.truth, ports_random=before.forest, ports_forged=before.forest,
    )  # fmt: skip


def test_ports_on_and_off_are_measured_and_calibrated_apart():
    plain = [outcome(fold) for fold in range(3)]
    labels, settings = ["a", "b", "c"], EvaluationSettings(3)
    figures = evaluate([with_ports(each) for each in plain], labels, settings)
    off = evaluate([replace(each, logits=with_ports(each).without_ports) for each in plain], labels, settings)
    without = figures.without_ports
    assert (without.temperature, without.threshold) == (off.temperature, off.threshold)
    assert (without.macro_f1, without.calibration_error) == (off.macro_f1, off.calibration_error)
    assert (without.unknown_auroc, without.known_rejected) == (off.unknown_auroc, off.known_rejected)
    assert figures.temperature != without.temperature
    by_name = {model.name: model.macro_f1 for model in figures.models}
    assert by_name["this model"] == figures.macro_f1 > by_name["this model, ports off"] == without.macro_f1
    assert by_name["this model, random ports"] == without.macro_f1 > by_name["this model, forged ports"]
    assert by_name["table of server ports"] == by_name["trees with context"] == 1
    assert [fold.without_ports.macro_f1 for fold in figures.folds] == [fold.macro_f1 for fold in off.folds]
    assert [fold.macro_f1_random_ports for fold in figures.folds] == [fold.macro_f1 for fold in off.folds]


def test_models_and_trees_tell_what_was_never_learned_by_the_same_measure():
    """Where corpora are left out that is of all their flows, not the mean over corpora."""
    first, second = outcome(0), outcome(1)
    second = replace(second, trees_confidence=np.full(60, 0.3), trees_unknown_confidence=np.full(9, 0.2))
    outcomes = [replace(each, ports=each.truth, corpus=name) for each, name in ((first, "a"), (second, "b"))]
    by_capture, by_corpus = (
        evaluate(outcomes, ["a", "b", "c"], EvaluationSettings(2, by=by)) for by in ("capture", "corpus")
    )
    assert [fold.unknown_auroc_trees for fold in by_corpus.folds] == [1, 1]
    assert by_capture.unknown_auroc_trees == 1
    assert by_corpus.unknown_auroc_trees == pytest.approx(0.75)  # half of the known flows lie below half of the others


def test_zeek_is_measured_where_its_logs_are():
    labels, settings = ["a", "b", "c"], EvaluationSettings(3)
    outcomes = [replace(outcome(fold), zeek=np.full(60, 4)) for fold in range(3)]
    assert evaluate(outcomes, labels, settings).beside_zeek == []
    outcomes[0].zeek[:30] = outcomes[0].truth[:30]
    outcomes[0].zeek[20:30] = 3  # it says nothing
    figures = evaluate(outcomes, labels, settings)
    assert figures.zeek_flows == 30
    by_name = {model.name: model.macro_f1 for model in figures.beside_zeek}
    assert by_name["Zeek's service"] == pytest.approx(0.8, abs=0.01)  # of each label two thirds are found
    assert by_name["this model"] == pytest.approx(1, abs=0.2)


def test_outcomes_of_before_have_no_figures_without_ports():
    figures = evaluate([outcome(fold) for fold in range(3)], ["a", "b", "c"], EvaluationSettings(3))
    assert figures.without_ports is None
    assert figures.folds[0].without_ports is figures.folds[0].macro_f1_forged_ports is None
    assert "this model, ports off" not in {model.name for model in figures.models}


def test_every_pair_of_confident_mistakes_is_told():
    def sure(before, flows, called):
        """So many known flows of label a, and as many unknown ones, are `called` with certainty."""
        logits, unknown = np.zeros((60, 4), np.float32), np.zeros((9, 4), np.float32)
        said = before.truth.copy()
        said[np.flatnonzero(said == 0)[:flows]] = called
        logits[np.arange(60), said] = unknown[:flows, called] = 200  # whatever the temperature
        unknown[flows:, 3] = 200  # background, which is no label
        return replace(before, logits=logits, unknown_logits=unknown, unknown_labels=["strange"] * 9,
                       captures=[f"{before.fold}/{n // 6}" for n in range(60)])  # fmt: skip

    outcomes = [sure(outcome(0), 3, 1), sure(outcome(1), 3, 1), sure(outcome(2), 5, 2)]
    mistakes = evaluate(outcomes, ["a", "b", "c"], EvaluationSettings(3)).confident_mistakes
    assert [(m.label, m.called, m.learned, m.count, m.captures, m.corpora) for m in mistakes] == [
        ("a", "b", True, 6, 4, ["0", "1"]),
        ("strange", "b", False, 6, 1, ["u"]),
    ]
    alone = evaluate(outcomes[:2], ["a", "b", "c"], EvaluationSettings(3, tuned=(1,)))
    assert alone.confident_mistakes == []


def test_outcomes_are_read_back(tmp_path):
    outcomes = [outcome(0), with_ports(outcome(1))]
    write_outcomes(tmp_path, outcomes)
    assert [path.name for path in tmp_path.iterdir()] == [OUTCOMES]
    for before, after in zip(outcomes, read_outcomes(tmp_path), strict=True):
        assert (after.fold, after.captures, after.majority) == (before.fold, before.captures, before.majority)
        np.testing.assert_array_equal(after.logits, before.logits)
        assert set(after.prefixes) == {1, 8}
        np.testing.assert_array_equal(after.prefixes[1], before.prefixes[1])
        np.testing.assert_array_equal(after.without_ports, before.without_ports)
        assert after.unknown_labels == before.unknown_labels
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
