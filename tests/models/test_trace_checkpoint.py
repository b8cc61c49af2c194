"""The manifest of a trace checkpoint: what does not go together is refused with one sentence."""

import json
import shutil

import msgspec
import numpy as np
import pytest

from tapline.models.checkpoint import (
    WEIGHTS,
    CheckpointError,
    TracegramCheckpoint,
    TracegramNetwork,
    Unknown,
    read_any_checkpoint,
    read_checkpoint,
    read_trace_checkpoint,
)
from tapline.models.trace_context import SIZES as FIELDS
from tapline.models.trace_features import trace_times
from tests.conftest import make_trace_checkpoint


@pytest.fixture(scope="module")
def context_dir(tmp_path_factory):
    """A checkpoint without an encoder, with a background class."""
    directory = tmp_path_factory.mktemp("repository") / "context" / "1"
    return make_trace_checkpoint(directory, "context", unknown=Unknown(0.4, background=True))


@pytest.fixture
def copy(trace_checkpoint_dir, tmp_path):
    return shutil.copytree(trace_checkpoint_dir, tmp_path / "copy")


def edit(directory, **changes):
    path = directory / "checkpoint.json"
    manifest = json.loads(path.read_text())
    for name, value in changes.items():
        manifest[name] = {**manifest[name], **value} if name in ("network", "features", "trace", "early") else value
    path.write_text(json.dumps(manifest))


def test_round_trip(trace_checkpoint_dir, checkpoint_dir):
    checkpoint = read_trace_checkpoint(trace_checkpoint_dir)
    assert set(checkpoint.files) == {"encoder.onnx", "trace.onnx", "model.safetensors"}
    assert checkpoint.labels == ["dns", "http", "tls"]
    assert read_any_checkpoint(trace_checkpoint_dir) == checkpoint
    assert isinstance(checkpoint, TracegramCheckpoint)
    assert read_any_checkpoint(checkpoint_dir) == read_checkpoint(checkpoint_dir)


SIZES = {"d_model": 16, "n_layer": 1, "n_head": 2, "dim_ff": 16, "n_class": 1}
OWN = {"network": {**SIZES, "d_model": 8}}
MM4FLOW = {"encoder": "mm4flow"}


def own(**sizes):
    """A manifest's changes to a whole one with an MM4flow of its own, of these sizes."""
    features = {"payload_lengths": 64, "content_bytes": 5}
    return {"network": MM4FLOW, "mm4flow": {"network": {**SIZES, **sizes}, "features": features}}


FLOW_CHECKPOINT = {"name": "flows", "version": "1", "weights_sha256": "0" * 64}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"feature_version": 7}, "feature version 7, this tapline reads 1: export the checkpoint again"),
        ({"labels": ["dns"]}, "1 labels for a network of 3 classes"),
        ({"labels": ["dns", "dns", "tls"]}, "a label occurs twice"),
        ({"labels": ["dns", "unknown", "tls"]}, "a label `unknown`"),
        ({"flow_checkpoint": FLOW_CHECKPOINT}, "its encoder is tracegram, but it names a flow checkpoint"),
        ({"network": MM4FLOW}, "its encoder is mm4flow, but it names neither a flow checkpoint nor an own mm4flow"),
        ({"mm4flow": OWN}, "its encoder is tracegram, but it names an own mm4flow"),
        ({"flow_checkpoint": FLOW_CHECKPOINT, "mm4flow": OWN, "network": MM4FLOW}, "a flow checkpoint and an own mm4"),
        ({"mm4flow": OWN, "network": MM4FLOW}, "feature_size 32 is not twice the d_model 8 of its mm4flow"),
        (own(ps_max_tokens=60), "features of 66 tokens for an encoder of at most 60"),
        (own(bytes_max_tokens=10), "features of 13 tokens for an encoder of at most 10"),
        (own(n_head=3), "d_model 16 is not a multiple of 3 heads"),
        ({**own(), "mm4flow": {**own()["mm4flow"], "feature_version": 2}}, "mm4flow feature version 2, this tapline"),
        ({"network": {"feature_size": 8}}, "feature_size 8 is not the encoder's emb_dim 32"),
        ({"network": {"max_seq_len": 256}}, "features of 512 tokens for an encoder of at most 256"),
        ({"features": {"max_tokens": 1}}, "max_tokens"),
        ({"trace": {"subject": "nobody"}}, "nobody"),
        ({"trace": {"min_flows": 300}}, "min_flows 300 is more than max_flows 256"),
        ({"early": {"confidence": 2}}, "confidence"),
        ({"files": {}}, "trace.onnx is not part of this checkpoint"),
    ],
)
def test_manifest_faults(copy, changes, message):
    edit(copy, **changes)
    with pytest.raises(CheckpointError, match=message):
        read_trace_checkpoint(copy)


