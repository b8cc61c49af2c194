"""Every engine and precision against the float32 reference over real flows with the checkpoint that ships."""

import shutil

import msgspec
import numpy as np
import pytest
import torch

from tapline.models.checkpoint import ONNX, ONNX_INT8, CheckpointError, FileRecord, file_sha256, read_checkpoint
from tapline.models.encode import encode
from tapline.models.trace import make_traces
from tapline.models.trace_context import trace_context
from tapline.service.engines.engine import EngineError
from tapline.service.engines.loading import count_devices, load_engine, load_engines, load_trace_engine
from tapline.service.engines.torch_engine import TorchEngine
from tapline.service.engines.trace_engine import TraceInput, warm_up
from tapline.service.inference.repository import shipped_checkpoint
from tapline.service.inference.trace_loading import load_beside
from tapline.service.sources.capture import read_capture
from tapline.training.export.quantise import quantise
from tests.conftest import make_flows, make_trace_checkpoint
from tests.paths import DATA

pytestmark = [
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors"),  # what CPUs fall back to
    pytest.mark.whole,
]

CAPTURES = DATA / "captures"
NAMES = ("android.pcap", "ndpi/hls.pcapng", "ndpi/mysql.pcapng", "ndpi/steam.pcapng")


@pytest.fixture(scope="module")
def flows():
    """Flows with payload of real captures."""
    paths = [CAPTURES / name for name in NAMES] + sorted(CAPTURES.glob("iot-sentinel/*/*.pcap"))
    found = [flow for path in paths for flow in read_capture(path) if flow.payload_lengths]
    return found[:: len(found) // 30]


@pytest.fixture(scope="module")
def with_int8(tmp_path_factory):
    """The shipped flow checkpoint with an int8 form beside."""
    directory = tmp_path_factory.mktemp("int8") / "1"
    shutil.copytree(shipped_checkpoint("flow-protocols"), directory)
    quantise(directory / ONNX, directory / ONNX_INT8)
    checkpoint = read_checkpoint(directory)
    path = directory / ONNX_INT8
    files = checkpoint.files | {ONNX_INT8: FileRecord(path.stat().st_size, file_sha256(path))}
    (directory / "checkpoint.json").write_bytes(msgspec.json.encode(msgspec.structs.replace(checkpoint, files=files)))
    return directory


def probabilities(logits):
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


@pytest.mark.parametrize(
    ("name", "precision", "packed", "least", "largest", "agreement"),
    [
        ("onnx", "float32", None, 0, 1e-4, 1),
        ("torch", "float32", True, 0, 1e-4, 1),
        ("torch", "bfloat16", False, 1e-3, 0.1, 0.97),
        ("torch", "bfloat16", True, 1e-3, 0.1, 0.97),
        ("onnx", "int8", None, 1e-3, 0.1, 0.97),
    ],
)
def test_engines_and_precisions_agree(with_int8, flows, name, precision, packed, least, largest, agreement):
    batch = encode(flows, read_checkpoint(with_int8).features)
    expected = probabilities(TorchEngine(with_int8, packed=False).run(batch).logits)
    if packed is None:
        engine = load_engine(name, with_int8, precision=precision)
    else:
        engine = TorchEngine(with_int8, precision=precision, packed=packed)
    found = probabilities(engine.run(batch).logits)
    assert least <= np.abs(found - expected).max() <= largest  # a precision that changes nothing is not another one
    assert (found.argmax(1) == expected.argmax(1)).mean() >= agreement
    assert len(set(expected.argmax(1).tolist())) > 5  # the comparison is of something


def test_both_engines_say_the_same_of_traces_with_the_checkpoint_that_ships():
    captures = sorted(CAPTURES.glob("iot-sentinel/*/*.pcap"))
    found = []
    for name in ("torch", "onnx"):
        engine = load_trace_engine(name, shipped_checkpoint("iot-devices"))
        checkpoint = engine.checkpoint
        traces = [trace for path in captures for trace in make_traces(read_capture(path), checkpoint.trace)]
        inputs = [
            TraceInput(
                engine.embed(trace.flows),
                np.array([flow.start_us for flow in trace.flows]),
                np.array([flow.duration_us for flow in trace.flows]),
                trace_context(trace.flows, checkpoint.network.context),
            )
            for trace in traces
        ]
        found.append(engine.score(inputs))
    assert len(found[0].logits) >= len(captures) > 2
    assert np.ptp(found[0].logits) > 5
    np.testing.assert_allclose(found[1].logits, found[0].logits, atol=1e-3)
    for one, other in zip(found[1].importance, found[0].importance, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_packed_sequences_do_not_depend_on_their_batch(checkpoint_dir, monkeypatch):
    flows = make_flows(24)
    engine = TorchEngine(checkpoint_dir, packed=True)
    together = engine.run(encode(flows))
    monkeypatch.setattr("tapline.service.engines.torch_engine.MAX_PACKED_TOKENS", 900)  # several passes
    in_parts = engine.run(encode(flows))
    alone = np.concatenate([engine.run(encode([flow])).logits for flow in flows[:6]])
    reference = load_engine("onnx", checkpoint_dir).run(encode(flows))
    for found in (together.logits, in_parts.logits, alone):
        np.testing.assert_allclose(found, reference.logits[: len(found)], atol=1e-4)
    np.testing.assert_allclose(in_parts.embeddings, reference.embeddings, atol=1e-4)
    assert engine.run(encode([])).logits.shape == (0, 3)


@pytest.mark.parametrize(("name", "precision", "closest"), [("torch", "bfloat16", 0.999), ("onnx", "int8", 0.999)])
@pytest.mark.parametrize("encoder", ["tracegram", "own"])
def test_trace_features_of_other_precisions_point_the_same_way(tmp_path, flows, name, precision, closest, encoder):
    directory = make_trace_checkpoint(tmp_path / "traces" / "1", encoder, int8=True)
    expected = load_trace_engine("torch", directory).embed(flows)
    engine = load_trace_engine(name, directory, precision=precision)
    warm_up(engine)
    found = engine.embed(flows)
    cosine = (found * expected).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)
    assert cosine.min() > closest
    assert np.abs(found - expected).max() > 1e-3  # it is another precision


def test_the_service_loads_traces_in_the_precision_of_the_flow_models_where_they_have_it(tmp_path, flows):
    with_int8 = make_trace_checkpoint(tmp_path / "int8" / "1", "own", int8=True)
    without = make_trace_checkpoint(tmp_path / "float32" / "1", "own")
    for directory, engine, precision, changes in (
        (with_int8, "onnx", "int8", True),
        (with_int8, "torch", "bfloat16", True),
        (with_int8, "onnx", "float32", False),
        (without, "onnx", "int8", False),
    ):
        found = load_beside(engine, directory, 0, precision).embed(flows)
        expected = load_trace_engine(engine, directory).embed(flows)
        assert (np.abs(found - expected).max() > 1e-3) == changes


def test_what_an_engine_does_not_have_is_said(checkpoint_dir, trace_checkpoint_dir):
    with pytest.raises(EngineError, match="onnx engine does not compute in bfloat16: use --engine torch"):
        load_engine("onnx", checkpoint_dir, precision="bfloat16")
    with pytest.raises(EngineError, match="torch engine does not compute in int8: use --engine onnx"):
        load_trace_engine("torch", trace_checkpoint_dir, precision="int8")
    with pytest.raises(CheckpointError, match=r"model\.int8\.onnx is not part of this checkpoint"):
        load_engine("onnx", checkpoint_dir, precision="int8")
    with pytest.raises(CheckpointError, match=r"encoder\.int8\.onnx is not part of this checkpoint"):
        load_trace_engine("onnx", trace_checkpoint_dir, precision="int8")


def test_one_engine_for_each_gpu(checkpoint_dir, monkeypatch):
    for gpus, engines in ((0, 1), (1, 1), (3, 3)):
        monkeypatch.setattr("tapline.service.engines.torch_common.count_gpus", lambda gpus=gpus: gpus)
        assert count_devices("torch") == engines
    monkeypatch.setattr("tapline.service.engines.torch_engine.pick_device", lambda device: torch.device("cpu"))
    assert len(load_engines("torch", checkpoint_dir)) == 1  # GPUs that are there and cannot be used leave the CPU once
    assert len(load_engines("onnx", checkpoint_dir)) == 1
