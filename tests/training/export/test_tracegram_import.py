"""Published Tracegram checkpoints import into the directory that every engine serves, or are refused in a sentence."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from tapline.models.checkpoint import TRACE_ONNX, WEIGHTS, read_trace_checkpoint
from tapline.models.packet_tokens import PacketTokens
from tapline.models.trace import TraceSettings
from tapline.service.engines.loading import load_trace_engine
from tapline.service.engines.trace_engine import TraceInput
from tapline.training.commands.tapline_train import app
from tapline.training.export.published import ImportRefusedError
from tapline.training.export.tracegram_import import import_tracegram
from tests import paths

pytestmark = pytest.mark.whole

DATA = paths.DATA / "tracegram"
LABELS = list("abcde")
REFERENCE = json.loads((DATA / "tracegram_flows.json").read_text())


def part(name):
    """Weights of one published file: names without the part's own."""
    weights = load_file(DATA / "tracegram_weights.safetensors")
    return {key.removeprefix(f"{name}."): value for key, value in weights.items() if key.startswith(f"{name}.")}


@pytest.fixture
def published(tmp_path):
    for name in ("encoder", "trace"):
        torch.save(part(name), tmp_path / f"{name}.pt")
    (tmp_path / "config.json").write_text(json.dumps(REFERENCE["encoder_config"]))
    return tmp_path


def run(folder, labels=LABELS, encoder="encoder.pt", trace="trace.pt"):
    return import_tracegram(
        folder / encoder, folder / trace, folder / "config.json", labels, folder / "out", "published", "1",
        TraceSettings(window_seconds=60), payload=True,
    )  # fmt: skip


def check_scores(directory):
    expected = load_file(DATA / "tracegram_expected.safetensors")
    rows = REFERENCE["flows"]
    tokens = PacketTokens(np.concatenate(rows).astype(np.int32), np.cumsum([0, *map(len, rows)]))
    for name in ("onnx", "torch"):
        engine = load_trace_engine(name, directory)
        features = engine.embed_packets(tokens)
        np.testing.assert_allclose(features, expected["flow_features"], atol=1e-4)
        zeros = np.zeros(len(rows), np.int64)
        scores = engine.score([TraceInput(features, zeros, zeros)])
        np.testing.assert_allclose(scores.logits, expected["trace_logits"], atol=1e-4)
        np.testing.assert_allclose(scores.importance[0], expected["attention"].mean(0), atol=1e-4)


def test_imported_weights_give_the_published_scores(published):
    run(published)
    checkpoint = read_trace_checkpoint(published / "out", needs=(WEIGHTS, TRACE_ONNX))
    assert checkpoint.labels == LABELS
    assert not checkpoint.features.zero_checksums
    assert not checkpoint.network.time_encoding
    check_scores(published / "out")


def test_the_command(published):
    torch.save({f"module.encoder.{name}": value for name, value in part("encoder").items()}, published / "encoder.pt")
    (published / "config.json").write_text(json.dumps({"encoder_config": REFERENCE["encoder_config"]}))
    (published / "info.json").write_text(json.dumps({"label2idx": dict(zip("abcde", range(5), strict=True))}))
    paths = [f"--{name}={published / name}.pt" for name in ("encoder", "trace")]
    arguments = ["import", "tracegram", *paths, f"--config={published / 'config.json'}", "--header-only"]
    given = [*arguments, f"--out={published / 'out'}", f"--labels-file={published / 'info.json'}", "--subject=pair"]
    result = CliRunner().invoke(app, given)
    assert result.exit_code == 0, result.output
    assert "5 labels" in result.output
    checkpoint = read_trace_checkpoint(published / "out")
    assert (checkpoint.trace.subject, checkpoint.features.payload) == ("pair", False)
    check_scores(published / "out")


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("touched-by-unpickling"),))


def test_a_pickle_that_runs_code_is_refused(published, monkeypatch):
    monkeypatch.chdir(published)
    torch.save({"emb2.weight": Evil()}, published / "trace.pt")
    with pytest.raises(ImportRefusedError, match="more than tensors"):
        run(published)
    assert not (published / "touched-by-unpickling").exists()


NAME = "net.net.transformer.fn.layers.blocks.1.f.net.fn.fn.to_k.weight"


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (
            "encoder",
            lambda found: found.pop(NAME),
            "1 weights missing, the first encoder.net.net.*not a whole Tracegram",
        ),
        (
            "encoder",
            lambda found: found.update({NAME: torch.zeros(3, 64)}),
            r"has shape \[3, 64\], expected \[192, 64\]",
        ),
        ("encoder", lambda found: found.update(other=torch.zeros(1)), "1 weights too many .* encoder.other"),
        ("trace", lambda found: found["emb2.weight"].fill_(torch.nan), "trace.emb2.weight holds values"),
        ("trace", lambda found: found.pop("emb2.weight"), "no weights of Tracegram's aggregation"),
        ("trace", lambda found: found.pop("t_lstm.bias_hh_l0_reverse"), "not a whole Tracegram trace"),
    ],
)
def test_weights_that_do_not_fit_are_named(published, file, change, message):
    weights = part(file)
    change(weights)
    torch.save(weights, published / f"{file}.pt")
    with pytest.raises(ImportRefusedError, match=message):
        run(published)
    assert not (published / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dim": "64"}, "dim"),
        ({"reversible": False}, "reversible is False, the published network has True"),
        ({"use_rotary_emb": True}, "use_rotary_emb is True"),
        ({"num_tokens": 300}, "num_tokens is 300"),
        ({"emb_dim": 128}, "feature_size 256 is not the encoder's emb_dim 128"),
        ({"local_attn_window_size": 128}, "pos_emb.weights.0 has shape"),
        ({"local_attn_window_size": 64, "max_seq_len": 12032}, "shape"),
        ({"n_local_attn_heads": 9}, "9 local heads of 6"),
    ],
)
def test_a_configuration_of_another_network(published, change, message):
    (published / "config.json").write_text(json.dumps(REFERENCE["encoder_config"] | change))
    with pytest.raises(ImportRefusedError, match=message):
        run(published)
    assert not (published / "out").exists()


def test_labels_and_files(published):
    with pytest.raises(ImportRefusedError, match="5 classes, but 2 labels"):
        run(published, labels=["a", "b"])
    with pytest.raises(ImportRefusedError, match="distinct"):
        run(published, labels=["a", "a", "b", "c", "d"])
    with pytest.raises(ImportRefusedError, match=r"absent\.pt: unreadable"):
        run(published, encoder="absent.pt")
    (published / "config.json").write_text("[]")
    with pytest.raises(ImportRefusedError, match=r"config\.json"):
        run(published)