def test_a_checkpoint_without_an_encoder_is_read_and_has_no_file_of_one(context_dir):
    checkpoint = read_any_checkpoint(context_dir)
    assert set(checkpoint.files) == {"trace.onnx", "model.safetensors"}
    assert (checkpoint.network.encoder, checkpoint.network.context) == ("context", tuple(FIELDS))
    assert (checkpoint.has_encoder, checkpoint.network.embedding_size) == (False, 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": {"context": ["ttl_orig", "serial\n_number"]}}, r"no such field of the context: serial\W+_number"),
        ({"network": {"context": ["ttl_orig", "ttl_resp", "ttl_orig"]}}, "a field of the context is named twice"),
        ({"network": {"context": []}}, "an encoder that reads the context alone, and no field of it"),
        ({"suspicion": {"threshold": 0.5}, "unknown": {"threshold": 0.4}, "network": {"n_class": 3}}, "no background"),
        ({"suspicion": {"threshold": 0}}, "threshold"),
        ({"mm4flow": OWN}, "its encoder is context, but it names an own mm4flow"),
        ({"flow_checkpoint": FLOW_CHECKPOINT}, "its encoder is context, but it names a flow checkpoint"),
        ({"network": {"encoder": "nothing"}}, "nothing"),
        ({"network": {"feature_size": 4096}}, "weights or more in files of"),
    ],
)
def test_faults_of_a_manifest_without_an_encoder(context_dir, tmp_path, changes, message):
    copy = shutil.copytree(context_dir, tmp_path / "copy")
    edit(copy, suspicion={"threshold": 0.5})
    assert read_trace_checkpoint(copy).suspicion.threshold == 0.5
    edit(copy, **changes)
    with pytest.raises(CheckpointError, match=message):
        read_trace_checkpoint(copy)


def test_the_other_kind_is_named(trace_checkpoint_dir, checkpoint_dir):
    with pytest.raises(CheckpointError, match=r"a trace checkpoint \(tracegram\), expected a flow checkpoint"):
        read_checkpoint(trace_checkpoint_dir)
    with pytest.raises(CheckpointError, match=r"a flow checkpoint \(mm4flow\), expected a trace checkpoint"):
        read_trace_checkpoint(checkpoint_dir)


def test_every_file_is_verified_where_both_kinds_are_read(copy):
    (copy / WEIGHTS).write_bytes(b"x")
    read_trace_checkpoint(copy)  # serving it by ONNX does not read the weights
    with pytest.raises(CheckpointError, match=r"model\.safetensors: 1 bytes, the manifest says"):
        read_any_checkpoint(copy)


@pytest.mark.parametrize(
    "fields",
    [
        {"n_local_attn_heads": 5},
        {"max_seq_len": 500},
        {"emb_dim": 62, "feature_size": 62},
        {"dim": 95},
        {"depth": 0},
    ],
)
def test_networks_that_cannot_be(fields):
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"n_class": 2, **fields}, TracegramNetwork)


def test_times_of_a_trace():
    starts = np.array([5_000_000, 5_000_000, 6_000_000, 9_000_000])
    times = trace_times(starts, np.array([0, 1_000_000, 0, 3_000_000]))
    logs = np.log([1, 2, 4])
    expected = [[logs[0], logs[0]], [logs[0], logs[1]], [logs[1], logs[0]], [logs[2], logs[2]]]
    np.testing.assert_allclose(times, np.array(expected, np.float32))
    assert times.dtype == np.float32
