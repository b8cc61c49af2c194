"""The background class of trace models: learned from traces of anything else, never said, measured on what was not
learned."""

from dataclasses import replace

import msgspec
import numpy as np
import pytest
import torch

from tapline.models.checkpoint import Unknown
from tapline.models.trace_context import trace_context
from tapline.models.verdict import probabilities, verdicts
from tapline.service.engines.loading import load_trace_engine
from tapline.service.engines.trace_engine import TraceInput
from tapline.training.data.labelled_traces import LabelledTrace, TraceDataError, folds_of
from tapline.training.data.samples import read_samples
from tapline.training.evaluation.attribution import remove_flows
from tapline.training.evaluation.calibration import softmax
from tapline.training.evaluation.evaluation_record import TraceEvaluation, read_trace_evaluation
from tapline.training.evaluation.outcomes import read_outcome, write_outcome
from tapline.training.evaluation.trace_card import _background
from tapline.training.evaluation.trace_figures import summarise
from tapline.training.evaluation.trace_folds import outcome_fingerprint
from tapline.training.evaluation.variants import variant_of
from tapline.training.loop.config import TrainingError
from tapline.training.loop.runs import Job
from tapline.training.traces.background import MOST_TRACES, halve_background, learned_with, make_background
from tapline.training.traces.joint import fit_jointly
from tapline.training.traces.trace_config import TraceTrainingConfig, decisive
from tapline.training.traces.trace_record import read_trace_run
from tapline.training.traces.trace_runs import train_traces_run
from tests.training.command import invoke, tapline_train
from tests.training.evaluation.test_kept_folds import right
from tests.training.traces.test_joint import quick_config

pytestmark = pytest.mark.whole

SETTINGS = TraceTrainingConfig().trace


@pytest.fixture(scope="module")
def background(others):
    return make_background(read_samples(others), SETTINGS, ())


