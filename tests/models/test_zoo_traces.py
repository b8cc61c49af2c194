"""The trace checkpoint that ships: the same by both engines, knows what it learned from, and as its card says."""

import msgspec
import numpy as np
import pytest

from tapline.models.checkpoint import CARD, read_trace_checkpoint
from tapline.models.trace import make_traces
from tapline.models.trace_context import STACK, trace_context
from tapline.models.verdict import suspicions, verdicts
from tapline.service.engines.loading import load_trace_engine
from tapline.service.engines.trace_engine import TraceInput
from tapline.service.inference.repository import ZOO
from tapline.service.sources.capture import CaptureReader, ReadOptions
from tapline.training.evaluation.evaluation_record import TraceEvaluation
from tapline.training.evaluation.suspicion import SuspicionFigures
from tests.paths import DATA

SHIPPED = ZOO / "iot-devices" / "3"
INTRUSION = ZOO / "intrusion" / "3"
ANDROID = DATA / "captures" / "android.pcap"
CAPTURES = sorted((DATA / "traces").glob("*/*.pcap"))


@pytest.fixture(scope="module")
def traces():
    """The trace with most flows of every bundled capture, and its device."""
    settings = read_trace_checkpoint(SHIPPED).trace
    found = []
    for path in CAPTURES:
        made = make_traces(CaptureReader(path, ReadOptions(heads="header")), settings)
        found.append((max(made, key=lambda trace: len(trace.flows)), path.parent.name))
    return found


def scores_of(engine, traces):
    given = []
    for trace in traces:
        features = engine.embed(trace.flows)
        starts = np.array([flow.start_us for flow in trace.flows], np.int64)
        durations = np.array([flow.duration_us for flow in trace.flows], np.int64)
        context = trace_context(trace.flows, engine.checkpoint.network.context)
        given.append(TraceInput(features, starts, durations, context))
    return engine.score(given)


def test_both_engines_agree_on_real_traces(traces):
    known = [trace for trace, _ in traces]
    onnx, reference = (scores_of(load_trace_engine(name, SHIPPED), known) for name in ("onnx", "torch"))
    np.testing.assert_allclose(onnx.logits, reference.logits, atol=1e-3)
    for one, other in zip(onnx.importance, reference.importance, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)
        assert one.sum() == pytest.approx(1, abs=1e-4)


def test_it_knows_the_bundled_captures_that_it_was_trained_on(traces):
    engine = load_trace_engine("onnx", SHIPPED)
    said = verdicts(scores_of(engine, [trace for trace, _ in traces]).logits, engine.checkpoint)
    assert [verdict.label for verdict in said] == [label for _, label in traces]
    assert not any(verdict.unknown for verdict in said)


def test_hosts_that_are_none_of_its_devices_are_unknown():
    engine = load_trace_engine("onnx", SHIPPED)
    phones = make_traces(CaptureReader(ANDROID, ReadOptions(heads="header")), engine.checkpoint.trace)
    said = verdicts(scores_of(engine, phones).logits, engine.checkpoint, with_scores=True)
    assert len(said) == 4
    assert all(verdict.unknown for verdict in said)
    assert all(list(verdict.scores) == engine.checkpoint.labels for verdict in said)


def test_the_card_states_what_was_measured():
    checkpoint = read_trace_checkpoint(SHIPPED)
    figures = msgspec.convert(checkpoint.metrics["cross_validation"], TraceEvaluation)
    card = (SHIPPED / CARD).read_text()
    for row in figures.variants:
        assert f"{row.all_classes.macro_f1:.3f}" in card
        assert f"{row.merged.macro_f1:.3f}" in card
    assert all(f"| {label} |" in card for label in checkpoint.labels)
    assert figures.faithfulness.difference_interval.low > 0
    assert f"{figures.faithfulness.difference:.3f}" in card
    assert checkpoint.calibration.temperature == pytest.approx(figures.temperature, abs=1e-3)
    assert checkpoint.unknown.threshold == pytest.approx(figures.threshold, abs=1e-3)
    assert not checkpoint.features.payload


def test_benign_hosts_are_not_suspicious_and_both_models_take_little_room(traces):
    engine = load_trace_engine("onnx", INTRUSION)
    checkpoint = engine.checkpoint
    assert not STACK.intersection(checkpoint.network.context)
    phones = make_traces(CaptureReader(ANDROID, ReadOptions(heads="header")), checkpoint.trace)
    devices = [trace for trace, _ in traces]
    found = suspicions(scores_of(engine, [*phones, *devices]).logits, checkpoint)
    assert found.max() < checkpoint.suspicion.threshold
    sizes = [path.stat().st_size for directory in (SHIPPED, INTRUSION) for path in directory.iterdir()]
    assert sum(sizes) < 10e6


def test_the_card_states_what_suspicion_was_measured():
    checkpoint = read_trace_checkpoint(INTRUSION)
    figures = msgspec.convert(checkpoint.metrics["suspicion"], SuspicionFigures)
    card = (INTRUSION / CARD).read_text()
    assert checkpoint.suspicion.threshold == figures.threshold
    for row in figures.sources:
        assert f"| {row.source} | {row.traces} | {1000 * row.alarms:.1f} |" in card
    for row in (*figures.families, *figures.never_learned):
        assert f"| {row.label} | {row.traces} | {row.caught:.0%} |" in card
