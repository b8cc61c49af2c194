"""The checkpoint directory: what was written is what is read, and everything else is refused with one sentence."""

import json
import shutil

import msgspec
import pytest

from tapline.models.checkpoint import CheckpointError, Rule, read_checkpoint, verify_context
from tapline.models.checkpoint_writing import write_checkpoint
from tapline.models.context import FlowContext, PortPrior
from tests.conftest import CONTEXT, make_checkpoint


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


def test_a_context_is_read_as_it_was_written(context_dir):
    checkpoint = read_checkpoint(context_dir)
    assert checkpoint.context == CONTEXT
    assert checkpoint.has_ports
    assert (checkpoint.rule(), checkpoint.rule(ports=False)) == (Rule(0.2, 0.4), Rule(3.0, 0.5))


def test_a_checkpoint_of_before_contexts_has_none(copy):
    path = copy / "checkpoint.json"
    manifest = json.loads(path.read_text())
    assert manifest.pop("context") is None
    path.write_text(json.dumps(manifest))
    checkpoint = read_checkpoint(copy)
    assert (checkpoint.context, checkpoint.has_ports) == (None, False)
    assert checkpoint.rule(ports=True) == checkpoint.rule(ports=False) == Rule(2.0, 0.4)


def test_without_a_prior_of_ports_there_is_one_rule(tmp_path):
    directory = make_checkpoint(tmp_path / "random" / "1", context=FlowContext({"tcp": [0]}))
    checkpoint = read_checkpoint(directory)
    assert not checkpoint.has_ports
    assert checkpoint.rule(ports=True) == checkpoint.rule(ports=False) == Rule(2.0, 0.4)


def ports(holders, **fields):
    return {"transports": {}, "ports": {"holders": holders, **fields}}


MANY = {str(port): {"0": 1, "1": 1} for port in range(32_769)}
WIDE = FlowContext({}, PortPrior({proto: {port: {} for port in range(60_000)} for proto in ("tcp", "udp")}))


@pytest.mark.parametrize(
    ("context", "message"),
    [
        ({"transports": {"tcp": [3]}}, "its context names class 3, expected 0 to 2: export it again"),
        (ports({"tcp": {"443": {"3": 1}}}), "its context names class 3, expected 0 to 2: export it again"),
        ({"transports": {"udp": [1, 0, 1]}}, "its context names a class twice on transport udp, expected once"),
        (ports({"tcp": MANY}), "its context holds 65538 classes on ports, expected 65536 at most: export it again"),
        ({"transports": {"tcp": [-1]}}, r"Expected `int` >= 0 - at `\$.context.transports"),
        ({"transports": {"sctp": [0]}}, "Expected `str` matching regex"),
        (ports({"tcp": {"65536": {"0": 1}}}), "Expected `int` <= 65535 - at `key"),
        (ports({"tcp": {"443": {"0": 0}}}), "Expected `int` >= 1"),
        (ports({}, weight=4.5), r"Expected `float` <= 4.0 - at `\$.context.ports.weight`"),
        (ports({}, temperature=0), r"Expected `float` >= 0.01"),
        (ports({}, threshold="NaN"), "Expected `float`, got `str`"),
        ({"transports": {}, "port": None}, "unknown field `port`"),
        ({}, "missing required field `transports`"),
    ],
)
def test_context_faults(copy, context, message):
    edit(copy, context=context)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_checkpoint(copy)
    assert len(str(caught.value)) < 300


def test_a_context_that_takes_much_memory_is_refused(checkpoint_dir):
    checkpoint = msgspec.structs.replace(read_checkpoint(checkpoint_dir), context=WIDE)
    verify_context(checkpoint_dir, checkpoint)
    network = msgspec.structs.replace(checkpoint.network, n_class=200)
    with pytest.raises(CheckpointError, match="takes 24000000 numbers for its transports and ports, expected 16777216"):
        verify_context(checkpoint_dir, msgspec.structs.replace(checkpoint, network=network))


def test_a_context_that_could_not_be_read_is_not_written(copy, tmp_path):
    bad = msgspec.structs.replace(read_checkpoint(copy), context=FlowContext({"tcp": [7]}))
    with pytest.raises(CheckpointError, match="names class 7, expected 0 to 2"):
        write_checkpoint(tmp_path / "bad" / "1", bad, lambda folder: None)
    assert not (tmp_path / "bad").exists()


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
        ({"labels": ["dns", "unknown", "tls"]}, "a label `unknown`"),
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
