"""Training of traces with an encoder of MM4flow that learns too: from captures to a served checkpoint."""

from functools import partial

import msgspec
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from tapline.models.checkpoint import Mm4flowNetwork
from tapline.models.encode import Mm4flowFeatures
from tapline.models.trace_context import trace_context
from tapline.models.tracegram import TraceNetwork
from tapline.service.engines.loading import load_trace_engine
from tapline.service.engines.trace_engine import TraceInput
from tapline.training.commands.tapline_train import app
from tapline.training.data.labelled_traces import flows_of
from tapline.training.evaluation.variants import Starts, variant_of
from tapline.training.loop.config import TrainingError
from tapline.training.loop.new_networks import new_model
from tapline.training.loop.run_files import load_weights
from tapline.training.loop.runs import Job
from tapline.training.traces.aggregate import score_traces
from tapline.training.traces.features import kept_flows
from tapline.training.traces.joint import JointNetwork, fit_jointly, joint_features, make_table
from tapline.training.traces.trace_config import Phase, TraceAugmentation, TraceTrainingConfig, joint_config
from tapline.training.traces.trace_record import read_trace_run
from tapline.training.traces.trace_runs import train_traces_run
from tests.training.command import tapline_train

pytestmark = pytest.mark.whole

SIZES = Mm4flowNetwork(16, 1, 2, 32, 1)
LENGTHS = Mm4flowFeatures(payload_lengths=12, content_bytes=0)


@pytest.fixture(scope="module")
def encoders(features, tmp_path_factory):
    out = tmp_path_factory.mktemp("encoders") / "ps"
    small = ["-d", "16", "-nh", "2", "-l", "1", "-f", "32"]
    tapline_train("pretrain-ps", "--features", features, "--out", out, *small, "--draws", "64", "-ep", "1")
    return out


