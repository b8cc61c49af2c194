"""Training of traces without an encoder, from captures to a served checkpoint; what of a corpus is learned, and how
often; days that stay together."""

import json
import shutil
from collections import Counter
from dataclasses import replace

import msgspec
import numpy as np
import pytest
import torch

from tapline.models.trace_context import CONTEXTS, trace_context
from tapline.models.verdict import verdicts
from tapline.service.engines.loading import load_trace_engine
from tapline.service.engines.trace_engine import TraceInput
from tapline.training.data.labelled_traces import TraceCorpus, day_folds, day_of, folds_of
from tapline.training.data.samples import read_samples
from tapline.training.evaluation.evaluation_record import read_trace_evaluation
from tapline.training.evaluation.outcomes import read_outcome
from tapline.training.loop.config import TrainingError
from tapline.training.loop.run_files import load_weights
from tapline.training.loop.runs import Job
from tapline.training.traces.background import learned_with, make_background
from tapline.training.traces.trace_config import Phase, TraceTrainingConfig, context_config
from tapline.training.traces.trace_record import read_trace_run
from tapline.training.traces.trace_runs import train_traces_run
from tests.paths import DATA
from tests.service.command.cli_runner import tapline
from tests.training.command import invoke, tapline_train

pytestmark = pytest.mark.whole

CAPTURES = DATA / "traces"
SETTINGS = TraceTrainingConfig().trace


@pytest.fixture(scope="module")
def background(others):
    return make_background(read_samples(others), SETTINGS, ())


