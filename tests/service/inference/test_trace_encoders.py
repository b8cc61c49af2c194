"""Several trace models over the same flows: one pass of each distinct encoder; what goes wrong in one stays there."""

import threading

import msgspec
import numpy as np
import pytest

from tapline.models.checkpoint import ENCODER_ONNX
from tapline.models.packet_tokens import TracegramFeatures
from tapline.models.trace import TraceSettings
from tapline.models.trace_context import SIZES, trace_context
from tapline.service.engines.loading import load_trace_engine
from tapline.service.engines.thread import EngineThread
from tapline.service.inference.classifier import Classifier
from tapline.service.inference.flow_features import pack, size_bytes, split
from tapline.service.inference.flow_network import FlowNetwork
from tapline.service.inference.trace_encoders import trace_encoders
from tests.conftest import make_flows, make_trace_checkpoint
from tests.service.traces.fakes import NumpyTraceEngine, trace_checkpoint, trace_flow
from tests.service.traces.test_classifying import with_heads


class CountedEngine:
    """Counts the flows that an engine encodes."""

    def __init__(self, engine):
        self.checkpoint = engine.checkpoint
        self._engine = engine
        self.encoded = []

    def embed(self, flows):
        self.encoded.append(len(flows))
        return self._engine.embed(flows)


def named(name, **changes):
    return NumpyTraceEngine(trace_checkpoint(name=name, **changes))


def by_model(outcome):
    return {features.checkpoint.name: features.data for features in outcome.features}


@pytest.mark.whole
def test_each_flow_is_encoded_once_by_each_distinct_encoder(engine, tmp_path):
    made = {
        name: make_trace_checkpoint(
            tmp_path / name / "1", encoder, width, name=name, trace=TraceSettings(window_seconds=seconds)
        )
        for name, encoder, width, seconds in (
            ("devices", "own", 64, 600), ("intrusion", "own", 64, 3600), ("others", "own", 32, 60),
            ("heads", "tracegram", 64, 60),
        )
    }  # fmt: skip
    engines = [CountedEngine(load_trace_engine("onnx", directory)) for directory in made.values()]
    digests = [each.checkpoint.files[ENCODER_ONNX].sha256 for each in engines]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3
    classifier = Classifier(engine, trace_engines=engines)
    found = classifier.classify(with_heads(make_flows(6)))
    assert [each.encoded for each in engines] == [[6], [], [6], [6]]
    for outcome in found:
        data = by_model(outcome)
        assert set(data) == set(made)
        assert data["devices"] is data["intrusion"]  # in memory once
        assert len(data["devices"]) == size_bytes(engines[0].checkpoint) == 2 * len(data["others"])
    alone = Classifier(engine, trace_engines=engines[3:]).classify(with_heads(make_flows(6)))
    both, one = (
        split([by_model(outcome)["heads"] for outcome in each], engines[3].checkpoint) for each in (found, alone)
    )
    np.testing.assert_allclose(both[0], one[0], rtol=1e-5)


def test_the_same_file_that_is_given_something_else_is_another_encoder(tmp_path):
    directories = [
        make_trace_checkpoint(tmp_path / name / "1", name=name, features=features)
        for name, features in (("a", TracegramFeatures()), ("b", TracegramFeatures(payload=True)))
    ]
    engines = [load_trace_engine("onnx", directory) for directory in directories]
    assert engines[0].checkpoint.files[ENCODER_ONNX].sha256 == engines[1].checkpoint.files[ENCODER_ONNX].sha256
    assert len(trace_encoders(engines, 60)) == 2


def test_a_flow_may_count_in_the_traces_of_one_model_and_not_of_another(engine):
    header, full = named("header"), named("full", features=TracegramFeatures(payload=True))
    classifier = Classifier(engine, trace_engines=[header, full])
    assert classifier.heads == "full"
    only_header = trace_flow("a", 0)
    whole = trace_flow("b", 0)
    whole.heads_kind = "full"
    bare = trace_flow("c", 0)
    bare.heads = []
    assert [classifier.is_traced(flow) for flow in (only_header, whole, bare)] == [True, True, False]
    found = classifier.classify([only_header, whole, bare])
    assert [set(by_model(outcome)) for outcome in found] == [{"header"}, {"header", "full"}, set()]
    assert classifier.tokens(whole) > Classifier(engine, trace_engines=[full]).tokens(whole)


def test_an_encoder_that_fails_costs_its_model_the_flow_alone(engine):
    bad, good = named("bad"), named("good")
    embed = bad.embed

    def picky(flows):
        if any(flow.uid == "F2" for flow in flows):
            raise RuntimeError("engine fault")
        return embed(flows)

    bad.embed = picky
    found = Classifier(engine, trace_engines=[bad, good]).classify(with_heads(make_flows(4)))
    assert [by_model(outcome)["bad"] is None for outcome in found] == [False, False, True, False]
    assert None not in [by_model(outcome)["good"] for outcome in found]
    assert None not in [outcome.verdict for outcome in found]


