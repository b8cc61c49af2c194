"""Where engines compute: what a setting says, which GPUs there are, and that simulated ones run and say so."""

import asyncio

import numpy as np
import onnxruntime
import pytest
from pydantic import ValidationError

from tapline.models.encode import encode
from tapline.service.engines import loading
from tapline.service.engines.devices import Device, parse_devices, visible_gpus
from tapline.service.engines.engine import GPU_PROVIDER, EngineError
from tapline.service.engines.loading import load_engines
from tapline.service.engines.onnx_session import CPU
from tapline.service.engines.providers import idle_gpu
from tapline.service.inference.batcher import Batcher
from tapline.service.inference.classifier import Classifier
from tapline.service.metrics import Metrics
from tapline.service.settings import Settings
from tests.conftest import make_flows
from tests.service.engines.test_providers import BuiltForCuda


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("auto", None),
        ("cpu", [Device(None)]),
        ("1, 3", [Device(1), Device(3)]),
        ("simulated:2", [Device(0, simulated=True), Device(1, simulated=True)]),
    ],
)
def test_what_a_setting_says(text, expected):
    assert parse_devices(text) == expected
    assert Settings(devices=text).devices == text


@pytest.mark.parametrize("text", ["gpu", "0,0", "-1", "1.5", "simulated:", "simulated:0", "simulated:65", "9999"])
def test_anything_else_is_refused(text):
    with pytest.raises(ValidationError, match="expected auto, cpu, numbers of GPUs"):
        Settings(devices=text)


@pytest.mark.parametrize(
    ("shown", "expected"), [(None, 4), ("", 0), ("2", 1), ("0,1,2", 3), ("0,-1,2", 1), ("0,1,2,3,4,5", 4)]
)
def test_gpus_that_are_shown(monkeypatch, shown, expected):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if shown is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
    assert visible_gpus(lambda: 4) == expected


def test_onnx_has_an_engine_for_each_gpu(checkpoint_dir, monkeypatch):
    built = BuiltForCuda(monkeypatch, usable=True)
    monkeypatch.setattr(loading, "count_drivers_gpus", lambda: 3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [engine.provider for engine in load_engines("onnx", checkpoint_dir)] == [GPU_PROVIDER] * 3
    assert [providers[0][1]["device_id"] for providers, _ in built.asked] == [0, 1, 2]
    built.asked.clear()
    assert len(load_engines("onnx", checkpoint_dir, devices=[Device(2)])) == 1
    assert [providers[0][1]["device_id"] for providers, _ in built.asked] == [2]
    built.asked.clear()
    assert load_engines("onnx", checkpoint_dir, devices=[Device(None)])[0].provider == CPU
    assert [providers for providers, _ in built.asked] == [[CPU]]


def test_gpus_that_cannot_be_used_leave_the_cpu_once(checkpoint_dir, monkeypatch):
    BuiltForCuda(monkeypatch, usable=False)
    monkeypatch.setattr(loading, "count_drivers_gpus", lambda: 3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [engine.provider for engine in load_engines("onnx", checkpoint_dir)] == [CPU]


@pytest.mark.parametrize("name", ["onnx", "torch"])
def test_a_gpu_that_was_chosen_and_is_not_there_is_one_sentence(checkpoint_dir, name):
    assert GPU_PROVIDER not in onnxruntime.get_available_providers()
    with pytest.raises(EngineError, match=f"the {name} engine cannot use GPU 5, 6: choose others with --devices"):
        load_engines(name, checkpoint_dir, devices=[Device(5), Device(6)])


@pytest.mark.parametrize("name", ["onnx", "torch"])
def test_simulated_gpus_share_the_flows_and_say_so(checkpoint_dir, name):
    flows = make_flows(600)
    engines = load_engines(name, checkpoint_dir, threads=1, devices=parse_devices("simulated:3"))
    first = "CPUExecutionProvider" if name == "onnx" else "torch on cpu"
    assert [engine.provider for engine in engines] == [f"{first} in the place of GPU {gpu}" for gpu in range(3)]
    assert "simulated" in idle_gpu(engines[0].provider)
    worked = []
    for number, engine in enumerate(engines):
        engine.run = lambda batch, run=engine.run, number=number: worked.append(number) or run(batch)

    async def classify():
        batcher = Batcher([Classifier(engine, min_packets=1) for engine in engines], Metrics(), max_batch_size=64)
        assert batcher.provider == ", ".join(engine.provider for engine in engines)
        batcher.start()
        found = await batcher.classify(flows)
        await batcher.stop(5)
        return found

    outcomes = asyncio.run(classify())
    assert set(worked) == {0, 1, 2}
    alone = Classifier(load_engines(name, checkpoint_dir, threads=1)[0], min_packets=1).classify(flows)
    assert [outcome.verdict.label for outcome in outcomes] == [outcome.verdict.label for outcome in alone]


def test_simulated_gpus_compute_the_same(checkpoint_dir):
    batch = encode(make_flows(8))
    alone, simulated = (
        load_engines("onnx", checkpoint_dir, threads=1, devices=devices)[0].run(batch).logits
        for devices in (None, [Device(0, simulated=True)])
    )
    np.testing.assert_array_equal(alone, simulated)
