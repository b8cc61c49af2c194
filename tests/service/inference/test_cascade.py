"""The cascade: a student answers what it is sure of, the network the rest, whatever stands beside a flow."""

import asyncio

import msgspec
import numpy as np
import pytest

from tapline.models.checkpoint import STUDENT, FlowCheckpoint, read_checkpoint
from tapline.models.checkpoint_writing import write_checkpoint
from tapline.models.student import Student, StudentNetwork
from tapline.service.engines.loading import load_engine
from tapline.service.inference.batcher import Batcher
from tapline.service.inference.classifier import Classifier
from tapline.service.inference.repository import shipped_checkpoint
from tapline.service.metrics import Metrics
from tapline.service.sources.capture import CaptureReader, ReadOptions
from tests.conftest import make_checkpoint, make_flows
from tests.paths import DATA

CAPTURES = [path for path in sorted((DATA / "captures").rglob("*")) if path.suffix in (".pcap", ".pcapng", ".trace")]
SURE = Student(StudentNetwork(8, 8, 16, 16), 0.9, 0.9)


@pytest.fixture(scope="module")
def flows():
    """Those of real captures with payload."""
    found = [flow for path in CAPTURES for flow in CaptureReader(path, ReadOptions(heads="none"))]
    return [flow for flow in found if flow.payload_lengths]


@pytest.fixture(scope="module")
def engine():
    return load_engine("onnx", shipped_checkpoint("flow-protocols"), 1)


@pytest.fixture(scope="module")
def without_student(tmp_path_factory):
    """The same checkpoint without its student."""
    source = shipped_checkpoint("flow-protocols")
    checkpoint = read_checkpoint(source)
    directory = tmp_path_factory.mktemp("plain") / "1"

    def write_files(folder):
        for name in checkpoint.files.keys() - {STUDENT}:
            (folder / name).write_bytes((source / name).read_bytes())

    write_checkpoint(directory, msgspec.structs.replace(checkpoint, student=None), write_files)
    return load_engine("onnx", directory, 1)


def verdicts(classifier, flows, **options):
    return [outcome.verdict for outcome in classifier.classify(flows, **options)]


def said(verdicts):
    return [(verdict.label, verdict.nearest if not verdict.unknown else "") for verdict in verdicts]


@pytest.mark.parametrize("ports", [True, False])
def test_it_says_what_the_network_says(engine, flows, ports):
    cascade, whole = Classifier(engine, ports=ports), Classifier(engine, ports=ports, cascade=False)
    found, wanted = verdicts(cascade, flows), verdicts(whole, flows)
    answered = cascade.last_timing.answered_flows
    assert len(flows) > 200
    assert answered > (0.5 if ports else 0.2) * len(flows)
    assert whole.last_timing.answered_flows == 0
    differ = sum(a != b for a, b in zip(said(found), said(wanted), strict=True))
    assert differ <= 0.005 * answered
    confidences = np.array([[a.confidence, b.confidence] for a, b in zip(found, wanted, strict=True)])
    assert np.abs(np.diff(confidences)).mean() < 0.01


def test_switched_off_nothing_is_changed(engine, without_student, flows):
    off, plain = Classifier(engine, cascade=False), Classifier(without_student)
    found = verdicts(off, flows)
    assert {verdict.by_student for verdict in found} == {False}
    assert [msgspec.structs.replace(each, by_student=msgspec.UNSET) for each in found] == verdicts(plain, flows)
    assert off.has_cascade is False
    assert plain.has_cascade is None


def test_who_answers_a_flow_depends_on_it_alone(engine, flows):
    cascade = Classifier(engine)
    assert cascade.network.cascade is not None
    together = cascade.network.cascade.answer(flows, True)
    assert 0 < together.flows < len(flows)
    for size in (1, 7, 64):
        parts = [cascade.network.cascade.answer(flows[at : at + size], True) for at in range(0, len(flows), size)]
        assert np.concatenate([part.sure for part in parts]).tolist() == together.sure.tolist()
        assert (np.concatenate([part.scores.logits for part in parts]) == together.scores.logits).all()


def test_what_the_student_answers_is_the_same_to_the_bit_in_any_batch(engine, flows):
    cascade = Classifier(engine)
    sure = cascade.network.cascade.answer(flows, True).sure
    kept = [flow for flow, is_sure in zip(flows, sure.tolist(), strict=True) if is_sure][:60]
    alone = [verdicts(cascade, [flow])[0] for flow in kept]
    mixed = dict(zip(map(id, flows), verdicts(cascade, flows), strict=True))
    assert [mixed[id(flow)] for flow in kept] == alone


def test_the_network_alone_says_unknown(engine, flows):
    cascade = Classifier(engine)
    sure = cascade.network.cascade.answer(flows, True).sure
    unknown = [verdict.unknown for verdict in verdicts(cascade, flows)]
    assert any(unknown)
    assert not any(one and other for one, other in zip(unknown, sure.tolist(), strict=True))


