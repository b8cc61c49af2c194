"""Both trace engines give the same scores, whatever a flow or trace is batched with; importance sums to 1."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from safetensors.torch import load_file

from tapline.models.checkpoint import WEIGHTS, CheckpointError, read_trace_checkpoint
from tapline.models.encode import Mm4flowFeatures, encode
from tapline.models.packet_tokens import encode_packets
from tapline.models.trace import TraceSettings, make_traces
from tapline.models.trace_context import SIZES, trace_context
from tapline.models.trace_features import trace_times
from tapline.models.tracegram import Tracegram, is_for_training
from tapline.service.engines.engine import EngineError
from tapline.service.engines.loading import load_engine, load_trace_engine
from tapline.service.engines.pieces import MAX_PADDING, piece_inputs, pieces_by_length
from tapline.service.engines.trace_engine import TraceInput, warm_up
from tapline.service.sources.capture import read_capture
from tests.conftest import make_flows, make_trace_checkpoint
from tests.paths import DATA

pytestmark = pytest.mark.whole

ROUNDING = 1e-4
CAPTURES = DATA / "captures"
WIDTH = 32


@pytest.fixture(scope="module")
def flows():
    """Flows of real captures, header-only heads."""
    return [flow for name in ("android.pcap", "ndpi/hls.pcapng") for flow in read_capture(CAPTURES / name)]


@pytest.fixture(scope="module", params=["onnx", "torch"])
def engine(request, trace_checkpoint_dir):
    return load_trace_engine(request.param, trace_checkpoint_dir)


def trace_input(rng, count):
    starts = np.cumsum(rng.integers(0, 3_000_000, count))
    return TraceInput(rng.standard_normal((count, WIDTH), np.float32), starts, rng.integers(0, 9_000_000, count))


@pytest.fixture(scope="module")
def traces():
    rng = np.random.default_rng(7)
    return [trace_input(rng, count) for count in (1, 2, 3, 3, 5, 9, 9, 10, 17, 40, 64, 256)]


def test_engines_agree_on_real_flows(trace_checkpoint_dir, flows):
    ours, reference = (load_trace_engine(name, trace_checkpoint_dir).embed(flows) for name in ("onnx", "torch"))
    assert reference.shape == (len(flows), WIDTH)
    assert np.ptp(reference, axis=0).min() > 0.1  # the comparison is of something
    np.testing.assert_allclose(ours, reference, atol=ROUNDING)


@pytest.fixture(scope="module")
def context_dir(tmp_path_factory):
    """`<repository>/context/1`: a network that reads context too."""
    return make_trace_checkpoint(tmp_path_factory.mktemp("repository") / "context" / "1", context=tuple(SIZES))


@pytest.fixture(scope="module")
def bare_dir(tmp_path_factory):
    """A network that reads context and nothing else."""
    return make_trace_checkpoint(tmp_path_factory.mktemp("repository") / "bare" / "1", "context")


def test_engines_agree_where_the_context_is_all(bare_dir, flows):
    made = make_traces([flow for flow in flows if flow.heads], TraceSettings(subject="responder", window_seconds=0))
    given = [context_input(trace.flows) for trace in made]
    ours, reference = (load_trace_engine(name, bare_dir) for name in ("onnx", "torch"))
    expected = reference.score(given)
    assert np.ptp(expected.logits, axis=0).min() > 0.1
    found = ours.score(given)
    np.testing.assert_allclose(found.logits, expected.logits, atol=ROUNDING)
    for one, other in zip(found.importance, expected.importance, strict=True):
        np.testing.assert_allclose(one, other, atol=ROUNDING)
    alone = np.concatenate([ours.score([each]).logits for each in given])
    np.testing.assert_allclose(alone, found.logits, atol=ROUNDING)


@pytest.mark.parametrize("name", ["onnx", "torch"])
def test_where_the_context_is_all_there_is_nothing_to_embed(bare_dir, flows, traces, name):
    engine = load_trace_engine(name, bare_dir)
    warm_up(engine)
    assert engine.embed(flows[:3]).shape == (3, 0)
    with pytest.raises(EngineError, match=f"with 0 numbers, {len(SIZES)} fields of context"):
        engine.score([replace_context(traces[0], context_input(flows[:1]).context)])
    assert not (bare_dir / "encoder.onnx").exists()


def context_input(flows):
    """A trace of these flows for a network that reads every field of their context alone."""
    times = (np.array([getattr(flow, name) for flow in flows], np.int64) for name in ("start_us", "duration_us"))
    return TraceInput(np.zeros((len(flows), 0), np.float32), *times, trace_context(flows, tuple(SIZES)))


def test_engines_agree_on_context_and_each_field_counts(context_dir):
    rng = np.random.default_rng(7)
    sizes = np.array(list(SIZES.values()))
    given = [
        replace_context(trace_input(rng, count), rng.integers(0, sizes, (count, len(sizes))).astype(np.uint8))
        for count in (1, 3, 9, 64)
    ]
    ours, reference = (load_trace_engine(name, context_dir) for name in ("onnx", "torch"))
    expected = reference.score(given)
    np.testing.assert_allclose(ours.score(given).logits, expected.logits, atol=ROUNDING)
    for column in range(len(sizes)):
        other = given[1].context.copy()
        other[:, column] = (other[:, column] + 1) % sizes[column]
        changed = ours.score([replace_context(given[1], other)])
        assert np.abs(changed.logits - expected.logits[1]).max() > ROUNDING
    warm_up(ours)


def test_context_that_does_not_fit_is_refused(context_dir, traces):
    engine = load_trace_engine("onnx", context_dir)
    with pytest.raises(EngineError, match=f"{len(SIZES)} fields of context"):
        engine.score(traces[:1])
    beyond = np.full((1, len(SIZES)), 6, np.uint8)
    with pytest.raises(EngineError, match="expected values of transport below 6, got 6"):
        engine.score([replace_context(traces[0], beyond)])


def replace_context(trace, context):
    return TraceInput(trace.features, trace.start_us, trace.duration_us, context)


def test_engines_agree_on_traces(trace_checkpoint_dir, traces):
    ours, reference = (load_trace_engine(name, trace_checkpoint_dir).score(traces) for name in ("onnx", "torch"))
    assert np.ptp(reference.logits, axis=0).min() > 0.01
    np.testing.assert_allclose(ours.logits, reference.logits, atol=ROUNDING)
    for one, other in zip(ours.importance, reference.importance, strict=True):
        np.testing.assert_allclose(one, other, atol=ROUNDING)


def test_importance_sums_to_one_over_the_flows_of_a_trace(engine, traces):
    scores = engine.score(traces)
    for trace, importance in zip(traces, scores.importance, strict=True):
        assert importance.shape == (len(trace.features),)
        assert importance.sum() == pytest.approx(1, abs=1e-5)
        assert importance.min() > 0


def test_a_feature_does_not_depend_on_its_batch(engine, flows):
    together = engine.embed(flows)[:40]
    alone = np.concatenate([engine.embed([flow]) for flow in flows[:40]])
    np.testing.assert_allclose(together, alone, atol=ROUNDING)


@settings(max_examples=20)
@given(st.lists(st.integers(0, 11), min_size=1, max_size=20))
def test_order_and_company_of_traces_do_not_matter(expected_scores, chosen):
    engine, traces, expected = expected_scores
    found = engine.score([traces[index] for index in chosen])
    np.testing.assert_allclose(found.logits, expected.logits[chosen], atol=ROUNDING)
    for index, importance in zip(chosen, found.importance, strict=True):
        np.testing.assert_allclose(importance, expected.importance[index], atol=ROUNDING)


@pytest.fixture(scope="module")
def expected_scores(trace_checkpoint_dir, traces):
    engine = load_trace_engine("onnx", trace_checkpoint_dir)
    return engine, traces, engine.score(traces)


def test_importance_is_stable_when_flows_of_equal_start_come_in_another_order(engine, flows):
    chosen = [flow for flow in flows if flow.payload_lengths][:12]
    for flow in chosen:
        flow.start_us = 1_000_000
    found = []
    for order in (chosen, chosen[::-1]):
        (trace,) = make_traces(order, TraceSettings(subject="responder", window_seconds=0))[:1]
        features = engine.embed(trace.flows)
        times = np.array([[flow.start_us, flow.duration_us] for flow in trace.flows]).T
        scores = engine.score([TraceInput(features, *times)])
        found.append(dict(zip((flow.uid for flow in trace.flows), scores.importance[0].tolist(), strict=True)))
    assert len(found[0]) > 1
    assert found[0] == pytest.approx(found[1], abs=1e-6)


def test_nothing_to_do(engine):
    assert engine.embed([]).shape == (0, WIDTH)
    assert engine.score([]).logits.shape == (0, 3)


@pytest.mark.parametrize(
    "bad",
    [
        TraceInput(np.zeros((0, WIDTH), np.float32), np.zeros(0, np.int64), np.zeros(0, np.int64)),
        TraceInput(np.zeros((2, 5), np.float32), np.zeros(2, np.int64), np.zeros(2, np.int64)),
        TraceInput(np.zeros((2, WIDTH), np.float32), np.zeros(1, np.int64), np.zeros(2, np.int64)),
    ],
)
def test_a_trace_that_does_not_fit_is_refused(engine, traces, bad):
    with pytest.raises(EngineError, match="expected a trace of one flow or more with 32 numbers"):
        engine.score([traces[0], bad])


@pytest.mark.parametrize("name", ["onnx", "torch"])
def test_with_embeddings_of_a_flow_checkpoint_there_is_nothing_to_embed(tmp_path, traces, name):
    engine = load_trace_engine(name, make_trace_checkpoint(tmp_path / "m" / "1", "mm4flow"))
    assert np.isfinite(engine.score(traces).logits).all()
    with pytest.raises(EngineError, match="embeddings of random 1"):
        engine.embed(make_flows(1))
    warm_up(engine)  # where there is nothing to embed


@pytest.fixture(scope="module")
def own_dir(tmp_path_factory):
    return make_trace_checkpoint(tmp_path_factory.mktemp("own") / "1", "own", WIDTH, int8=True)


def test_an_mm4flow_of_its_own_gives_what_the_network_gives(own_dir, flows):
    """The weights in torch beside both engines, on flows whose content it must not read, some longer than it reads."""
    checkpoint = read_trace_checkpoint(own_dir)
    assert set(checkpoint.files) == {"encoder.onnx", "encoder.int8.onnx", "trace.onnx", "model.safetensors"}
    kept = load_file(own_dir / WEIGHTS)
    assert not [name for name in kept if ".cls." in name or ".classifier." in name]
    model = Tracegram(checkpoint.network, mm4flow=checkpoint.mm4flow.network).eval()
    missing, unexpected = model.load_state_dict(kept, strict=False)
    assert (all(is_for_training(name) for name in missing), unexpected) == (True, [])
    with_payload = [flow for flow in flows if flow.payload_lengths]
    with_payload += [replace(flow, payload_lengths=flow.payload_lengths * 4) for flow in make_flows(20)]
    expected = []
    for flow in with_payload:
        batch = encode([replace(flow, orig_bytes=b"", resp_bytes=b"")], Mm4flowFeatures(64, 0))
        inputs = piece_inputs(batch, np.array([0])).values()
        with torch.inference_mode():
            expected.append(model.encoder(*map(torch.from_numpy, inputs)).embedding[0].numpy())
    for name in ("onnx", "torch"):
        found = load_trace_engine(name, own_dir).embed(with_payload)  # together; expected alone
        np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.ptp(expected, axis=0).min() > 0.1
    assert max(len(flow.payload_lengths) for flow in with_payload) > 64
    starts = np.array([flow.start_us for flow in with_payload[:40]])
    given = TraceInput(np.stack(expected[:40]), starts, np.zeros(40, np.int64))
    times = torch.from_numpy(trace_times(given.start_us, given.duration_us))[None]
    with torch.inference_mode():
        output = model.trace(torch.from_numpy(given.features)[None], times, torch.tensor([40]))
    for name in ("onnx", "torch"):
        scores = load_trace_engine(name, own_dir).score([given])
        np.testing.assert_allclose(scores.logits, output.logits, atol=1e-5)
        np.testing.assert_allclose(scores.importance[0], output.importance[0], atol=1e-5)


@pytest.mark.parametrize("name", ["onnx", "torch"])
def test_an_mm4flow_of_its_own_reads_no_packet_heads(own_dir, flows, name):
    engine = load_trace_engine(name, own_dir)
    warm_up(engine)
    assert engine.embed([]).shape == (0, WIDTH)
    chosen = [flow for flow in flows if flow.payload_lengths][:5]
    without = [replace(flow, heads=[], orig_bytes=b"x", resp_bytes=b"") for flow in chosen]
    np.testing.assert_allclose(engine.embed(without), engine.embed(chosen), atol=1e-6)
    with pytest.raises(EngineError, match="and no tokens of packet heads"):
        engine.embed_packets(encode_packets(chosen))


def test_a_checkpoint_of_the_other_kind_is_named(checkpoint_dir, trace_checkpoint_dir):
    with pytest.raises(CheckpointError, match=r"a flow checkpoint \(mm4flow\), expected a trace checkpoint"):
        load_trace_engine("onnx", checkpoint_dir)
    with pytest.raises(CheckpointError, match=r"a trace checkpoint \(tracegram\), expected a flow checkpoint"):
        load_engine("onnx", trace_checkpoint_dir)


@given(st.lists(st.integers(1, 512), max_size=150))
def test_pieces_by_length_hold_every_row_once_with_little_padding(counts):
    counts = np.array(counts, np.int64)
    found = pieces_by_length(counts, 2000, 16)
    assert sorted(np.concatenate([*found, np.array([], np.int64)]).tolist()) == list(range(len(counts)))
    for rows in found:
        computed = len(rows) * counts[rows].max()
        assert 1 - counts[rows].sum() / computed <= MAX_PADDING
        assert len(rows) == 1 or computed <= 2000
        assert len(rows) <= 16


def test_torch_missing_is_explained(trace_checkpoint_dir, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tapline.service.engines.torch_trace_engine", None)
    with pytest.raises(EngineError, match=r"install the extra `torch` \(pip install .*\[torch\].*\)"):
        load_trace_engine("torch", trace_checkpoint_dir)