@pytest.fixture(scope="module")
def run(features, encoders, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "traces"
    quick = ["--lengths", "12", "-ep", "15", "--draws", "32", "-b", "8", "-lr", "4e-3"]
    tapline_train("train-traces", "--features", features, "--encoders", encoders, "--out", out, *quick)
    return out


CONTEXT = ("transport", "port_resp", "ttl_orig", "window_orig")


def quick_config(classes=3):
    config = joint_config(SIZES, LENGTHS)
    network = msgspec.structs.replace(config.network, n_class=classes, context=CONTEXT, bag=True)
    return msgspec.structs.replace(config, network=network, traces=Phase(2, 16, 8, 2e-3))


def test_flows_of_equal_tokens_are_encoded_once_and_every_flow_gets_its_own_embedding(corpus):
    table = make_table(corpus.traces, LENGTHS)
    flows = flows_of(corpus.traces)
    heads = [tuple(flow.payload_lengths[:12]) for flow in flows]
    assert len(table.ps) == len(set(heads)) < len(flows)
    encoder = new_model(msgspec.structs.replace(SIZES, n_class=3), 0)
    network = JointNetwork(encoder, TraceNetwork(quick_config().network)).eval()
    whole = np.concatenate([trace.views[0] for trace in joint_features(network, table)])
    some = np.array([5, 3, 28, 5])
    with torch.no_grad():
        embedding, logits = network.encode(table, some)
    np.testing.assert_allclose(embedding.numpy(), whole[some], atol=1e-5)
    assert logits.shape == (4, 3)
    first = {head: row for row, head in reversed(list(enumerate(heads)))}
    np.testing.assert_allclose(whole, whole[[first[head] for head in heads]], atol=1e-6)


def test_masked_lengths_change_the_embedding(corpus):
    table = make_table(corpus.traces, LENGTHS)
    encoder = new_model(msgspec.structs.replace(SIZES, n_class=3), 0)
    network = JointNetwork(encoder, TraceNetwork(quick_config().network)).eval()
    with torch.no_grad():
        plain, masked = (network.encode(table, np.arange(20), share)[0] for share in (0.0, 1.0))
    assert not torch.allclose(plain, masked)


def test_what_is_learned_reads_the_features_that_are_given(corpus):
    fitted = fit_jointly(corpus.traces, corpus.truth, np.arange(9), quick_config())
    table = make_table(corpus.traces, LENGTHS, CONTEXT)
    again = joint_features(JointNetwork(fitted.encoder, fitted.trace), table)
    expected = score_traces(fitted.trace, fitted.features).logits
    np.testing.assert_allclose(score_traces(fitted.trace, again).logits, expected, atol=1e-6)


def test_devices_are_learned_and_the_checkpoint_is_served(features, run, corpus, tmp_path):
    out = ["--out", tmp_path, "--name", "devices", "--version", "1"]
    tapline_train("export-traces", "--run", run, *out)
    engine = load_trace_engine("onnx", tmp_path / "devices" / "1")
    assert engine.checkpoint.mm4flow.features == LENGTHS
    assert "an MM4flow of its own" in (tmp_path / "devices" / "1" / "README.md").read_text()
    inputs = [
        TraceInput(
            engine.embed(trace.trace.flows),
            np.array([flow.start_us for flow in trace.trace.flows], np.int64),
            np.array([flow.duration_us for flow in trace.trace.flows], np.int64),
            trace_context(trace.trace.flows, engine.checkpoint.network.context),
        )
        for trace in corpus.traces
    ]
    said = engine.score(inputs).logits.argmax(1)
    assert (said == corpus.truth).mean() > 0.8


def test_an_interrupted_run_goes_on_where_it_was(features, encoders, tmp_path):
    def interrupt(step):
        if step.step == 3:
            raise KeyboardInterrupt

    def job(name):
        return Job([features], tmp_path / name, quick_config(), encoders=[encoders])

    with pytest.raises(KeyboardInterrupt):
        train_traces_run(job("broken"), interrupt)
    train_traces_run(job("broken"))
    train_traces_run(job("whole"))
    broken, whole = (load_weights(tmp_path / name / "model.safetensors") for name in ("broken", "whole"))
    assert all(torch.equal(broken[name], whole[name]) for name in whole)


def test_short_parts_of_a_trace_are_stretches_drawn_by_the_logarithm_of_their_length():
    rng = np.random.default_rng(0)
    how = TraceAugmentation(drop_flows=0.0, most_flows=64, part=1.0, short_parts=True)
    parts = [kept_flows(64, how, rng) for _ in range(1200)]
    assert all((np.diff(part) == 1).all() for part in parts)
    lengths = np.array([len(part) for part in parts])
    for low, high in ((1, 2), (2, 4), (4, 8), (8, 16), (16, 32), (32, 64)):
        assert 1 / 8 < ((lengths >= low) & (lengths < high)).mean() < 5 / 24
    assert 0.5 < np.mean([part[0] == 0 for part in parts]) < 0.6
    plain = TraceAugmentation(drop_flows=0.0, most_flows=64, part=1.0)
    assert np.mean([len(kept_flows(64, plain, rng)) < 8 for _ in range(1200)]) < 0.2
    assert len(kept_flows(1, how, rng)) == 1


def test_evaluation_beside_the_published_encoder_and_the_frozen_one(features, run, encoders, tmp_path, monkeypatch):
    short = partial(TraceTrainingConfig, traces=Phase(2, 16, 8, 2e-3))
    monkeypatch.setattr("tapline.training.evaluation.variants.TraceTrainingConfig", short)
    arguments = ["--features", features, "--run", run, "--start", encoders, "--folds", "3", "--tuned", "0"]
    variants = ["--variant", "scratch", "--variant", "frozen"]
    output = tapline_train("evaluate-traces", *arguments, *variants, "--out", tmp_path)
    assert all(f"{name}: macro-F1" in output for name in ("main", "scratch", "frozen", "trees-header"))


def test_variants_of_a_run(run):
    config = read_trace_run(run).config
    weights = {"w": torch.zeros(1)}
    starts = Starts(weights, {"p": torch.ones(1)})
    assert variant_of("main", config, (), starts).start is weights
    assert variant_of("scratch", config, (), starts).start is None
    published = variant_of("tracegram", config, (), starts)
    assert (published.config.mm4flow, published.start) == (None, starts.packets)
    reads = variant_of("payload", config, (), starts).config.mm4flow.features
    assert (reads.payload_lengths, reads.content_bytes, reads.mask_addresses) == (12, 64, True)
    assert not variant_of("no-time", config, (), starts).config.network.time_encoding
    assert variant_of("main-2", config, (), starts).captures == 2
    with pytest.raises(TrainingError, match="run of pretrain-packets"):
        variant_of("tracegram", config)
    with pytest.raises(TrainingError, match="of a run with an MM4flow encoder"):
        variant_of("payload", published.config)


def test_encoders_of_another_size_and_two_starts_are_refused(features, encoders, run, tmp_path):
    both = ["train-traces", "--features", features, "--start", run, "--encoders", encoders, "--out", tmp_path]
    assert "give one of them" in str(CliRunner().invoke(app, [str(each) for each in both]).exception)
    other = Job([features], tmp_path, joint_config(Mm4flowNetwork(24, 1, 2, 32, 1), LENGTHS), encoders=[encoders])
    with pytest.raises(TrainingError, match="do not fit"):
        train_traces_run(other)
