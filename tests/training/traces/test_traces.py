"""Trace training from captures to a served checkpoint, on nine captures of three devices; and what must be refused."""

import json

import msgspec
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from tapline.models.checkpoint import TracegramNetwork
from tapline.models.flow import Flow
from tapline.models.packet_tokens import TracegramFeatures
from tapline.models.trace import Trace
from tapline.models.tracegram import TraceNetwork
from tapline.service.engines.loading import load_trace_engine
from tapline.service.engines.trace_engine import TraceInput
from tapline.training.commands.tapline_train import app
from tapline.training.data.labelled_traces import TraceDataError, few_of_each, folds_of, make_trace_corpus
from tapline.training.data.samples import read_samples
from tapline.training.evaluation.attribution import faithfulness, remove_flows
from tapline.training.evaluation.rivals import header_numbers, size_numbers
from tapline.training.evaluation.trace_folds import cross_validate, learning_rows
from tapline.training.evaluation.variants import variant_of
from tapline.training.loop.config import TrainingError
from tapline.training.loop.run_files import load_weights
from tapline.training.loop.runs import Job
from tapline.training.traces import packet_encoder as flow_phases
from tapline.training.traces.aggregate import (
    fold_scale,
    scale_of,
    score_traces,
    standardise,
)
from tapline.training.traces.features import TraceFeatures, disturb_trace, gather_features
from tapline.training.traces.trace_config import Phase, TraceAugmentation, TraceTrainingConfig
from tapline.training.traces.trace_runs import pretrain_packets_run
from tests.training.command import tapline_train

pytestmark = pytest.mark.whole

QUICK = ["--draws", "48", "-b", "16", "-ep", "1"]


