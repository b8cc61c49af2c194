"""The student: what it reads, what it says to the bit, and its file."""

import json

import msgspec
import numpy as np
import pytest
import torch
from safetensors.numpy import load, save

from tapline.models.checkpoint import (
    MANIFEST,
    STUDENT,
    CheckpointError,
    FileRecord,
    Unknown,
    file_sha256,
    read_checkpoint,
)
from tapline.models.encode import Mm4flowFeatures
from tapline.models.student import (
    ABSENT,
    MOST_WIDE,
    Student,
    StudentModel,
    StudentNetwork,
    StudentWeights,
    symbols,
)
from tapline.models.student_file import read_student, tensor_shapes
from tests.conftest import make_checkpoint, make_flows, random_student

NETWORK = StudentNetwork(content_bytes=2, payload_lengths=3, table_width=4, hidden_width=2)
FEATURES = Mm4flowFeatures(payload_lengths=8, content_bytes=16)


def flow_of(lengths, orig=b"", resp=b""):
    return msgspec.structs.replace(make_flows(1)[0], payload_lengths=lengths, orig_bytes=orig, resp_bytes=resp)


def test_what_is_read_of_a_flow():
    flows = [flow_of([1, -47, 48], b"\x00\xff\x07", b"\x05"), flow_of([96, -1500, 65_000, 9]), flow_of([])]
    assert symbols(flows, NETWORK, FEATURES).tolist() == [
        [0, 255, 5, ABSENT, 1, 128 + 47, 48],
        [ABSENT, ABSENT, ABSENT, ABSENT, 64, 128 + 127, 127],
        [ABSENT] * 7,
    ]


def test_addresses_are_not_read_where_the_checkpoint_reads_none():
    flow = msgspec.structs.replace(flow_of([4], bytes([10, 0, 0, 1])), orig_h="10.0.0.1", resp_h="10.0.0.2")
    network = StudentNetwork(content_bytes=4, payload_lengths=1)
    masked = msgspec.structs.replace(FEATURES, mask_addresses=True)
    assert symbols([flow], network, FEATURES)[0, :4].tolist() == [10, 0, 0, 1]
    assert symbols([flow], network, masked)[0, :4].tolist() == [0, 0, 0, 0]


def test_it_adds_rows_and_two_layers():
    table = np.zeros((7, 257, 4), np.int8)
    table[0, 65] = [100, 0, 0, 0]  # the first byte is an A
    table[4, 10] = [28, 64, -1, 0]  # the first length is +10
    weights = StudentWeights(
        table=table,
        table_bias=np.array([0, 0, 0, 7], np.int32),
        hidden=np.array([[64, 0, 0, 0], [0, 1, 64, -127]], np.int8),
        hidden_bias=np.array([0, 1024], np.int32),
        logits=np.array([[2, 0], [0, 127]], np.int8),
        logits_bias=np.array([0, 1], np.int32),
        embedding=np.array([[1, 1]], np.int8),
        embedding_bias=np.array([0], np.int32),
    )
    said = StudentModel(NETWORK, FEATURES, weights).scores([flow_of([10], b"A"), flow_of([11])])
    # 128 and 64 with a 7 from the bias; then 128 and (64 - 7 * 127 + 1024) // 64 = 3; without: 0 and 135 // 64 = 2
    assert said.logits.tolist() == [[256 / 1024, (3 * 127 + 1) / 1024], [0.0, (2 * 127 + 1) / 1024]]
    assert said.embeddings.tolist() == [[131 / 1024], [2 / 1024]]


@pytest.mark.parametrize("network", [NETWORK, StudentNetwork(8, 8, MOST_WIDE, MOST_WIDE)])
def test_no_flow_changes_what_is_said_of_another(network):
    weights = random_student(network, 3, 6, 2.0).weights()
    model = StudentModel(network, FEATURES, weights)
    flows = make_flows(600)
    together = model.scores(flows)
    alone = [model.scores([flow]) for flow in flows[::7]]
    assert (np.concatenate([one.logits for one in alone]) == together.logits[::7]).all()
    assert (np.concatenate([one.embeddings for one in alone]) == together.embeddings[::7]).all()
    assert together.logits.std() > 0.1


def test_what_was_learned_is_what_is_served():
    network = StudentNetwork(8, 8, 64, 32)
    student = random_student(network, 3, 6)
    flows = make_flows(40)
    served = StudentModel(network, FEATURES, student.weights()).scores(flows)
    with torch.inference_mode():
        logits, embeddings = student(torch.from_numpy(symbols(flows, network, FEATURES)))
    for found, wanted in ((served.logits, logits.numpy()), (served.embeddings, embeddings.numpy())):
        difference = np.abs(found - wanted)
        assert np.median(difference) < 1e-3
        assert difference.max() < 4 / 32  # where a bias that is rounded moved a hidden number by one
        assert wanted.std() > 1


