"""The checkpoints that ship: sound and small; those of flows the same by both engines, and as their cards say."""

import numpy as np
import pytest

from tapline.models.checkpoint import CARD, read_any_checkpoint, read_checkpoint
from tapline.models.encode import encode
from tapline.models.flow import Flow
from tapline.models.verdict import context_terms, flow_probabilities, flow_verdicts
from tapline.service.engines.loading import load_engine
from tapline.service.inference.repository import ZOO
from tapline.service.sources.capture import CaptureReader, ReadOptions
from tapline.training.data.batches import prefix
from tapline.training.data.label_reading import read_labels
from tapline.training.loop.scores import macro_f1
from tests.paths import DATA

PROTOCOLS = DATA / "protocols"
ALL = sorted(path.parent for path in ZOO.glob("*/*/checkpoint.json"))
SHIPPED = [path for path in ALL if read_any_checkpoint(path).kind == "mm4flow"]
MAX_CHECKPOINT_BYTES = 10_000_000


def test_checkpoints_are_small_and_named_as_they_lie():
    assert "flow-protocols" in {path.parent.name for path in SHIPPED}
    for path in ALL:
        assert sum(file.stat().st_size for file in path.iterdir()) < MAX_CHECKPOINT_BYTES
        checkpoint = read_any_checkpoint(path)
        assert (checkpoint.name, checkpoint.version) == (path.parent.name, path.name)


@pytest.fixture(scope="module", params=SHIPPED, ids=lambda path: f"{path.parent.name}-{path.name}")
def shipped(request):
    return request.param


@pytest.fixture(scope="module")
def labelled() -> list[tuple[Flow, str]]:
    """Flows of the bundled captures with their labels. The shipped model was trained on them."""
    table = read_labels(PROTOCOLS / "flows.csv", confidence=("DPI",))
    found = []
    for path in sorted((PROTOCOLS / "pcap").iterdir()):
        for flow in CaptureReader(path, ReadOptions(heads="none")):
            label = table.label_of(path.name, flow)
            if label and flow.payload_lengths:
                found.append((flow, label))
    return found


def test_both_engines_agree_on_real_flows(shipped, labelled):
    checkpoint = read_checkpoint(shipped)
    tokens = encode([flow for flow, _ in labelled], checkpoint.features)
    onnx, reference = (load_engine(name, shipped).run(tokens) for name in ("onnx", "torch"))
    np.testing.assert_allclose(onnx.logits, reference.logits, atol=1e-4)
    np.testing.assert_allclose(onnx.embeddings, reference.embeddings, atol=1e-4)


def test_it_knows_the_bundled_captures_that_it_was_trained_on(shipped, labelled):
    engine = load_engine("onnx", shipped)
    checkpoint = engine.checkpoint
    known = [(flow, label) for flow, label in labelled if label in checkpoint.labels]
    flows = [flow for flow, _ in known]
    found = flow_verdicts(
        engine.run(encode(flows, checkpoint.features)).logits, flows, checkpoint, context_terms(checkpoint)
    )
    truth, predicted = (
        np.array([checkpoint.labels.index(name) for name in names])
        for names in ([label for _, label in known], [verdict.label for verdict in found])
    )
    assert macro_f1(truth, predicted, len(checkpoint.labels), 3) > 0.9
    assert np.mean([verdict.unknown for verdict in found]) < 0.2


def test_a_single_packet_is_enough_for_a_verdict(shipped, labelled):
    engine = load_engine("onnx", shipped)
    first = [prefix(flow, 1) for flow, _ in labelled]
    terms = context_terms(engine.checkpoint)
    shares = flow_probabilities(
        engine.run(encode(first, engine.checkpoint.features)).logits, first, engine.checkpoint, terms
    )
    assert engine.checkpoint.min_packets == 1
    assert np.isfinite(shares).all()
    named = [
        (row, label) for row, (_, label) in zip(shares, labelled, strict=True) if label in engine.checkpoint.labels
    ]
    right = [engine.checkpoint.labels[int(row.argmax())] == label for row, label in named]
    assert np.mean(right) > 0.7


def test_the_card_states_what_was_measured(shipped):
    checkpoint = read_checkpoint(shipped)
    figures = checkpoint.metrics["cross_validation"]["figures"]  # of the release that measured them
    card = (shipped / CARD).read_text()
    for name in ("macro_f1", "macro_f1_trees", "unknown_auroc", "calibration_error"):
        assert f"{figures[name]:.3f}" in card
    assert all(f"| {label} |" in card for label in checkpoint.labels)
    assert figures["macro_f1"] > figures["macro_f1_trees"]
    assert checkpoint.calibration.temperature == pytest.approx(figures["temperature"], abs=1e-3)
    assert checkpoint.unknown.threshold == pytest.approx(figures["threshold"], abs=1e-3)