@pytest.fixture(scope="module")
def runs(features, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    small = ["-d", "16", "-nh", "2", "-l", "1", "--max-tokens", "128"]
    tapline_train("pretrain-packets", "--features", features, "--out", folder / "packets", *small, *QUICK)
    start = ["--start", folder / "packets"]
    tapline_train("tune-flows", "--features", features, *start, "--out", folder / "flows", *QUICK)
    start = ["--start", folder / "flows"]
    tapline_train("train-traces", "--features", features, *start, "--out", folder / "traces", *QUICK[:-1], "3")
    return folder


CONTEXT = ("transport", "ttl_orig")


def random_traces(sizes, width=8, seed=0):
    rng = np.random.default_rng(seed)
    return [
        TraceFeatures(
            rng.normal(3, 5, (2, size, width)).astype(np.float32),
            np.arange(size, dtype=np.int64) * 1_000_000,
            np.arange(size, dtype=np.int64) * 100_000,
            rng.integers(0, 3, (size, len(CONTEXT)), np.uint8),
        )
        for size in sizes
    ]


def random_network(width=8, classes=3):
    torch.manual_seed(0)
    network = TracegramNetwork(n_class=classes, feature_size=width, emb_dim=width, queries=4, context=CONTEXT, bag=True)
    return TraceNetwork(network).eval()


def test_every_capture_gives_the_trace_of_its_device(corpus):
    assert corpus.labels == ["Aria", "HomeMaticPlug", "MAXGateway"]
    assert len(corpus.traces) == 9
    assert len({trace.trace.subject for trace in corpus.traces}) == 3
    assert all(trace.label in trace.capture for trace in corpus.traces)


def test_folds_hold_whole_captures_and_every_label(corpus):
    fold_of = folds_of(corpus, 3, 0)
    for fold in range(3):
        assert sorted(corpus.truth[fold_of == fold]) == [0, 1, 2]


def test_few_captures_of_each_device(corpus):
    rows = few_of_each(corpus.truth, np.arange(9), 2, np.random.default_rng(0))
    assert sorted(corpus.truth[rows].tolist()) == [0, 0, 1, 1, 2, 2]


def test_learning_leaves_out_the_fold_and_the_devices_that_are_left_out(corpus):
    fold_of = folds_of(corpus, 3, 0)
    variant = variant_of("unknown", TraceTrainingConfig(), ("Aria",))
    rows = learning_rows(corpus, variant, fold_of, 1)
    assert not (fold_of[rows] == 1).any()
    assert 0 not in corpus.truth[rows]
    assert len(rows) == 4


def test_flows_without_heads_are_refused(features):
    bare = [
        msgspec.structs.replace(sample, flow=msgspec.structs.replace(sample.flow, heads=[]))
        for sample in read_samples(features)
    ]
    with pytest.raises(TraceDataError, match="extract again with --heads"):
        make_trace_corpus(bare, TraceTrainingConfig().trace)


def test_one_label_is_refused(features):
    lone = [sample for sample in read_samples(features) if sample.label == "Aria"]
    with pytest.raises(TraceDataError, match="expected 2 labels or more"):
        make_trace_corpus(lone, TraceTrainingConfig().trace)


def test_a_label_of_one_capture_is_not_learned(features):
    samples = [sample for sample in read_samples(features) if sample.label != "Aria" or "Setup-A-2" in sample.capture]
    assert sum(sample.label == "Aria" for sample in samples)
    corpus = make_trace_corpus(samples, TraceTrainingConfig().trace)
    assert corpus.left_out.labels == ["Aria"]
    assert corpus.labels == ["HomeMaticPlug", "MAXGateway"]
    assert {trace.label for trace in corpus.traces} == set(corpus.labels)


def test_trees_read_sizes_and_headers():
    flow = Flow("a", 0, 1_000_000, "10.0.0.1", 5000, "10.0.0.2", 80, "tcp", 1, 1, [100, -200])
    trace = Trace("s", 0, 1, [flow, flow], 0)
    sizes = size_numbers(trace)
    assert (sizes["length 100"], sizes["size 1"], sizes["up mean"]) == (2, -200, 100)
    numbers = header_numbers(trace)
    assert numbers["tcp port 3"] == 2
    assert numbers["size 0 of flow 1"] == 100


def test_lengths_are_asked_for_as_mm4flow_writes_them():
    flows = [
        Flow("a", 0, 0, "10.0.0.1", 1, "10.0.0.2", 2, "udp", payload_lengths=lengths)
        for lengths in ([3, -4], [1501], [1] * 9)
    ]
    wanted = flow_phases.length_tokens(flows).tolist()
    assert wanted == [[11, 14, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0], [7] * 6]


def test_disturbed_traces_keep_order_and_bound():
    trace = random_traces([50])[0]
    how = TraceAugmentation(drop_flows=0.5, most_flows=12)
    rng = np.random.default_rng(0)
    for _ in range(50):
        changed = disturb_trace(trace, how, rng)
        assert 1 <= len(changed) <= 12
        assert (np.diff(changed.start_us) > 0).all()
        assert changed.views.shape == (1, len(changed), 8)


def test_a_folded_scale_gives_the_same_scores():
    traces, network = random_traces([3, 7, 5]), random_network()
    scale = scale_of(traces)
    before = score_traces(network, standardise(traces, scale))
    after = score_traces(fold_scale(network, scale), traces)
    np.testing.assert_allclose(before.logits, after.logits, atol=1e-5)


def test_scores_come_in_the_order_of_the_traces():
    traces, network = random_traces([9, 2, 5]), random_network()
    together = score_traces(network, traces)
    for row, trace in enumerate(traces):
        alone = score_traces(network, [trace])
        np.testing.assert_allclose(together.logits[row], alone.logits[0], atol=1e-5)
        assert together.importance[row].sum() == pytest.approx(1, abs=1e-5)


def test_features_are_cut_into_traces():
    flow = Flow("a", 5, 7, "10.0.0.1", 1, "10.0.0.2", 2, "udp")
    traces = [Trace("s", 0, 1, [flow] * size, 0) for size in (2, 3)]
    made = gather_features(traces, [np.arange(10, dtype=np.float32).reshape(5, 2)], ())
    assert made[1].views.tolist() == [[[4, 5], [6, 7], [8, 9]]]
    assert made[0].duration_us.tolist() == [7, 7]


def test_removing_what_matters_is_told_from_removing_at_random():
    removed = remove_flows(random_network(), random_traces([3, 8, 12]), 1.0, 0)
    assert removed.rows.tolist() == [1, 2]
    figures = faithfulness(np.array([0.5, 0.7]), np.array([0.1, 0.1]))
    assert figures.difference == pytest.approx(0.5)
    assert figures.difference_interval.low >= 0.4


def test_phases_evaluation_and_export_give_a_checkpoint_that_is_served(features, runs, corpus, tmp_path):
    evaluation = tmp_path / "evaluation"
    arguments = ["--features", features, "--run", runs / "traces", "--start", runs / "packets", "--out", evaluation]
    arguments += ["--folds", "3", "--tuned", "0", "--variant", "no-time", "--variant", "unknown", "--left-out", "Aria"]
    assert "trees-header: macro-F1" in tapline_train("evaluate-traces", *arguments)
    figures = json.loads((evaluation / "evaluation.json").read_text())
    assert [row["name"] for row in figures["variants"]] == ["main", "trees-header", "trees-sizes", "no-time"]
    assert figures["traces"] == 6
    assert figures["unknown"]["devices"] == ["Aria"]
    assert (evaluation / "report.html").read_text().startswith("<!doctype html>")
    out = ["--out", tmp_path, "--name", "devices", "--version", "1", "--evaluation", evaluation]
    tapline_train("export-traces", "--run", runs / "traces", *out)
    card = (tmp_path / "devices" / "1" / "README.md").read_text()
    assert "trees on header fields" in card
    engine = load_trace_engine("onnx", tmp_path / "devices" / "1")
    assert engine.checkpoint.labels == corpus.labels
    assert engine.checkpoint.calibration.temperature == pytest.approx(figures["temperature"], abs=1e-4)
    trace = TraceInput(np.zeros((3, 16), np.float32), np.arange(3, dtype=np.int64) * 1_000_000, np.zeros(3, np.int64))
    scores = engine.score([trace])
    assert scores.logits.shape == (1, 3)
    assert scores.importance[0].sum() == pytest.approx(1, abs=1e-4)


def test_a_run_of_traces_is_no_run_of_flows(features, runs):
    arguments = ["evaluate", "--features", str(features), "--run", str(runs / "traces")]
    result = CliRunner().invoke(app, arguments)
    assert "a run of train-traces, expected one of finetune" in str(result.exception)


def test_an_evaluation_goes_on_where_it_was(corpus, tmp_path, monkeypatch):
    variant, fold_of = variant_of("trees-sizes", TraceTrainingConfig()), folds_of(corpus, 3, 0)
    first = cross_validate(corpus, variant, fold_of, range(3), tmp_path)
    monkeypatch.setattr("tapline.training.evaluation.trace_folds._measure", None)
    again = cross_validate(corpus, variant, fold_of, range(3), tmp_path)
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one.logits, other.logits)