@pytest.fixture(scope="module")
def run(features, others, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "traces"
    quick = ["-ep", "40", "--draws", "32", "-b", "8", "-lr", "1e-2", "--background-share", "0.4"]
    tapline_train("train-traces", "--features", features, "--background", others, "--out", out, *quick)
    return out


@pytest.fixture(scope="module")
def served(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("checkpoints")
    tapline_train("export-traces", "--run", run, "--out", out, "--name", "devices", "--version", "1")
    return out / "devices" / "1"


def quick_config(fields="all", width=16):
    config = context_config(SETTINGS, CONTEXTS[fields])
    network = msgspec.structs.replace(config.network, feature_size=width, queries=4)
    return msgspec.structs.replace(config, network=network, traces=Phase(2, 16, 8, 2e-3))


def as_input(each, fields):
    flows = each.trace.flows
    times = (np.array([getattr(flow, name) for flow in flows], np.int64) for name in ("start_us", "duration_us"))
    return TraceInput(np.zeros((len(flows), 0), np.float32), *times, trace_context(flows, fields))


def test_the_default_is_no_encoder_and_every_field(run, others, background):
    record = read_trace_run(run)
    network = record.config.network
    assert (network.encoder, network.context, network.bag) == ("context", CONTEXTS["all"], True)
    assert (record.config.mm4flow, record.start) == (None, "")
    assert (list(record.background), record.background_traces) == (["others"], len(background))
    assert not [name for name in load_weights(run / "model.safetensors") if name.startswith("encoder.")]


def test_devices_are_learned_and_background_is_not_taken_for_one(served, corpus, background):
    engines = [load_trace_engine(kind, served) for kind in ("onnx", "torch")]
    checkpoint = engines[0].checkpoint
    assert (checkpoint.has_encoder, checkpoint.unknown.background) == (False, True)
    assert not list(served.glob("encoder*"))
    inputs = [as_input(each, checkpoint.network.context) for each in [*corpus.traces, *background]]
    logits = [engine.score(inputs).logits for engine in engines]
    np.testing.assert_allclose(logits[0], logits[1], atol=1e-3)
    said = logits[0].argmax(axis=1)
    known = len(corpus.traces)
    assert (said[:known] == corpus.truth).mean() > 0.8
    assert (said[known:] == len(checkpoint.labels)).mean() > 0.8
    assert {each.label for each in verdicts(logits[0], checkpoint)} <= set(corpus.labels)


def test_the_command_line_names_the_device(served, corpus):
    learned = corpus.traces[0]
    capture = DATA / learned.capture
    result = tapline("classify", capture, "--traces", served, "--format", "json")
    assert result.returncode == 0, result.stderr
    found = [each for each in json.loads(result.stdout)["traces"] if each["subject"] == learned.trace.subject]
    assert max(found, key=lambda each: each["flows"])["verdict"]["label"] == learned.label


def test_an_interrupted_run_goes_on_where_it_was(features, others, tmp_path):
    def interrupt(step):
        if step.step == 3:
            raise KeyboardInterrupt

    def job(name):
        return Job([features], tmp_path / name, quick_config(), background=[others])

    with pytest.raises(KeyboardInterrupt):
        train_traces_run(job("broken"), interrupt)
    assert "of an interrupted run" in " ".join(train_traces_run(replace(job("broken"), dry_run=True)).lines())
    other = replace(job("broken"), config=quick_config("behaviour"))
    with pytest.raises(TrainingError, match="unfinished run with other settings or data"):
        train_traces_run(other)
    train_traces_run(job("broken"))
    train_traces_run(job("whole"))
    broken, whole = (load_weights(tmp_path / name / "model.safetensors") for name in ("broken", "whole"))
    assert broken.keys() == whole.keys()
    assert all(torch.equal(broken[name], whole[name]) for name in whole)


def test_fields_by_name(features, tmp_path):
    quick = ["-ep", "1", "--draws", "8", "-b", "8", "--context", "behaviour"]
    tapline_train("train-traces", "--features", features, "--out", tmp_path / "run", *quick)
    assert read_trace_run(tmp_path / "run").config.network.context == CONTEXTS["behaviour"]
    wrong = invoke("train-traces", "--features", features, "--out", tmp_path, "--context", "none")
    assert wrong.exit_code == 2


@pytest.mark.parametrize("given", [["--encoders", "e"], ["--lengths", "12"], ["--content-bytes", "0"]])
def test_fields_beside_an_encoder_are_refused(features, tmp_path, given):
    said = invoke("train-traces", "--features", features, "--out", tmp_path, "--context", "all", *given)
    assert "--context is of a model without an encoder" in str(said.exception)


def test_fields_beside_a_start_are_refused(features, run, tmp_path):
    said = invoke("train-traces", "--features", features, "--start", run, "--out", tmp_path, "--context", "all")
    assert "--context: with --start it is as that run had it" in str(said.exception)


def test_labels_of_fewer_captures_are_left_out_and_said(tmp_path):
    for label, count in (("Aria", 3), ("HomeMaticPlug", 3), ("MAXGateway", 2)):
        (tmp_path / "captures" / label).mkdir(parents=True)
        for capture in sorted((CAPTURES / label).iterdir())[:count]:
            shutil.copy(capture, tmp_path / "captures" / label)
    extracted = tmp_path / "features"
    tapline_train("extract", tmp_path / "captures", "--label-from-folder", "--heads", "header", "--out", extracted)
    arguments = ["train-traces", "--features", extracted, "-ep", "1", "--draws", "8", "-b", "8", "--min-captures"]
    output = tapline_train(*arguments, "3", "--out", tmp_path / "run")
    assert "too few captures, not learned: MAXGateway" in output
    record = read_trace_run(tmp_path / "run")
    assert (record.labels, record.not_learned, record.traces) == (["Aria", "HomeMaticPlug"], ["MAXGateway"], 6)
    everything = tapline_train(*arguments, "2", "--out", tmp_path / "all", "--dry-run")
    assert "8 traces of 3 labels" in everything
    assert "not learned" not in everything
    none = invoke(*arguments, "4", "--out", tmp_path / "none")
    assert "traces of 0 label(s) in 4 captures or more: expected 2 labels or more" in str(none.exception)


def test_a_day_is_what_a_name_begins_with():
    assert day_of("malware/emotet/2017-05-24_a.pcap") == "2017-05-24"
    for name in ("x/a-2017-05-24.pcap", "2017-05-24/a.pcap", "x/17-05-24_a.pcap"):
        assert day_of(name) == name


def test_folds_by_day_keep_a_day_together_and_spread_each_label(corpus):
    days = [f"x/{label}/2020-01-0{1 + place % 3}_{place}.pcap" for place, label in enumerate([*"abc"] * 6)]
    traces = [
        replace(corpus.traces[place % 3], label="abc"[place // 3 % 2], capture=day) for place, day in enumerate(days)
    ]
    dated = TraceCorpus(traces, ["a", "b"], corpus.left_out)
    by_day, by_capture = day_folds(dated, 3), folds_of(dated, 3, 0)
    folds = {day: set(by_day[[day_of(name) == day for name in days]].tolist()) for day in map(day_of, days)}
    assert len(folds) == 3
    assert sorted(map(len, folds.values())) == [1, 1, 1]
    assert set(by_day.tolist()) == {0, 1, 2}
    for label in (0, 1):
        assert Counter(by_day[dated.truth == label].tolist()) == {0: 3, 1: 3, 2: 3}
    together = {day: set(by_capture[[day_of(name) == day for name in days]].tolist()) for day in folds}
    assert max(map(len, together.values())) > 1


def test_what_is_drawn_sums_to_one_and_every_corpus_counts_alike(corpus, background):
    config = msgspec.structs.replace(quick_config(), background_share=0.25)
    config = msgspec.structs.replace(config, network=msgspec.structs.replace(config.network, n_class=3))
    names = ["a/1", "a/1", "a/2", "b/1", "b/1", "b/1", "b/2", "c/1"]
    strange = [replace(background[0], capture=name) for name in names]
    train = np.array([0, 1, 2, 3, 4, 6])
    learned = learned_with(corpus.truth, train, strange, config)
    assert learned.weights.sum() == pytest.approx(1)
    assert learned.rows.tolist() == [*train, *range(9, 17)]
    assert (learned.truth[:9] == corpus.truth).all()
    assert (learned.truth[9:] == 3).all()
    sixth, third = 0.25 / 6, 0.25 / 3
    expected = [sixth / 2, sixth / 2, sixth, sixth / 3, sixth / 3, sixth / 3, sixth, third]
    np.testing.assert_allclose(learned.weights[6:], expected)
    labels = corpus.truth[train]
    shares = [learned.weights[:6][labels == label].sum() for label in np.unique(labels)]
    np.testing.assert_allclose(shares, 0.25)


def test_what_is_of_an_encoder_is_refused_when_a_run_without_one_is_evaluated(features, others, run, tmp_path):
    arguments = ["evaluate-traces", "--features", features, "--background", others, "--run", run, "--out", tmp_path]
    for options, message in (
        (["--start", run], "it has no encoder: leave --start out"),
        (["--variant", "scratch"], "the variant scratch is of a run with an encoder"),
        (["--variant", "payload"], "the variant payload is of a run with an MM4flow encoder"),
    ):
        assert message in str(invoke(*arguments, *options).exception)
    plain = tapline_train(*arguments, "--variant", "no-time", "--variant", "no-background", "--by-day", "--dry-run")
    assert "variants main, trees-header, trees-sizes, no-time, no-background" in plain


def test_captures_by_the_beginning_of_their_names_are_measured_and_the_others_learned(features, tmp_path):
    """As of two recordings of the same things: both have a capture of every label here, and no fold is drawn."""
    run, out = tmp_path / "run", tmp_path / "out"
    quick = ["-ep", "1", "--draws", "8", "-b", "8"]
    tapline_train("train-traces", "--features", features, "--out", run, *quick)
    command = ["evaluate-traces", "--features", features, "--run", run, "--out", out]
    refused = invoke(*command, "--test", "Setup-C-")
    assert "HomeMaticPlug has no other captures to be learned from" in str(refused.exception)
    assert "no capture has a name that begins so" in str(invoke(*command, "--test", "Setup-X").exception)
    for folds in (["--folds", "3"], ["--by-day"], ["--tuned", "0"]):
        assert invoke(*command, "--test", "Setup-C-9", *folds).exit_code
    assert "captures of Setup-C-8... to measure" in tapline_train(*command, "--test", "Setup-C-8", "--dry-run")
    tapline_train(*command, "--test", "Setup-C-8")
    figures = read_trace_evaluation(out)
    assert (figures.test, figures.folds, figures.traces) == ("Setup-C-8", 1, 2)
    assert {row.name for row in figures.variants} == {"main", "trees-header", "trees-sizes"}
    outcome = read_outcome(out / "main" / "fold-0.safetensors")
    assert len(outcome.rows) == 2
