"""Folds of `evaluate-traces` that were measured before: taken up where they are of the same thing, else refused."""

from dataclasses import replace

import msgspec
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from tapline.training.data.labelled_traces import folds_of, make_trace_corpus
from tapline.training.data.samples import read_samples
from tapline.training.data.split import SplitError
from tapline.training.evaluation import trace_folds
from tapline.training.evaluation.outcomes import TraceOutcome
from tapline.training.evaluation.trace_folds import (
    PREFIXES,
    cross_validate,
    measured_folds,
    outcome_path,
)
from tapline.training.evaluation.variants import variant_of
from tapline.training.loop.config import TrainingError
from tapline.training.traces.trace_config import TraceTrainingConfig
from tapline.training.traces.trace_runs import classes_of
from tests.training.command import invoke, tapline_train

pytestmark = pytest.mark.whole

QUICK = ["-ep", "1", "--draws", "16", "-b", "8"]
OTHER = "give another --out, or delete"


def right(corpus, _variant, fold_of, fold, *_others):
    """An outcome without any training: every trace is called by its label."""
    held = np.flatnonzero(fold_of == fold)
    logits = 9 * np.eye(len(corpus.labels), dtype=np.float32)[corpus.truth[held]]
    return TraceOutcome(held, logits, dict.fromkeys(PREFIXES, logits), held, np.ones(len(held)), np.zeros(len(held)))


@pytest.fixture
def measured(corpus, tmp_path, monkeypatch):
    """Three folds of a variant in `tmp_path`; training anything again fails the test."""
    monkeypatch.setattr(trace_folds, "_measure", right)
    config = classes_of(TraceTrainingConfig(), corpus)
    variant = replace(variant_of("main", config), start={"w": torch.arange(4.0)})
    fold_of = folds_of(corpus, 3, 0)
    cross_validate(corpus, variant, fold_of, range(3), tmp_path)
    monkeypatch.setattr(trace_folds, "_measure", None)
    return variant, fold_of


def test_folds_are_taken_up_with_other_threads_on_another_device(corpus, measured, tmp_path):
    variant, fold_of = measured
    elsewhere = replace(variant, config=msgspec.structs.replace(variant.config, threads=2, device="auto"))
    assert measured_folds(corpus, elsewhere, fold_of, tmp_path) == {0, 1, 2}
    assert [len(each.rows) for each in cross_validate(corpus, elsewhere, fold_of, range(3), tmp_path)] == [3, 3, 3]


@pytest.mark.parametrize(
    "changes",
    [
        {"start": None},
        {"start": {"w": torch.arange(4.0) + 1}},
        {"start": {"v": torch.arange(4.0)}},
        {"captures": 2},
        {"left_out": ("Aria",)},
        {"frozen": True},
        {"trees": "header"},
    ],
    ids=str,
)
def test_folds_of_another_variant_are_refused(corpus, measured, tmp_path, changes):
    variant, fold_of = measured
    with pytest.raises(TrainingError, match=OTHER):
        cross_validate(corpus, replace(variant, **changes), fold_of, range(3), tmp_path)


def test_folds_of_other_settings_other_folds_and_other_traces_are_refused(corpus, measured, tmp_path):
    variant, fold_of = measured
    seeded = replace(variant, config=msgspec.structs.replace(variant.config, seed=1))
    fewer = replace(corpus, traces=corpus.traces[:-1])
    renamed = replace(corpus, labels=["A", *corpus.labels[1:]])
    for what in ((corpus, seeded, fold_of), (corpus, variant, folds_of(corpus, 2, 0)), (fewer, variant, fold_of),
                 (renamed, variant, fold_of)):  # fmt: skip
        with pytest.raises(TrainingError, match=OTHER):
            measured_folds(*what, tmp_path)