def test_phases_start_from_the_phase_before(features, runs, tmp_path):
    arguments = ["train-traces", "--features", str(features), "--start", str(runs / "packets"), "--out", str(tmp_path)]
    result = CliRunner().invoke(app, arguments)
    assert "starts from a run of tune-flows" in str(result.exception)
    arguments = ["evaluate-traces", "--features", str(features), "--run", str(runs / "traces"), "--out", str(tmp_path)]
    for start, found in ((runs / "flows", "a run of tune-flows"), (tmp_path, "no run")):
        result = CliRunner().invoke(app, [*arguments, "--start", str(start), "--dry-run"])
        assert str(result.exception) == f"{start}: {found}, expected one of pretrain-packets"
    with pytest.raises(TrainingError, match="no variant 'best'"):
        variant_of("best", TraceTrainingConfig())


class InterruptedByTestError(Exception):
    pass


def test_an_interrupted_phase_goes_on_where_it_was(features, tmp_path):
    network = TracegramNetwork(n_class=1, feature_size=16, emb_dim=16, dim=16, depth=1, heads=2, dim_head=8, queries=4)
    config = msgspec.structs.replace(
        TraceTrainingConfig(),
        network=network,
        features=TracegramFeatures(max_tokens=96),
        pretrain=Phase(2, 32, 16, 1e-3),
    )

    def interrupt(step):
        if step.step == 3:
            raise InterruptedByTestError

    with pytest.raises(InterruptedByTestError):
        pretrain_packets_run(Job([features], tmp_path / "broken", config), interrupt)
    pretrain_packets_run(Job([features], tmp_path / "broken", config))
    pretrain_packets_run(Job([features], tmp_path / "whole", config))
    broken, whole = (load_weights(tmp_path / name / "model.safetensors") for name in ("broken", "whole"))
    assert all(torch.equal(broken[name], whole[name]) for name in whole)
