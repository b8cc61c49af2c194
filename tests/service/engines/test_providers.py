"""Which provider computes: CUDA where ONNX Runtime has it and can use it, the CPU otherwise, and that it is said.

There is no GPU where tests run: what ONNX Runtime says of one is put in its place, and sessions are those of the CPU.
"""

import importlib.metadata
import sys

import onnxruntime
import pytest

from tapline.service.engines import providers
from tapline.service.engines.engine import GPU_PROVIDER, EngineError
from tapline.service.engines.loading import load_engine, load_trace_engine
from tapline.service.engines.onnx_session import CPU, _load_cuda
from tapline.service.engines.providers import RUNTIMES, idle_gpu, installed_runtimes
from tapline.service.engines.warm_flows import SHORT_FLOW
from tapline.service.inference.classifier import Classifier
from tapline.service.inference.repository import shipped_checkpoint
from tests.service.command.cli_runner import tapline

ON_FIRST_GPU = (GPU_PROVIDER, {"device_id": 0})


class BuiltForCuda:
    """ONNX Runtime as its build for CUDA says it is, on a machine with a GPU or without."""

    def __init__(self, monkeypatch, usable):
        self.asked, self.loaded = [], []
        real = onnxruntime.InferenceSession
        built = self

        class Session:
            def __init__(self, content, options, providers, enable_fallback):
                built.asked.append((providers, enable_fallback))
                names = [provider if isinstance(provider, str) else provider[0] for provider in providers]
                if GPU_PROVIDER in names and not usable:
                    raise RuntimeError("CUDA failure 100: no CUDA-capable device is detected")
                self._session, self._providers = real(content, options, providers=[CPU]), names

            def get_providers(self):
                return self._providers

            def __getattr__(self, name):
                return getattr(self._session, name)

        def preload():
            print("Failed to load libcudnn.so.9")
            self.loaded.append(True)

        monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [GPU_PROVIDER, CPU])
        monkeypatch.setattr(onnxruntime, "preload_dlls", preload)
        _load_cuda.cache_clear()


def test_the_cpu_computes_where_there_is_no_other(checkpoint_dir):
    engine = load_engine("onnx", checkpoint_dir)
    assert engine.provider == CPU == Classifier(engine).provider
    assert load_trace_engine("onnx", shipped_checkpoint("iot-devices")).provider == CPU
    assert load_engine("torch", checkpoint_dir).provider == "torch on cpu"


def test_cuda_computes_where_it_can(checkpoint_dir, monkeypatch, capfd):
    built = BuiltForCuda(monkeypatch, usable=True)
    engine = load_engine("onnx", checkpoint_dir)
    assert engine.provider == GPU_PROVIDER
    assert Classifier(engine).classify([SHORT_FLOW])[0].verdict is not None
    load_engine("onnx", checkpoint_dir)
    assert built.asked == [([ON_FIRST_GPU, CPU], 0)] * 2
    assert built.loaded == [True]  # once
    assert capfd.readouterr().out == ""  # standard output is for results
    assert idle_gpu(engine.provider) is None


def test_the_cpu_computes_where_cuda_cannot(checkpoint_dir, monkeypatch, capfd):
    built = BuiltForCuda(monkeypatch, usable=False)
    engine = load_engine("onnx", checkpoint_dir)
    assert engine.provider == CPU
    assert built.asked == [([ON_FIRST_GPU, CPU], 0), ([CPU], 0)]
    assert capfd.readouterr().out == ""
    assert "cannot use it here: look at nvidia-smi" in idle_gpu(engine.provider)


def test_a_gpu_that_the_build_cannot_use_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr(providers, "_DRIVER", tmp_path)
    assert idle_gpu(CPU) is None
    (tmp_path / "0000:01:00.0").mkdir()
    assert "pip uninstall onnxruntime, then install the extra `gpu`" in idle_gpu(CPU)
    assert idle_gpu("torch on cuda:0") is None


@pytest.mark.parametrize(("load", "module"), [(load_engine, "onnx_engine"), (load_trace_engine, "onnx_trace_engine")])
def test_none_installed_is_one_sentence(checkpoint_dir, monkeypatch, load, module):
    for name in (module, "onnx_session"):
        monkeypatch.delitem(sys.modules, f"tapline.service.engines.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(
        EngineError, match=r"needs onnxruntime: install the extra `cpu` \(pip .*\[cpu\].*\), or `gpu` in its"
    ):
        load("onnx", checkpoint_dir)
    assert providers.providers() == []


def test_commands_say_so_where_none_is_installed(tmp_path, monkeypatch):
    (tmp_path / "onnxruntime.py").write_text("raise ModuleNotFoundError('none', name='onnxruntime')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    for command in (("classify", "tests/data/captures/android.pcap"), ("serve", "--port", "0")):
        result = tapline(*command)
        assert (result.returncode, len(result.stderr.splitlines())) == (2, 1)
        assert "the onnx engine needs onnxruntime: install the extra `cpu`" in result.stderr
    assert tapline("features", "tests/data/captures/android.pcap").stdout.count("\n") == 66


def test_the_builds_that_are_installed(monkeypatch):
    assert installed_runtimes() == {"onnxruntime": onnxruntime.__version__}
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.0")
    assert list(installed_runtimes()) == list(RUNTIMES)


def test_no_extra_but_dev_brings_a_build_beside_cpu_and_gpu():
    own = {"extra == 'cpu'", "extra == 'dev'", "extra == 'benchmarks'"}  # `benchmarks` has `dev`
    asked = importlib.metadata.requires("tapline-traffic")
    assert {line.partition(";")[2].strip() for line in asked if line.startswith("onnxruntime>")} == own
    assert {line.partition(";")[2].strip() for line in asked if line.startswith("onnxruntime-gpu")} == {
        "extra == 'gpu'"
    }