def test_a_flow_more_makes_other_traces(corpus, features):
    samples = list(read_samples(features))
    assert make_trace_corpus(samples, TraceTrainingConfig().trace).sha256 == corpus.sha256
    flow = samples[0].flow
    samples[0] = msgspec.structs.replace(
        samples[0], flow=msgspec.structs.replace(flow, payload_lengths=[*flow.payload_lengths, 1])
    )
    assert make_trace_corpus(samples, TraceTrainingConfig().trace).sha256 != corpus.sha256


def test_folds_that_do_not_say_what_they_are_of_are_refused(corpus, measured, tmp_path):
    variant, fold_of = measured
    path = outcome_path(tmp_path, variant, 1)
    save_file(load_file(path), path)
    with pytest.raises(TrainingError, match=OTHER):
        measured_folds(corpus, variant, fold_of, tmp_path)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(TrainingError, match="damaged: delete it"):
        measured_folds(corpus, variant, fold_of, tmp_path)


def test_an_encoder_is_shared_by_variants_that_differ_in_phase_1_alone(corpus):
    config = classes_of(TraceTrainingConfig(), corpus)
    variant, rows = variant_of("main", config), np.arange(6)

    def key(given, train=rows):
        return trace_folds.encoder_key(corpus, given, given.config.network, train)

    assert key(variant) == key(variant_of("no-time", config))
    others = [replace(variant, start={"w": torch.zeros(1)}), replace(variant, start={"w": torch.ones(1)})]
    assert len({key(variant), *map(key, others), key(variant, rows + 1)}) == 4


@pytest.fixture(scope="module")
def run(features, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "traces"
    tapline_train("train-traces", "--features", features, "--out", out, *QUICK)
    return out


def evaluate(features, run, out, *options):
    return invoke("evaluate-traces", "--features", features, "--run", run, "--out", out, *options)


def test_the_command_refuses_folds_of_something_else_before_it_trains(features, run, tmp_path, monkeypatch):
    monkeypatch.setattr(trace_folds, "_measure", right)
    unknown = ["--variant", "unknown", "--left-out"]
    assert evaluate(features, run, tmp_path, "--folds", "3", *unknown, "Aria").exit_code == 0
    monkeypatch.setattr(trace_folds, "_measure", None)
    assert "0 of 12 folds to train, 12 were" in evaluate(
        features, run, tmp_path, "--folds", "3", *unknown, "Aria", "--dry-run"
    ).output  # fmt: skip
    assert evaluate(features, run, tmp_path, "--folds", "3", *unknown, "Aria").exit_code == 0
    figures = (tmp_path / "evaluation.json").read_bytes()
    for options, folder in ((["--folds", "2"], "main"), (["--folds", "3", *unknown, "MAXGateway"], "unknown")):
        said = [str(evaluate(features, run, tmp_path, *options, *dry).exception) for dry in ([], ["--dry-run"])]
        assert said[0] == said[1]
        assert said[0].endswith(f"give another --out, or delete {tmp_path / folder} to measure it again")
    assert (tmp_path / "evaluation.json").read_bytes() == figures


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--tuned", "3"], "expected one of the folds 0 to 2"),
        (["--tuned", "0", "--tuned", "1", "--tuned", "2"], "leave one at least to be measured on"),
        (["--folds", "10"], "the captures fill 9 of them"),
        (["--left-out", "Aria"], "go together"),
        (["--variant", "unknown"], "go together"),
        (["--variant", "unknown", "--left-out", "aria"], "no such label: expected one of Aria, HomeMaticPlug"),
        (["--variant", "unknown", "--left-out", "Aria", "--left-out", "MAXGateway"], "fewer than two labels"),
    ],
)
def test_what_would_fail_after_training_is_refused_before(features, run, tmp_path, monkeypatch, options, why):
    monkeypatch.setattr(trace_folds, "_measure", None)
    for dry in ([], ["--dry-run"]):
        result = evaluate(features, run, tmp_path / "out", "--folds", "3", *options, *dry)
        assert isinstance(result.exception, TrainingError | SplitError)
        assert why in str(result.exception)
    assert not (tmp_path / "out").exists()
