"""`tapline.load`: what a model gives for flows and traces is what the service gives, to the bit, for any number."""

import threading
from concurrent.futures import ThreadPoolExecutor

import msgspec
import numpy as np
import pytest
import torch

import tapline
from tapline.models.checkpoint import Unknown
from tapline.models.encode import encode
from tapline.models.flow import FlowError
from tapline.models.verdict import CONFIDENCE_DIGITS
from tapline.service.engines.engine import EngineError
from tapline.service.engines.loading import load_engine
from tapline.service.engines.pieces import piece_inputs
from tapline.service.engines.torch_engine import TorchEngine
from tapline.service.python import flow_model
from tests.conftest import make_checkpoint, make_flows
from tests.paths import DATA

pytestmark = pytest.mark.whole

CAPTURES = DATA / "captures"
ANDROID = CAPTURES / "android.pcap"
ARIA = CAPTURES / "iot-sentinel" / "Aria"


@pytest.fixture(scope="module")
def model():
    return tapline.load("flow-protocols", threads=1)


@pytest.fixture(scope="module")
def flows():
    return list(tapline.read(ANDROID))


def silent(flow):
    """The flow, if nobody had sent payload."""
    return msgspec.structs.replace(flow, up=0, down=0, payload_lengths=[], orig_bytes=b"", resp_bytes=b"")


def test_what_a_model_says_of_itself(model):
    assert (model.name, model.version, model.threads) == ("flow-protocols", "5", 1)
    assert (len(model.labels), model.embedding_size) == (77, 128)
    assert model.card.startswith("#")
    assert repr(model) == "<FlowModel flow-protocols 5: 77 labels>"
    assert repr(model.checkpoint) == "<Checkpoint flow-protocols 5: 77 labels>"
    assert repr(tapline.load("iot-devices").checkpoint) == "<TracegramCheckpoint iot-devices 3: 31 labels>"
    assert len(repr(model.checkpoint.context)) < 1000


@pytest.mark.parametrize("ports", [True, False])
def test_the_largest_probability_rounded_is_the_confidence(model, flows, ports):
    flows = [*flows, *make_flows(40)]
    verdicts, shares = model.predict(flows, ports=ports), model.predict_proba(flows, ports=ports)
    assert (shares.dtype, shares.shape) == (np.float64, (len(flows), 77))
    judged = [row for row, verdict in enumerate(verdicts) if verdict is not None]
    assert len(judged) == 66 + 40
    for row in judged:
        assert shares[row].max().round(CONFIDENCE_DIGITS) == verdicts[row].confidence
        assert model.labels[int(shares[row].argmax())] == verdicts[row].nearest
    assert (shares[judged].sum(axis=1) < 1 + 1e-4).all()
    assert shares[judged].min() > 0  # a log-loss is finite


def test_ports_change_what_they_change(context_dir):
    model, flows = tapline.load(context_dir), make_flows(20)
    assert not np.array_equal(model.predict_proba(flows), model.predict_proba(flows, ports=False))


def test_without_its_student_the_network_answers(model, flows):
    cascade, whole = (list(filter(None, model.predict(flows, cascade=asked))) for asked in (True, False))
    assert {verdict.by_student for verdict in cascade} == {True}
    assert {verdict.by_student for verdict in whole} == {False}
    assert [verdict.label for verdict in cascade] == [verdict.label for verdict in whole]
    shares, others = (model.predict_proba(flows, cascade=asked) for asked in (True, False))
    by_student = [verdict is not None and verdict.by_student for verdict in model.predict(flows)]
    assert not np.array_equal(shares[by_student], others[by_student])


@pytest.mark.parametrize("count", [0, 1, 2, 511, 513])
def test_any_number_of_flows(checkpoint_dir, count):
    model, flows = tapline.load(checkpoint_dir), make_flows(count)
    assert len(model.predict(iter(flows))) == count
    assert model.predict_proba(iter(flows)).shape == (count, 3)
    assert model.embed(iter(flows)).shape == (count, 64)
    assert len(model.attention(iter(flows))) == count


