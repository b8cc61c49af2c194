"""GPU metrics, against a stand-in for NVIDIA's library: this is the one place where a GPU is faked."""

import sys
from types import SimpleNamespace

from prometheus_client import CollectorRegistry, generate_latest

from tapline.service.gpu import GpuCollector, gpu_collector


class Nvml:
    """Two GPUs, one of them busy."""

    class NVMLError(Exception):
        pass

    broken = False

    def nvmlInit(self):  # noqa: N802 - the library's names
        if self.broken:
            raise self.NVMLError

    def nvmlDeviceGetCount(self):  # noqa: N802
        if self.broken:
            raise self.NVMLError
        return 2

    def nvmlDeviceGetHandleByIndex(self, index):  # noqa: N802
        return index

    def nvmlDeviceGetMemoryInfo(self, gpu):  # noqa: N802
        return SimpleNamespace(used=1000 * gpu, total=8000)

    def nvmlDeviceGetUtilizationRates(self, gpu):  # noqa: N802
        return SimpleNamespace(gpu=75 * gpu)


def exposed(nvml):
    registry = CollectorRegistry()
    registry.register(GpuCollector(nvml))
    return generate_latest(registry).decode()


def test_memory_and_use_of_every_gpu():
    text = exposed(Nvml())
    assert 'tapline_gpu_memory_bytes{gpu="1",kind="used"} 1000.0' in text
    assert 'tapline_gpu_memory_bytes{gpu="0",kind="total"} 8000.0' in text
    assert 'tapline_gpu_busy_ratio{gpu="1"} 0.75' in text


def test_a_failing_library_costs_only_its_metrics():
    nvml = Nvml()
    nvml.broken = True
    assert "tapline_gpu" not in exposed(nvml)


def test_no_library_and_no_driver_mean_no_collector(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert gpu_collector() is None
    nvml = Nvml()
    nvml.broken = True
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    assert gpu_collector() is None
    nvml.broken = False
    assert gpu_collector() is not None