def test_no_flow_is_no_fault():
    model = StudentModel(NETWORK, FEATURES, random_student(NETWORK, 3, 6).weights())
    assert [part.shape for part in model.scores([])] == [(0, 3), (0, 6)]


@pytest.fixture
def student_dir(tmp_path):
    return make_checkpoint(tmp_path / "1", student=Student(StudentNetwork(8, 8, 16, 16), 0.9, 0.9))


def rewrite(directory, content=None, **changes):
    """Another student in the file, with a manifest that says it is the right one."""
    checkpoint = read_checkpoint(directory, needs=())
    if content is not None:
        (directory / STUDENT).write_bytes(content)
    record = FileRecord((directory / STUDENT).stat().st_size, file_sha256(directory / STUDENT))
    changed = msgspec.structs.replace(checkpoint, files=checkpoint.files | {STUDENT: record}, **changes)
    (directory / MANIFEST).write_bytes(msgspec.json.encode(changed))


def test_a_file_is_read_as_it_was_written(student_dir):
    checkpoint = read_checkpoint(student_dir, needs=())
    assert read_student(student_dir, checkpoint) is not None
    assert {name: list(shape) for name, (_, shape) in tensor_shapes(checkpoint).items()} == {
        name: list(tensor.shape) for name, tensor in load((student_dir / STUDENT).read_bytes()).items()
    }


def test_a_checkpoint_without_a_student_has_none(checkpoint_dir):
    assert read_student(checkpoint_dir, read_checkpoint(checkpoint_dir, needs=())) is None


def _header(content, change):
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    change(header)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content[8 + size :]


def _beyond(header):
    header["table"]["data_offsets"] = [header["table"]["data_offsets"][0] + 10**9] * 2


def _other_type(header):
    header["hidden"]["dtype"] = "F32"


def _without(header):
    del header["logits"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-1],
        lambda content: b"",
        lambda content: b"\xff" * 64,
        lambda content: _header(content, _beyond),
        lambda content: _header(content, _other_type),
        lambda content: _header(content, _without),
        lambda content: save({**load(content), "more": np.zeros(1, np.int8)}),
        lambda content: save({**load(content), "hidden": np.full_like(load(content)["hidden"], -128)}),
        lambda content: save({**load(content), "logits_bias": load(content)["logits_bias"] + (1 << 24)}),
    ],
    ids=["cut", "empty", "noise", "beyond the end", "other type", "one missing", "one more", "-128", "bias"],
)
def test_another_file_is_refused_with_a_sentence(student_dir, damage):
    rewrite(student_dir, damage((student_dir / STUDENT).read_bytes()))
    with pytest.raises(
        CheckpointError, match=r"student\.safetensors: not this checkpoint's student: .*: distil it again$"
    ):
        read_student(student_dir, read_checkpoint(student_dir, needs=()))


def test_a_changed_file_is_not_the_recorded_one(student_dir):
    content = bytearray((student_dir / STUDENT).read_bytes())
    content[-1] ^= 1
    (student_dir / STUDENT).write_bytes(content)
    with pytest.raises(CheckpointError, match="SHA-256 is not the one in the manifest"):
        read_student(student_dir, read_checkpoint(student_dir, needs=()))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"features": Mm4flowFeatures(payload_lengths=4, content_bytes=8)}, "reads more of a flow than its network"),
        ({"unknown": Unknown(0.99)}, "answers what is unknown"),
        ({"student": Student(StudentNetwork(65, 8), 0.9, 0.9)}, "content_bytes"),
        ({"student": Student(StudentNetwork(8, 8, MOST_WIDE + 1), 0.9, 0.9)}, "table_width"),
        ({"student": Student(StudentNetwork(8, 8), 1.5, 0.9)}, "threshold"),
    ],
)
def test_a_manifest_that_fits_no_student_is_refused(student_dir, changes, reason):
    rewrite(student_dir, **changes)
    with pytest.raises(CheckpointError, match=reason):
        read_checkpoint(student_dir, needs=())


def test_a_manifest_names_the_file(student_dir):
    checkpoint = read_checkpoint(student_dir, needs=())
    files = {name: record for name, record in checkpoint.files.items() if name != STUDENT}
    (student_dir / MANIFEST).write_bytes(msgspec.json.encode(msgspec.structs.replace(checkpoint, files=files)))
    with pytest.raises(CheckpointError, match=r"student\.safetensors is not part of this checkpoint"):
        read_checkpoint(student_dir, needs=())