def test_batches_do_not_change_scores(model, flows, monkeypatch):
    whole = model.embed(flows)
    monkeypatch.setattr(flow_model, "BATCH_FLOWS", 5)
    np.testing.assert_allclose(model.embed(flows), whole, atol=1e-5)


def test_flows_that_a_model_is_not_asked_about(model, flows):
    mixed = [silent(flows[0]), flows[0], silent(flows[1])]
    verdicts = model.predict(mixed)
    assert [verdict is None for verdict in verdicts] == [True, False, True]
    for found in (model.predict_proba(mixed), model.embed(mixed)):
        assert np.isnan(found).all(axis=1).tolist() == [True, False, True]
        assert np.isfinite(found[1]).all()
    assert [each is None for each in model.attention(mixed)] == [True, False, True]
    assert model.predict([silent(flows[0])]) == [None]


def test_flows_of_too_few_packets_are_embedded_and_not_judged(tmp_path):
    model = tapline.load(make_checkpoint(tmp_path / "random" / "1", min_packets=3))
    few, enough = (
        msgspec.structs.replace(make_flows(1)[0], payload_lengths=[9] * count, up=count, down=0) for count in (2, 3)
    )
    assert [verdict is None for verdict in model.predict([few, enough])] == [True, False]
    assert np.isfinite(model.embed([few, enough])).all()
    assert np.isnan(model.predict_proba([few, enough])).all(axis=1).tolist() == [True, False]


def test_an_early_flow_has_an_early_verdict(model, flows):
    (verdict,) = model.predict([msgspec.structs.replace(flows[0], complete=False)])
    assert not verdict.final


def test_embeddings_are_those_of_the_engine(checkpoint_dir):
    flows = make_flows(30)
    engine = load_engine("onnx", checkpoint_dir)
    expected = engine.run(encode(flows, engine.checkpoint.features)).embeddings
    assert np.array_equal(tapline.load(checkpoint_dir).embed(flows), expected)


def test_attention_is_that_of_the_network(checkpoint_dir):
    """What the torch network says of one flow at a time, without padding."""
    flows = [*make_flows(20), msgspec.structs.replace(make_flows(1)[0], orig_bytes=b"", resp_bytes=b"")]
    flows.append(msgspec.structs.replace(flows[0], orig_bytes=bytes(256), resp_bytes=bytes(256)))
    network = TorchEngine(checkpoint_dir)._runner._model
    for flow, found in zip(flows, tapline.load(checkpoint_dir).attention(flows), strict=True):
        batch = encode([flow])
        inputs = piece_inputs(batch, np.zeros(1, np.int64))
        with torch.inference_mode():
            output = network(*map(torch.from_numpy, inputs.values()))
        shares = ((output.ps_attention + output.bytes_attention) / 2)[0].numpy()
        packets, orig, resp = len(flow.payload_lengths), len(found.orig_bytes), len(found.resp_bytes)
        assert len(found.packets) == packets
        assert (orig, resp) in ((len(flow.orig_bytes), len(flow.resp_bytes)), (254, 255))
        assert len(shares) == packets + orig + resp + 5
        np.testing.assert_allclose(found.packets, shares[1 : packets + 1], atol=1e-6)
        np.testing.assert_allclose(found.orig_bytes, shares[packets + 3 : packets + 3 + orig], atol=1e-6)
        np.testing.assert_allclose(found.resp_bytes, shares[packets + 4 + orig : -1], atol=1e-6)
        total = found.special + found.packets.sum() + found.orig_bytes.sum() + found.resp_bytes.sum()
        assert total == pytest.approx(1, abs=1e-5)


def test_an_engine_that_does_not_tell_attention_says_so(checkpoint_dir):
    with pytest.raises(EngineError, match="load it with engine='onnx'"):
        tapline.load(checkpoint_dir, engine="torch").attention(make_flows(1))


def test_several_threads_may_ask(checkpoint_dir):
    model, flows = tapline.load(checkpoint_dir), make_flows(50)
    expected = model.predict(flows)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(model.predict, [flows] * 4)) == [expected] * 4


