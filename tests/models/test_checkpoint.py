"""The checkpoint directory: what was written is what is read, and everything else is refused with one sentence."""

import json
import shutil

import msgspec
import pytest

from tapline.models.checkpoint import CheckpointError, read_checkpoint
from tapline.models.checkpoint_writing import write_checkpoint


@pytest.fixture
def copy(checkpoint_dir, tmp_path):
    return shutil.copytree(checkpoint_dir, tmp_path / "copy")


def edit(directory, **changes):
    path = directory / "checkpoint.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_round_trip(checkpoint_dir):
    checkpoint = read_checkpoint(checkpoint_dir, needs=("model.onnx", "model.safetensors"))
    assert (checkpoint.name, checkpoint.labels) == ("random", ["dns", "http", "tls"])
    assert set(checkpoint.files) == {"model.onnx", "model.safetensors"}


def test_missing(tmp_path):
    with pytest.raises(CheckpointError, match=r"no readable checkpoint.json \(No such file or directory\)"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"feature_version": 2}, "feature version 2, this tapline reads 1: export the checkpoint again"),
        ({"format_version": 9}, "format version 9, this tapline reads 1: export the checkpoint again"),
        ({"labels": ["dns"]}, "1 labels for a network of 3 classes"),
        ({"labels": ["dns", "dns", "tls"]}, "a label occurs twice"),
        ({"kind": "other"}, r"Invalid enum value 'other' - at `\$.kind`"),
        ({"surprise": 1}, "unknown field `surprise`"),
        ({"files": {}}, "model.onnx is not part of this checkpoint"),
        ({"files": {"../x": {"size_bytes": 1, "sha256": ""}}}, "model.onnx is not part"),
    ],
)
def test_manifest_faults(copy, changes, message):
    edit(copy, **changes)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(copy)


def test_not_json(copy):
    (copy / "checkpoint.json").write_text("not json")
    with pytest.raises(CheckpointError, match="not a checkpoint manifest"):
        read_checkpoint(copy)


def test_damaged_file(copy):
    path = copy / "model.onnx"
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged: its SHA-256"):
        read_checkpoint(copy)
    path.write_bytes(content[:-1])
    with pytest.raises(CheckpointError, match="bytes, the manifest says"):
        read_checkpoint(copy)
    path.unlink()
    with pytest.raises(CheckpointError, match="No such file"):
        read_checkpoint(copy)


def test_a_failed_write_leaves_the_old_checkpoint(copy):
    checkpoint = read_checkpoint(copy)

    def fail(folder):
        (folder / "model.onnx").write_bytes(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_checkpoint(copy, checkpoint, fail)
    assert read_checkpoint(copy) == checkpoint
    assert [path.name for path in copy.parent.iterdir()] == [copy.name]


@pytest.mark.parametrize("folders", ["1", "new/repository/random/1"])
def test_a_failed_write_leaves_nothing(copy, tmp_path, folders):
    def fail(folder):
        (folder / "model.onnx").write_bytes(b"half")
        raise OSError("disk full")

    root = tmp_path / "root"
    root.mkdir()
    with pytest.raises(OSError, match="disk full"):
        write_checkpoint(root / folders, read_checkpoint(copy), fail)
    assert list(root.iterdir()) == []


@pytest.mark.parametrize(
    "changes", [{"name": "Mine"}, {"name": "../mine"}, {"version": ""}, {"labels": ["a", "b", "c" * 500]}], ids=str
)
def test_what_could_not_be_read_back_is_not_written(copy, tmp_path, changes):
    checkpoint = msgspec.structs.replace(read_checkpoint(copy), **changes)
    with pytest.raises(CheckpointError, match="this would be no readable checkpoint: Expected `str`"):
        write_checkpoint(tmp_path / "new" / "1", checkpoint, lambda folder: None)
    assert not (tmp_path / "new").exists()
