"""Published checkpoints import into the directory that every engine serves, or are refused with one sentence."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tapline.models.checkpoint import CheckpointError, read_checkpoint
from tapline.models.encode import encode
from tapline.models.flow import Flow
from tapline.service.engines.loading import load_engine
from tapline.training.export.mm4flow_import import import_mm4flow
from tapline.training.export.published import ImportRefusedError, read_labels_file
from tests import paths

DATA = paths.DATA / "mm4flow"
CONFIG = {"d_model": 64, "n_layer": 2, "n_head": 4, "dim_ff": 128, "dropout": 0.1}
LABELS = list("abcde")


@pytest.fixture
def published(tmp_path):
    """A published-style directory: weights as `.bin`, configuration, info."""
    torch.save(load_file(DATA / "mm4flow_weights.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "hyperparameters.json").write_text(json.dumps(CONFIG))
    (tmp_path / "info.json").write_text(json.dumps({"label2idx": {"b": 1, "a": 0, "e": 4, "d": 3, "c": 2}}))
    return tmp_path


def run(folder, weights="pytorch_model.bin", labels=LABELS):
    return import_mm4flow(folder / weights, folder / "hyperparameters.json", labels, folder / "out", "published", "1")


@pytest.mark.parametrize("kind", ["bin", "safetensors"])
def test_imported_weights_give_the_published_logits(published, kind):
    weights = "pytorch_model.bin"
    if kind == "safetensors":
        weights = "model.safetensors"
        save_file(torch.load(published / "pytorch_model.bin", weights_only=True), published / weights)
    run(published, weights, read_labels_file(published / "info.json"))
    assert read_checkpoint(published / "out").labels == LABELS
    records = json.loads((DATA / "mm4flow_flows.json").read_text())["flows"]
    flows = [
        Flow("x", 0, 0, "::1", 1, "::2", 2, "tcp", 0, 0, f["ps"], bytes.fromhex(f["fwd"]), bytes.fromhex(f["bwd"]))
        for f in records
    ]
    expected = load_file(DATA / "mm4flow_expected.safetensors")["logits"].numpy()
    for engine in ("onnx", "torch"):
        logits = load_engine(engine, published / "out").run(encode(flows)).logits
        np.testing.assert_allclose(logits, expected, atol=1e-4)
    assert np.ptp(expected) > 0.01


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("touched-by-unpickling"),))


def test_a_pickle_that_runs_code_is_refused(published, monkeypatch):
    monkeypatch.chdir(published)
    torch.save({"classifier.0.weight": Evil()}, published / "pytorch_model.bin")
    with pytest.raises(ImportRefusedError, match="more than tensors"):
        run(published)
    (published / "pytorch_model.bin").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ImportRefusedError, match="neither safetensors"):
        run(published)
    assert not (published / "touched-by-unpickling").exists()
    assert not (published / "out").exists()


def changed(published, change):
    weights = torch.load(published / "pytorch_model.bin", weights_only=True)
    change(weights)
    torch.save(weights, published / "pytorch_model.bin")


NAME = "bytes_encoder.bert.encoder.layer.0.output.dense.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop(NAME), "1 weights missing, the first bytes_encoder"),
        (lambda weights: weights.update({NAME: torch.zeros(64, 32)}), r"has shape \[64, 32\], expected \[64, 128\]"),
        (lambda weights: weights.update({NAME: torch.full((64, 128), torch.nan)}), "not finite"),
        (lambda weights: weights.update(other=torch.zeros(1)), "1 weights too many .* other"),
    ],
)
def test_weights_that_do_not_fit_are_named(published, change, message):
    changed(published, change)
    with pytest.raises(ImportRefusedError, match=message):
        run(published)
    assert not (published / "out").exists()


def test_labels_must_fit_the_classes(published):
    with pytest.raises(ImportRefusedError, match="5 classes, but 2 labels"):
        run(published, labels=["a", "b"])
    with pytest.raises(ImportRefusedError, match="distinct"):
        run(published, labels=["a", "a", "b", "c", "d"])
    (published / "info.json").write_text(json.dumps({"label2idx": {"a": 0, "b": 2}}))
    with pytest.raises(ImportRefusedError, match="from 0 to 1"):
        read_labels_file(published / "info.json")
    (published / "info.json").write_text("{}")
    with pytest.raises(ImportRefusedError, match="label2idx"):
        read_labels_file(published / "info.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "hyperparameters"), ('{"d_model": 64}', "n_layer"), (json.dumps({**CONFIG, "n_head": 3}), "multiple")],
)
def test_a_configuration_that_cannot_be(published, text, message):
    (published / "hyperparameters.json").write_text(text)
    with pytest.raises(ImportRefusedError, match=message):
        run(published)


def test_a_folder_that_holds_no_checkpoint_is_left_alone(published):
    (published / "out").mkdir()
    (published / "out" / "letter.txt").write_text("dear")
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        run(published)
    assert (published / "out" / "letter.txt").read_text() == "dear"


def test_missing_files_are_named(published):
    with pytest.raises(ImportRefusedError, match=r"absent\.bin: unreadable"):
        run(published, "absent.bin")
