"""Distilling: what a student is taught, from which confidence on it answers, and the checkpoint with one."""

import msgspec
import numpy as np
import pytest
import torch

from tapline.models.card_header import without_header
from tapline.models.checkpoint import CARD, STUDENT, read_any_checkpoint, read_checkpoint
from tapline.models.flow import flow_to_line
from tapline.models.student import StudentNetwork
from tapline.service.engines.loading import load_engine
from tapline.service.inference.classifier import Classifier
from tapline.training.distilling.checkpoint_student import teacher_of
from tapline.training.distilling.distil import Class, DistilSettings, distil
from tapline.training.distilling.lessons import Disturbance, disturbed
from tapline.training.distilling.student_gate import NEVER, Agreed, find_threshold, measured
from tests.conftest import CONTEXT, make_checkpoint, make_flows
from tests.training.command import invoke, tapline_train

SMALL = DistilSettings(StudentNetwork(8, 8, 16, 16), copies=1, steps=40, batch_flows=32, folds=2, agreement=0.9)


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Of torch: small networks wait for several threads more than they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def outcome(confidence, same):
    return Agreed(np.zeros(len(same), np.int64), np.array(same, np.bool_), np.array(confidence))


def test_the_threshold_is_the_lowest_that_agrees_enough():
    found = outcome([0.99, 0.98, 0.97, 0.96, 0.95, 0.0], [True, True, False, True, True, False])
    ones = np.ones(6)
    assert find_threshold(found, ones, 1.0).threshold == 0.98
    assert find_threshold(found, ones, 0.75).threshold == 0.95
    assert find_threshold(found, ones, 0.8) == measured(found, ones, 0.95)
    assert measured(found, ones, 0.97).agreement == pytest.approx(2 / 3, abs=1e-5)
    assert measured(found, ones, 0.97).answered == 0.5


def test_weights_count():
    found = outcome([0.9, 0.8], [True, False])
    assert find_threshold(found, np.array([1.0, 0.01]), 0.9).threshold == 0.8
    assert find_threshold(found, np.array([1.0, 1.0]), 0.9).threshold == 0.9


def test_a_student_that_never_agrees_never_answers():
    found = find_threshold(outcome([0.9, 0.8, 0.0], [False, False, False]), np.ones(3), 0.5)
    assert (found.threshold, found.answered) == (NEVER, 0.0)


def test_flows_of_one_confidence_stand_together():
    found = outcome([0.9, 0.9, 0.8], [True, False, True])
    assert find_threshold(found, np.ones(3), 0.6).threshold == 0.8
    assert find_threshold(found, np.ones(3), 0.7).threshold == NEVER


def test_lessons_are_cut_and_changed_flows():
    flows = make_flows(80)
    changed = disturbed(flows, Disturbance(), np.random.default_rng(3))
    again = disturbed(flows, Disturbance(), np.random.default_rng(3))
    assert changed == again
    assert len(changed) == len(flows)
    assert sum(a != b for a, b in zip(changed, flows, strict=True)) > 60
    assert all(one.proto == flow.proto and one.resp_p == flow.resp_p for one, flow in zip(changed, flows, strict=True))
    assert all(0 < abs(length) <= 1600 for flow in changed for length in flow.payload_lengths)
    nothing = Disturbance(**dict.fromkeys(msgspec.structs.asdict(Disturbance()), 0.0))
    cut = disturbed(flows, nothing, np.random.default_rng(3))
    assert all(
        set(map(abs, one.payload_lengths)) <= set(map(abs, flow.payload_lengths))
        for one, flow in zip(cut, flows, strict=True)
    )


@pytest.fixture(scope="module")
def teacher_dir(tmp_path_factory):
    """A network with random weights, and a context."""
    directory = tmp_path_factory.mktemp("teacher") / "random" / "1"
    make_checkpoint(directory, context=CONTEXT)
    (directory / CARD).write_text(
        '---\nlibrary_name: tapline\nlicense: "mit"\n---\n\n# random 1\n\nText.\n\n## What it is not good for\n\nAll.\n'
    )
    return directory


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    """Labelled flows of six captures."""
    root = tmp_path_factory.mktemp("captures")
    for place, label in enumerate(("dns", "http", "tls")):
        for capture in (1, 2):
            path = root / label / f"{capture}.ndjson"
            path.parent.mkdir(exist_ok=True)
            lines = [flow_to_line(flow) for flow in make_flows(40, seed=10 * place + capture)]
            path.write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
    out = tmp_path_factory.mktemp("features") / "random"
    tapline_train("extract", root, "--label-from-folder", "--out", out)
    return out


def test_a_student_learns_what_its_network_says(teacher_dir):
    checkpoint = read_checkpoint(teacher_dir)
    teacher = teacher_of(teacher_dir, checkpoint)
    flows = make_flows(300)
    taught = Class(flows, np.arange(300, dtype=np.int32) // 10, np.full(300, 1 / 300))
    found = distil(teacher, checkpoint, taught, SMALL)
    assert (found.figures.flows, found.figures.captures) == (300, 30)
    for gate, threshold in (
        (found.figures.gate, found.student.threshold),
        (found.figures.gate_without_ports, found.student.threshold_without_ports),
    ):
        assert gate.threshold == threshold
        assert gate.agreement >= 0.9
    assert found.figures.embedding_error > 0


def test_a_checkpoint_with_a_student(teacher_dir, features, tmp_path):
    notes = tmp_path / "notes.md"
    notes.write_text("What was measured elsewhere.")
    arguments = ["distil", "--checkpoint", teacher_dir, "--features", features, "--out", tmp_path, "--version", "2"]
    arguments += ["--steps", "20", "--copies", "1", "--agreement", "0.6", "--notes", notes]
    dry = tapline_train(*arguments, "--dry-run")
    assert "mm4flow checkpoint random 2" in dry
    assert not (tmp_path / "random").exists()
    assert "student: from a confidence of" in tapline_train(*arguments)
    made = tmp_path / "random" / "2"
    before, after = read_any_checkpoint(teacher_dir), read_any_checkpoint(made)
    assert after.files.keys() - before.files.keys() == {STUDENT}
    assert all(after.files[name] == record for name, record in before.files.items())
    assert after.student.threshold >= after.unknown.threshold
    assert after.metrics["student"]["captures"] == 6
    card = (made / CARD).read_text()
    assert 'license: "mit"' in card
    text = without_header(card)
    assert text.startswith("# random 2\n")
    assert text.index("## Student") < text.index("What was measured elsewhere.") < text.index("## What it is not good")
    classifier = Classifier(load_engine("onnx", made, 1))
    assert classifier.has_cascade is True
    assert None not in classifier.classify(make_flows(20))
    # another time, of the checkpoint that has one
    arguments[arguments.index(teacher_dir)], arguments[arguments.index("2")] = made, "3"
    tapline_train(*arguments)
    twice = tmp_path / "random" / "3"
    assert (twice / STUDENT).read_bytes() == (made / STUDENT).read_bytes()
    assert (twice / CARD).read_text().replace("random 3", "random 2") == card


def test_what_is_no_flow_checkpoint_is_refused(features, tmp_path):
    result = invoke("distil", "--checkpoint", tmp_path, "--features", features, "--out", tmp_path, "--version", "2")
    assert result.exit_code != 0
    assert "not a checkpoint" in str(result.exception)