def test_an_encoder_that_hangs_costs_its_model_the_flows_and_is_asked_once(engine):
    bad, good, gate = named("bad"), named("good"), threading.Event()
    asked = []
    bad.embed = lambda flows: asked.append(len(flows)) or gate.wait(60)
    classifier = Classifier(FlowNetwork(engine, EngineThread("engine", 60)), trace_engines=[bad, good])
    classifier.encoders[0].thread.timeout_seconds = 0.05
    for _ in range(2):
        for outcome in classifier.classify(with_heads(make_flows(3))):
            assert by_model(outcome)["bad"] is None
            assert by_model(outcome)["good"] is not None
            assert outcome.verdict is not None
    assert asked == [3]
    gate.set()


@pytest.mark.parametrize("shape", [(3, 8), (4, 7), (4,)])
def test_features_of_another_shape_are_a_failure_of_the_encoder(engine, shape):
    bad = named("bad")
    bad.embed = lambda flows: np.zeros(shape, np.float32)
    found = Classifier(engine, trace_engines=[bad]).classify(with_heads(make_flows(4)))
    assert [by_model(outcome)["bad"] for outcome in found] == [None] * 4


def test_what_is_packed_is_split_again(rng):
    rows = rng.normal(size=(5, 8)).astype(np.float32)
    rows[2, 3] = np.nan
    packed = pack(rows)
    assert packed[2] is None
    embeddings, nothing = split([data for data in packed if data is not None], trace_checkpoint())
    np.testing.assert_array_equal(embeddings, np.delete(rows, 2, axis=0))
    assert nothing.shape == (4, 0)
    network = msgspec.structs.replace(trace_checkpoint().network, context=("transport", "ttl_orig", "ttl_resp"))
    context = rng.integers(0, 6, (5, 3)).astype(np.uint8)
    found = split([data for data in pack(rows, context) if data is not None], trace_checkpoint(network=network))
    np.testing.assert_array_equal(found[0], np.delete(rows, 2, axis=0))
    np.testing.assert_array_equal(found[1], np.delete(context, 2, axis=0))


@pytest.mark.whole
def test_models_that_share_an_encoder_read_the_context_that_each_asks_for(engine, tmp_path):
    fields = {"devices": (), "intrusion": ("transport", "port_resp", "bytes_orig"), "others": ("transport",)}
    engines = [
        load_trace_engine("onnx", make_trace_checkpoint(tmp_path / name, "mm4flow", 64, name=name, context=asked))
        for name, asked in fields.items()
    ]
    classifier = Classifier(engine, trace_engines=engines)
    flows = with_heads(make_flows(4))
    found = classifier.classify(flows)
    assert len(classifier.encoders) == 1
    for each in engines:
        name = each.checkpoint.name
        embeddings, context = split([by_model(outcome)[name] for outcome in found], each.checkpoint)
        np.testing.assert_array_equal(context, trace_context(flows, fields[name]))
        assert embeddings[0].tobytes() == by_model(found[0])["devices"]
    more = msgspec.structs.replace(flows[0], orig_ip_bytes=10**6)
    assert classifier.input_hash(more) != classifier.input_hash(flows[0])
    alone = Classifier(engine, trace_engines=engines[:1])
    assert alone.input_hash(more) == alone.input_hash(flows[0])


@pytest.mark.whole
def test_a_model_without_an_encoder_reads_the_context_beside_one_with_an_encoder(engine, tmp_path):
    asked = {"all": tuple(SIZES), "some": ("transport", "length_1", "gap_1"), "devices": ()}
    made = {
        name: make_trace_checkpoint(tmp_path / name / "1", encoder, name=name, context=asked[name])
        for name, encoder in (("all", "context"), ("some", "context"), ("devices", "own"))
    }
    engines = [CountedEngine(load_trace_engine("onnx", directory)) for directory in made.values()]
    classifier = Classifier(engine, trace_engines=engines)
    flows = with_heads(make_flows(5))
    found = classifier.classify(flows)
    assert [each.encoded for each in engines] == [[], [], [5]]
    assert len(classifier.encoders) == 2
    for each in engines[:2]:
        name = each.checkpoint.name
        data = [by_model(outcome)[name] for outcome in found]
        assert data == [row.tobytes() for row in trace_context(flows, asked[name])]
        assert size_bytes(each.checkpoint) == len(asked[name])
        embeddings, context = split(data, each.checkpoint)
        assert embeddings.shape == (5, 0)
        np.testing.assert_array_equal(context, trace_context(flows, asked[name]))
    assert all(len(by_model(outcome)["devices"]) == 4 * 32 for outcome in found)


@pytest.mark.whole
def test_an_encoder_that_fails_costs_a_model_without_one_nothing(engine, tmp_path):
    bare = load_trace_engine("onnx", make_trace_checkpoint(tmp_path / "bare" / "1", "context", name="bare"))
    bad = named("bad")
    bad.embed = lambda flows: np.zeros((len(flows), 7), np.float32)
    for outcome in Classifier(engine, trace_engines=[bad, bare]).classify(with_heads(make_flows(3))):
        assert by_model(outcome)["bad"] is None
        assert len(by_model(outcome)["bare"]) == len(SIZES)
