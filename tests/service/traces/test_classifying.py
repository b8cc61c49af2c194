"""Embeddings in the pass that gives flow verdicts, trace checkpoints that fit or do not, scores that do not fit."""

import numpy as np
import pytest
from msgspec import structs

from tapline.models.checkpoint import CheckpointError, FlowCheckpoint
from tapline.models.encode import Mm4flowFeatures, encode
from tapline.models.flow import PacketHead
from tapline.models.trace import TraceSettings
from tapline.service.api import schemas
from tapline.service.engines.engine import EngineError
from tapline.service.engines.loading import load_engine
from tapline.service.engines.trace_engine import TraceScores
from tapline.service.inference.classifier import Classifier
from tapline.service.inference.flow_features import split
from tapline.service.inference.trace_loading import fitting, load_traces
from tapline.service.runtime import Service
from tapline.service.settings import Settings
from tapline.service.traces.scorer import TraceScorer
from tapline.service.traces.trace_verdict import ScoreJob, TraceFlow, WindowKey
from tests.conftest import make_checkpoint, make_flows, make_trace_checkpoint
from tests.paths import ROOT
from tests.service.api.client import api_client
from tests.service.command.cli_runner import tapline
from tests.service.history.kept import settled
from tests.service.traces.fakes import LABELS, WIDTH, NumpyTraceEngine, trace_checkpoint, trace_flow

pytestmark = pytest.mark.whole

CAPTURE = ROOT / "tests" / "data" / "captures" / "android.pcap"


def embeddings(outcomes):
    """What the only trace model reads of the flows that it gets."""
    features = [features for outcome in outcomes for features in outcome.features]
    return split([each.data for each in features], features[0].checkpoint)[0]


def with_heads(flows):
    for flow in flows:
        flow.heads, flow.heads_kind = [PacketHead(0, flow.orig_bytes[:40] + bytes(30))], "header"
    return flows


@pytest.fixture
def flow_engine(checkpoint_dir):
    return load_engine("onnx", checkpoint_dir)


def test_flows_get_the_embedding_of_the_packet_encoder(flow_engine):
    engine = NumpyTraceEngine()
    classifier = Classifier(flow_engine, trace_engines=[engine])
    flows = with_heads(make_flows(5))
    flows[2].heads = []
    found = classifier.classify(flows)
    assert [not outcome.features for outcome in found] == [False, False, True, False, False]
    assert engine.embedded == [4]  # one call for the batch
    alone = NumpyTraceEngine().embed(flows[3:4])
    np.testing.assert_allclose(embeddings(found)[2], alone[0], rtol=1e-5)
    assert all(outcome.verdict is not None for outcome in found)


def test_flows_get_the_embedding_of_the_flow_network_without_another_pass(flow_engine, embedding_traces_dir):
    classifier = Classifier(flow_engine, trace_engines=load_traces([str(embedding_traces_dir)], "onnx"))
    flows = with_heads(make_flows(4))
    found = classifier.classify(flows)
    expected = flow_engine.run(encode(flows)).embeddings
    np.testing.assert_allclose(embeddings(found), expected, atol=1e-5)


def test_flows_get_the_embedding_of_the_encoder_that_the_trace_checkpoint_brings(flow_engine, own_traces_dir):
    (engine,) = load_traces([str(own_traces_dir)], "onnx")
    classifier = Classifier(flow_engine, trace_engines=[engine])
    flows = with_heads(make_flows(6))
    flows[1].heads = []  # no instance of a trace
    found = classifier.classify(flows)
    assert [not outcome.features for outcome in found] == [False, True, False, False, False, False]
    expected = engine.embed([flows[0], *flows[2:]])
    np.testing.assert_array_equal(embeddings(found), expected)
    assert classifier.heads == "header"


def test_what_is_read_of_a_flow_is_what_either_checkpoint_reads(tmp_path, own_traces_dir):
    narrow = load_engine("onnx", make_checkpoint(tmp_path / "random" / "1", features=Mm4flowFeatures(8, 0)))
    alone, both = Classifier(narrow), Classifier(narrow, trace_engines=load_traces([str(own_traces_dir)], "onnx"))
    (flow,) = with_heads([trace_flow("a", 0)])
    flow.payload_lengths = [40] * 100

    def changed(place):
        return structs.replace(flow, payload_lengths=[41 if n == place else 40 for n in range(100)])

    assert [alone.input_hash(changed(place)) != alone.input_hash(flow) for place in (7, 8)] == [True, False]
    assert [both.input_hash(changed(place)) != both.input_hash(flow) for place in (8, 63, 64)] == [True, True, False]
    other_heads = structs.replace(flow, heads=[PacketHead(0, b"other")])
    assert both.input_hash(other_heads) == both.input_hash(flow)
    assert (alone.tokens(flow), both.tokens(flow)) == (8 + 5, 8 + 5 + 64 + 5)