@pytest.fixture(scope="module")
def run(features, others, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "traces"
    quick = ["--lengths", "12", "-ep", "12", "--draws", "48", "-b", "8", "-lr", "1.5e-2"]
    tapline_train("train-traces", "--features", features, "--background", others, "--out", out, *quick)
    return out


@pytest.fixture(scope="module")
def evaluation(features, others, run, tmp_path_factory):
    out = tmp_path_factory.mktemp("evaluations") / "evaluation"
    options = ["--folds", "2", "--variant", "no-background"]
    tapline_train(
        "evaluate-traces", "--features", features, "--background", others, "--run", run, "--out", out, *options
    )
    return out


def test_every_capture_gives_its_traces_with_most_flows_whatever_their_label(features, corpus):
    read = list(read_samples(features))
    first = read[0]
    scan = [
        msgspec.structs.replace(first, label=None, capture="scan", flow=msgspec.structs.replace(
            first.flow, orig_h=f"10.0.0.{host}", orig_p=port, link_type=21))
        for host in range(20) for port in range(1 + (host > 12))
    ]  # fmt: skip
    settings = msgspec.structs.replace(SETTINGS, subject="originator")
    found = [each for each in make_background([*read, *scan], settings, ()) if each.capture.endswith("/scan")]
    assert len(found) == MOST_TRACES
    assert [len(each.trace.flows) for each in found] == [2] * 7 + [1]
    assert {each.label for each in found} == {""}


def test_captures_of_labels_and_a_lone_capture_are_no_background(features, others, corpus):
    learned = {each.capture for each in corpus.traces}
    with pytest.raises(TraceDataError, match="9 capture"):
        make_background(read_samples(features), SETTINGS, learned)
    lone = [each for each in read_samples(features) if each.capture == corpus.traces[0].capture.split("/", 1)[1]]
    with pytest.raises(TraceDataError, match=r"traces of 1 capture\(s\), expected 2 or more"):
        make_background(lone, SETTINGS, ())


def test_a_fold_learns_one_half_of_the_captures_and_another_fold_another(background):
    captures = {each.capture for each in background}
    learned = []
    for fold in range(3):
        halves = halve_background(background, fold)
        mine, rest = ({each.capture for each in part} for part in (halves.learned, halves.measured))
        assert not mine & rest
        assert mine | rest == captures
        assert len(mine) == -(-len(captures) // 2)
        learned.append(frozenset(mine))
    assert len(set(learned)) > 1


def test_background_has_its_share_of_draws_and_labels_the_rest_as_ever(corpus, background):
    config = msgspec.structs.replace(quick_config(), background_share=0.3)
    train = np.arange(7)
    plain, learned = (learned_with(corpus.truth, train, some, config) for some in ((), background))
    strange = learned.rows >= len(corpus.traces)
    assert (learned.truth[learned.rows[strange]] == 3).all()
    assert learned.weights[strange].sum() == pytest.approx(0.3)
    np.testing.assert_allclose(learned.weights[~strange], 0.7 * plain.weights)
    captures = np.array([each.capture for each in background])
    each = [learned.weights[strange][captures == capture].sum() for capture in np.unique(captures)]
    np.testing.assert_allclose(each, 0.3 / len(each))


def test_what_is_learned_without_background_does_not_depend_on_its_share(corpus):
    configs = [msgspec.structs.replace(quick_config(), background_share=share) for share in (0.15, 0.5)]
    fitted = [fit_jointly(corpus.traces, corpus.truth, np.arange(9), config) for config in configs]
    weights = [each.trace.state_dict() for each in fitted]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert weights[0]["c_linear4.weight"].shape[0] == 3


def test_folds_without_background_are_those_of_before_there_was_any(corpus, background):
    fold_of = folds_of(corpus, 3, 0)
    config = quick_config()
    other = msgspec.structs.replace(config, background_share=0.5)
    assert "background_share" not in decisive(config, background=False)
    plain, same = (outcome_fingerprint(corpus, variant_of("main", each), fold_of) for each in (config, other))
    assert plain == same
    mine = [variant_of("main", each, (), None, background) for each in (config, other)]
    mine.append(replace(mine[0], background=background[1:]))
    assert len({plain, *(outcome_fingerprint(corpus, each, fold_of) for each in mine)}) == 4
    for name in ("trees-header", "no-time", "no-background", "scratch", "main-2", "payload"):
        assert variant_of(name, config, (), None, background).background == ()
    assert variant_of("unknown", config, ("Aria",), None, background).background is background


def test_figures_are_of_labels_though_background_takes_most(corpus, background, tmp_path):
    fold_of = folds_of(corpus, 2, 0)

    def outcome(fold):
        """Of every trace, known or not, background is likeliest; of known ones the label is second."""
        plain = right(corpus, None, fold_of, fold)
        logits = np.pad(plain.logits, ((0, 0), (0, 1)), constant_values=10)
        measured = halve_background(background, fold).measured
        strange = np.tile(np.float32([0, 0, 0, 20]), (len(measured), 1))
        flows = np.array([len(each.trace.flows) for each in measured], np.int64)
        found = replace(plain, logits=logits, prefixes=dict.fromkeys(plain.prefixes, logits),
                        background=strange, background_flows=flows)  # fmt: skip
        path = tmp_path / f"fold-{fold}.safetensors"
        write_outcome(path, found, "")
        return read_outcome(path)

    trees = {fold: right(corpus, None, fold_of, fold) for fold in range(2)}
    assert len(trees[0].background) == len(trees[0].background_flows) == 0
    outcomes = {"main": {fold: outcome(fold) for fold in range(2)}, "trees-header": trees}
    figures = summarise(corpus, outcomes, "main", 2, (), {}, background=background)
    assert figures.mistakes == []
    assert figures.variants[0].accuracy == 1
    of = figures.background
    assert (of.all.rejected, of.all.confident, of.all.auroc) == (1, 0, 1)
    measured = [each for fold in range(2) for each in halve_background(background, fold).measured]
    assert of.all.verdicts == len(measured)
    assert of.captures == len({each.capture for each in measured})
    assert "100.0% are called unknown, and 0.0% get a label" in _background(of)
    old = msgspec.to_builtins(figures)
    del old["background"]
    assert msgspec.convert(old, TraceEvaluation).background is None


def test_background_cannot_be_said_where_flows_are_left_out(corpus, background):
    fitted = fit_jointly(corpus.traces, corpus.truth, np.arange(9), quick_config(), background=background)
    assert len(fitted.features) == len(corpus.traces) + len(background)
    with torch.no_grad():
        fitted.trace.c_linear4.bias[3] += 300
    mine = fitted.features[:9]
    every, labels = (remove_flows(fitted.trace, mine, 1.0, 0, count) for count in (None, 3))
    assert abs(labels.top).max() < 1e-6 < 1
    assert every.top.shape == labels.top.shape
    assert (labels.top != every.top).any()


def test_the_checkpoint_never_says_background_and_leaves_it_its_share(
    features, run, corpus, background, evaluation, tmp_path
):
    tapline_train(
        "export-traces", "--run", run, "--evaluation", evaluation, "--out", tmp_path, "--name", "d", "--version", "1"
    )
    engines = [load_trace_engine(kind, tmp_path / "d" / "1") for kind in ("onnx", "torch")]
    checkpoint = engines[0].checkpoint
    assert checkpoint.unknown.background
    assert (len(checkpoint.labels), checkpoint.network.n_class) == (3, 4)
    logits = [
        engine.score([as_input(engine, each) for each in [*corpus.traces, *background]]).logits for engine in engines
    ]
    np.testing.assert_allclose(logits[0], logits[1], atol=1e-3)
    found = verdicts(logits[0], checkpoint)
    sums = probabilities(logits[0], checkpoint).sum(axis=1)
    shares = softmax(logits[0], checkpoint.calibration.temperature)
    np.testing.assert_allclose(sums, 1 - shares[:, 3], atol=1e-6)
    assert sums[len(corpus.traces) :].min() < 0.1
    named = {name for each in found for name in (each.nearest, *(other.label for other in each.alternatives))}
    assert named <= set(checkpoint.labels)
    card = (tmp_path / "d" / "1" / "README.md").read_text()
    assert f"{len(background)} traces of other traffic were learned as background" in card
    assert "| without the background class | all | 9 |" in card
    assert read_trace_evaluation(evaluation).background.all.verdicts > 0


def as_input(engine, each: LabelledTrace):
    flows = each.trace.flows
    times = (np.array([getattr(flow, name) for flow in flows], np.int64) for name in ("start_us", "duration_us"))
    return TraceInput(engine.embed(flows), *times, trace_context(flows, engine.checkpoint.network.context))


def test_the_run_keeps_what_background_it_learned(run, others, background):
    record = read_trace_run(run)
    assert (list(record.background), record.background_traces) == (["others"], len(background))
    assert Unknown().background is False


def test_background_with_a_frozen_encoder_and_another_background_than_the_runs_are_refused(
    features, others, run, evaluation, tmp_path
):
    said = invoke("train-traces", "--features", features, "--start", run, "--background", others, "--out", tmp_path)
    assert "--background is learned by what learns with the rest" in str(said.exception)
    job = Job([features], tmp_path, TraceTrainingConfig(), start=run, background=[others])
    with pytest.raises(TrainingError, match="--background is learned by what learns with the rest"):
        train_traces_run(job)
    arguments = ["evaluate-traces", "--features", features, "--run", run, "--out", tmp_path / "out"]
    assert "learned another background, others: give as --background" in str(invoke(*arguments).exception)
    plain = tmp_path / "plain"
    tapline_train("train-traces", "--features", features, "--out", plain, "-ep", "1", "--draws", "8", "-b", "8")
    arguments[4] = plain
    assert "learned no background" in str(invoke(*arguments, "--background", others).exception)
    assert "the run has no background" in str(invoke(*arguments, "--variant", "no-background").exception)
    export = ["--run", plain, "--evaluation", evaluation, "--out", tmp_path, "--name", "d", "--version", "1"]
    assert "learned background and the other has not" in str(invoke("export-traces", *export).exception)


def test_a_dry_run_names_the_background_and_an_interrupted_run_goes_on(features, others, background, tmp_path):
    def interrupt(step):
        if step.step == 3:
            raise KeyboardInterrupt

    job = Job([features], tmp_path / "run", quick_config(), background=[others])
    with pytest.raises(KeyboardInterrupt):
        train_traces_run(job, interrupt)
    lines = " ".join(train_traces_run(replace(job, dry_run=True)).lines())
    assert f"{len(background)} background traces" in lines
    assert "of an interrupted run" in lines
    with pytest.raises(TrainingError, match="unfinished run with other settings or data"):
        train_traces_run(replace(job, dry_run=True, background=[]))