def test_a_model_that_is_forgotten_leaves_no_thread(checkpoint_dir):
    before = set(threading.enumerate())
    model = tapline.load(checkpoint_dir)
    model.predict(make_flows(1))
    (thread,) = set(threading.enumerate()) - before
    del model
    thread.join(30)
    assert not thread.is_alive()


@pytest.mark.parametrize("name", ["iot-devices", "intrusion"])
def test_traces_of_flows_are_those_of_the_capture(name):
    """Apart from what a trace model cannot know: the input's name, and the verdicts of the flows."""
    model = tapline.load(name)
    captures = sorted(ARIA.iterdir())[:1]
    expected = list(tapline.classify(captures, traces=model).traces)
    found = model.predict(model.traces(tapline.read(captures)))
    assert len(found) == len(expected) > 0
    order = {(trace.subject, trace.start_us): trace for trace in found}
    for trace in expected:
        tops = [msgspec.structs.replace(flow, label="") for flow in trace.top_flows]
        assert order[trace.subject, trace.start_us] == msgspec.structs.replace(trace, source="", top_flows=tops)


def test_probabilities_and_importance_of_traces(mac_traces_dir):
    model = tapline.load(mac_traces_dir)
    traces = model.traces(tapline.read(ANDROID))
    verdicts, shares, importance = model.predict(traces), model.predict_proba(traces), model.attention(traces)
    assert len(verdicts) == len(traces) > 3
    assert shares.shape == (len(traces), 3)
    for trace, verdict, row, weights in zip(traces, verdicts, shares, importance, strict=True):
        assert row.max().round(CONFIDENCE_DIGITS) == verdict.verdict.confidence
        assert row.max() != verdict.verdict.confidence
        assert model.labels[int(row.argmax())] == verdict.verdict.nearest
        assert weights.shape == (len(trace.flows),)
        assert weights.sum() == pytest.approx(1, abs=1e-4)
        assert verdict.top_flows[0].uid == trace.flows[int(weights.argmax())].uid
    assert (model.predict([]), model.attention([]), model.predict_proba([]).shape) == ([], [], (0, 3))


def test_flows_without_heads_are_refused():
    model = tapline.load("iot-devices")
    with pytest.raises(FlowError, match=r"needs packet heads, .* tapline\.read\(\.\.\., heads='header'\)"):
        model.traces(tapline.read(ANDROID, heads="none"))
    assert model.traces([]) == []
    (trace, *_) = model.traces(tapline.read(ANDROID))
    trace.flows[0] = msgspec.structs.replace(trace.flows[0], heads=[])
    with pytest.raises(EngineError, match="it takes those of `traces`"):
        model.predict([trace])


def test_a_trace_model_on_the_embeddings_of_a_flow_model(checkpoint_dir, embedding_traces_dir):
    flow_model = tapline.load(checkpoint_dir)
    with pytest.raises(tapline.CheckpointError, match="reads the embeddings of random 1: load that and give it"):
        tapline.load(embedding_traces_dir)
    with pytest.raises(tapline.CheckpointError, match="but flow-protocols 5"):
        tapline.load(embedding_traces_dir, flow_model=tapline.load("flow-protocols"))
    model = tapline.load(embedding_traces_dir, flow_model=flow_model)
    expected = tapline.classify(ANDROID, model=flow_model, traces=model).traces
    found = model.predict(model.traces(tapline.read(ANDROID)))
    confidences = {(trace.subject, trace.start_us): trace.verdict.confidence for trace in found}
    assert len(found) == len(expected)
    for trace in expected:
        assert confidences[trace.subject, trace.start_us] == pytest.approx(trace.verdict.confidence, abs=1e-4)


def test_a_background_class_is_not_among_the_columns(tmp_path):
    directory = tmp_path / "random" / "1"
    assert tapline.load("flow-protocols").checkpoint.unknown.background
    assert not tapline.load(make_checkpoint(directory, unknown=Unknown(0.4))).checkpoint.unknown.background
    sums = tapline.load(directory).predict_proba(make_flows(5)).sum(axis=1)
    np.testing.assert_allclose(sums, 1, atol=1e-4)