def test_flows_too_short_for_a_verdict_still_count_in_their_trace(flow_engine):
    classifier = Classifier(flow_engine, trace_engines=[NumpyTraceEngine()], min_packets=5)
    short = trace_flow("short", 0)
    assert classifier.accepts(short)
    (outcome,) = classifier.classify([short])
    assert outcome.verdict is None
    assert outcome.features
    assert not Classifier(flow_engine, min_packets=5).accepts(short)


def test_what_sources_keep_of_heads_follows_the_checkpoint(flow_engine):
    def kept(**features):
        checkpoint = trace_checkpoint()
        changed = trace_checkpoint(features=type(checkpoint.features)(**features))
        return Classifier(flow_engine, trace_engines=[NumpyTraceEngine(changed)])

    assert Classifier(flow_engine).heads == "none"
    assert kept().heads == "header"
    full = kept(payload=True)
    assert full.heads == "full"
    assert not full.is_traced(trace_flow("a", 0))  # a sensor that sends headers cannot serve a model of payload


def test_the_same_heads_are_the_same_input(flow_engine):
    classifier = Classifier(flow_engine, trace_engines=[NumpyTraceEngine()])
    one, other = trace_flow("a", 0), trace_flow("a", 0, data=b"other head")
    assert classifier.input_hash(one) == classifier.input_hash(trace_flow("a", 0))
    assert classifier.input_hash(one) != classifier.input_hash(other)
    assert Classifier(flow_engine).input_hash(one) == Classifier(flow_engine).input_hash(other)


def test_a_trace_checkpoint_of_other_embeddings_is_refused(flow_engine, tmp_path):
    other = make_trace_checkpoint(
        tmp_path / "other", encoder="mm4flow", width=64, flow_checkpoint=FlowCheckpoint("elsewhere", "7", "0" * 64)
    )
    (engine,) = load_traces([str(other)], "onnx")
    with pytest.raises(CheckpointError, match="reads the embeddings of elsewhere 7"):
        fitting([engine], flow_engine.checkpoint, required=True, warn=pytest.fail)
    warnings = []
    assert fitting([engine], flow_engine.checkpoint, required=False, warn=warnings.append) == []
    assert len(warnings) == 1
    assert warnings[0].startswith("no traces by random-mm4flow: the trace checkpoint random-mm4flow 1 reads")


def job(subject, embeddings, final=True):
    flows = [
        TraceFlow(f"{subject}{n}", n, 0, "10.0.0.5", n, "10.0.0.9", 1, "udp", "", 9, False, np.float32(row).tobytes())
        for n, row in enumerate(embeddings)
    ]
    return ScoreJob(WindowKey("bus", subject, 0), 600, flows, 0, final)


def test_scores_do_not_depend_on_the_batch_and_shares_add_up(rng):
    scorer = TraceScorer(NumpyTraceEngine())
    jobs = [job(f"s{n}", rng.normal(size=(k, WIDTH))) for n, k in enumerate((1, 12, 3))]
    together = scorer.score(jobs)
    alone = [scorer.score([each])[0] for each in jobs]
    assert [trace.verdict for trace in together] == [trace.verdict for trace in alone]
    assert [len(trace.top_flows) for trace in together] == [1, 10, 3]
    assert sum(flow.share for flow in together[2].top_flows) == pytest.approx(1, abs=1e-5)
    assert {trace.verdict.label for trace in together} <= set(LABELS)
    assert scorer.score([job("early", rng.normal(size=(2, WIDTH)), final=False)])[0].verdict.final is False
    assert scorer.score([]) == []


def test_a_trace_by_mac_says_where_an_address_stands_for_it(rng):
    checkpoint = trace_checkpoint(trace=TraceSettings(subject="mac"))
    scorer = TraceScorer(NumpyTraceEngine(checkpoint))
    jobs = [job(subject, rng.normal(size=(2, WIDTH))) for subject in ("02:00:00:00:00:0a", "10.0.0.5")]
    assert [trace.subject_kind for trace in scorer.score(jobs)] == ["mac", "originator"]