def test_ports_are_read_of_each_flow_as_asked(engine, flows):
    cascade = Classifier(engine)
    both = verdicts(cascade, [*flows[:50], *flows[:50]], ports=[True] * 50 + [False] * 50)
    apart = verdicts(cascade, flows[:50], ports=[True] * 50) + verdicts(cascade, flows[:50], ports=[False] * 50)
    assert said(both) == said(apart)
    np.testing.assert_allclose(
        [verdict.confidence for verdict in both], [verdict.confidence for verdict in apart], atol=2e-6
    )


@pytest.mark.parametrize("default", [True, False])
def test_the_student_answers_each_flow_as_asked(engine, flows, default):
    classifier, part = Classifier(engine, cascade=default), flows[:50]
    both = verdicts(classifier, [*part, *part], cascade=[True] * 50 + [False] * 50)
    sure = classifier.network.cascade.answer(part, True).sure.tolist()
    assert [verdict.by_student for verdict in both] == sure + [False] * 50
    assert any(sure)
    on, off = verdicts(Classifier(engine), part), verdicts(Classifier(engine, cascade=False), part)
    assert verdicts(classifier, part) == (on if default else off)
    assert said(both) == said(on) + said(off)


def test_torch_has_the_same_student(engine, flows):
    onnx, torch = Classifier(engine), Classifier(load_engine("torch", shipped_checkpoint("flow-protocols"), 1))
    assert (
        onnx.network.cascade.answer(flows, True).scores.logits
        == torch.network.cascade.answer(flows, True).scores.logits
    ).all()
    assert said(verdicts(onnx, flows[:100])) == said(verdicts(torch, flows[:100]))


def test_scores_are_the_networks_own(engine, flows):
    scored = Classifier(engine, with_scores=True)
    assert scored.has_cascade is False
    whole = Classifier(engine, with_scores=True, cascade=False)
    assert verdicts(scored, flows[:40]) == verdicts(whole, flows[:40])


def test_traces_that_read_embeddings_get_the_networks(tmp_path):
    class Traces:
        """As much of a trace engine as is asked."""

        def __init__(self, checkpoint):
            self.checkpoint = checkpoint
            self.provider = "none"

    from tapline.models.checkpoint import read_trace_checkpoint
    from tests.conftest import make_trace_checkpoint

    engine = load_engine("onnx", make_checkpoint(tmp_path / "1", student=SURE), 1)
    traces = read_trace_checkpoint(make_trace_checkpoint(tmp_path / "2"), needs=())
    reads = FlowCheckpoint("random", "1", engine.checkpoint.files["model.safetensors"].sha256)
    network = msgspec.structs.replace(traces.network, encoder="mm4flow", feature_size=64)
    reading = msgspec.structs.replace(traces, flow_checkpoint=reads, network=network)
    assert Classifier(engine, trace_engines=[Traces(traces)]).has_cascade is True
    assert Classifier(engine, trace_engines=[Traces(reading)]).has_cascade is False
    assert Classifier(engine, trace_engines=[Traces(reading)]).with_traces([]).has_cascade is True
    assert Classifier(engine, trace_engines=[], cascade=False).with_traces([]).has_cascade is False


def test_answered_flows_are_counted(engine, flows):
    metrics, classifier = Metrics(), Classifier(engine)

    async def through_batcher():
        batcher = Batcher([classifier], metrics)
        batcher.start()
        found = await batcher.classify(flows[:100])
        await batcher.stop(5)
        return found

    assert None not in asyncio.run(through_batcher())
    counted = metrics.student_flows._value.get()
    assert counted == classifier.network.cascade.answer(flows[:100], True).flows > 0


def test_a_failing_network_costs_nothing_that_the_student_answers(engine, flows):
    class Failing:
        """An engine that fails on whatever is left to it."""

        def __init__(self):
            self.checkpoint, self.student, self.provider = engine.checkpoint, engine.student, "none"

        def run(self, batch):
            raise RuntimeError("no engine")

    classifier = Classifier(Failing())
    part = flows[::3]
    sure = classifier.network.cascade.answer(part, True).sure.tolist()
    found = classifier.classify_each(part)
    assert [outcome is not None for outcome in found] == sure
    assert any(sure)
    assert not all(sure)


def test_early_verdicts_are_answered_alike(engine, flows):
    cascade = Classifier(engine)
    early = [msgspec.structs.replace(flow, complete=False) for flow in flows]
    found, final = verdicts(cascade, early), verdicts(cascade, flows)
    assert [replace_final(verdict) for verdict in found] == final


def replace_final(verdict):
    return msgspec.structs.replace(verdict, final=True)


def test_random_flows_too(tmp_path):
    engine = load_engine("onnx", make_checkpoint(tmp_path / "1", student=SURE), 1)
    cascade, flows = Classifier(engine), make_flows(200)
    found = verdicts(cascade, flows)
    sure = cascade.network.cascade.answer(flows, True).sure
    off = verdicts(Classifier(engine, cascade=False), flows)
    assert [verdict for verdict, by_student in zip(found, sure.tolist(), strict=True) if by_student]
    assert [label for label, by_student in zip(said(found), sure.tolist(), strict=True) if not by_student] == [
        label for label, by_student in zip(said(off), sure.tolist(), strict=True) if not by_student
    ]