@pytest.mark.parametrize(
    "scores",
    [
        TraceScores(np.zeros((1, 3), np.float32), [np.ones(1, np.float32)] * 2),
        TraceScores(np.zeros((2, 3), np.float32), [np.ones(2, np.float32), np.ones(1, np.float32)]),
    ],
)
def test_scores_of_other_traces_are_an_error(scores, rng):
    engine = NumpyTraceEngine()
    engine.score = lambda traces: scores
    with pytest.raises(EngineError, match="do not fit the 2 traces"):
        TraceScorer(engine).score([job("a", rng.normal(size=(1, WIDTH))), job("b", rng.normal(size=(1, WIDTH)))])


def test_a_trace_on_which_the_engine_fails_fails_alone(rng):
    engine = NumpyTraceEngine()
    score = engine.score

    def picky(traces):
        if any(len(trace.features) == 5 for trace in traces):
            raise RuntimeError("engine fault")
        return score(traces)

    engine.score = picky
    jobs = [job(f"s{k}", rng.normal(size=(k, WIDTH))) for k in (1, 5, 3, 4)]
    found = TraceScorer(engine).score_each(jobs)
    assert [trace and trace.subject for trace in found] == ["s1", None, "s3", "s4"]


def test_errors_of_trace_checkpoints_are_sentences(checkpoint_dir, tmp_path):
    for arguments, expected in (
        (("--traces", tmp_path), "not a checkpoint"),
        (("--traces", checkpoint_dir), "trace checkpoint"),
        (("--traces", "none", "--show", "traces"), "no trace model"),
    ):
        result = tapline("classify", CAPTURE, "--checkpoint", checkpoint_dir, *arguments)
        assert result.returncode == 2
        assert expected in result.stderr
        assert "Traceback" not in result.stderr


def test_a_window_without_end_is_refused_live_but_not_for_captures(checkpoint_dir, tmp_path):
    endless = make_trace_checkpoint(tmp_path / "endless" / "1", trace=TraceSettings(window_seconds=0))
    with pytest.raises(CheckpointError, match="has no window"):
        Service(Settings(checkpoint=checkpoint_dir, traces=[str(endless)], zeek=["ws://127.0.0.1:9"]))
    assert Service(Settings(checkpoint=checkpoint_dir, traces=[str(endless)])).traces is None


def test_recent_traces_by_rest(checkpoint_dir, mac_traces_dir, tmp_path):
    settings = Settings(
        checkpoint=checkpoint_dir, traces=[str(mac_traces_dir)], replay=CAPTURE, speed=0, history="sqlite",
        data_dir=tmp_path,
    )  # fmt: skip
    service = Service(settings)
    with api_client(service) as client:
        client.portal.call(service.replay.finished.wait)
        client.portal.call(settled, service.history)
        everything = client.get("/v1/traces").json()
        schemas.Traces.model_validate(everything)
        numbers = [trace["number"] for trace in everything["traces"]]
        assert numbers == sorted(numbers, reverse=True)
        assert len(numbers) >= 8
        page = client.get("/v1/traces", params={"limit": 3}).json()
        assert page["traces"] == everything["traces"][:3]
        following = client.get("/v1/traces", params={"limit": 3, "cursor": page["next"]}).json()
        assert following["traces"] == everything["traces"][3:6]
        subject = everything["traces"][0]["subject"]
        own = client.get("/v1/traces", params={"subject": subject.upper()}).json()["traces"]
        assert {trace["subject"] for trace in own} == {subject}
        label = everything["traces"][0]["verdict"]["label"]
        labelled = client.get("/v1/traces", params={"label": label}).json()["traces"]
        assert {trace["verdict"]["label"] for trace in labelled} == {label}
        assert client.get("/v1/traces", params={"limit": 0}).status_code == 422
        (live,) = client.get("/v1/live").json()["traces"]
        assert (live["open_windows"], live["counts"]["flows"], live["counts"]["late"]) == (0, 66, 0)
        metrics = client.get("/metrics").text
        assert "tapline_trace_windows_closed_total" in metrics


def test_without_live_traffic_there_are_no_recent_traces(checkpoint_dir, tmp_path):
    settings = Settings(checkpoint=checkpoint_dir, traces=["none"], history="sqlite", data_dir=tmp_path)
    with api_client(Service(settings)) as client:
        answer = client.get("/v1/traces")
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "no_traces")
        assert "no trace model: load one, or start with --traces" in answer.json()["error"]["message"]


def test_why_there_are_no_recent_traces_is_said(checkpoint_dir, mac_traces_dir, tmp_path):
    def reason(**settings):
        settings = Settings(checkpoint=checkpoint_dir, history="sqlite", data_dir=tmp_path / "data", **settings)
        with api_client(Service(settings)) as client:
            return client.get("/v1/traces").json()["error"]["message"]

    assert "no live traffic" in reason(traces=[str(mac_traces_dir)])
