"""Memory and use of the GPUs, read from NVIDIA's management library when `/metrics` is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector


class GpuCollector(Collector):
    """One sample for each GPU that the library shows; none where it fails, which costs nothing but these metrics."""

    def __init__(self, nvml: Any) -> None:
        self._nvml = nvml

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """The families, empty."""
        yield GaugeMetricFamily(
            "tapline_gpu_memory_bytes", "Memory of a GPU: used by all processes, and there is", labels=["gpu", "kind"]
        )
        yield GaugeMetricFamily(
            "tapline_gpu_busy_ratio", "Share of the last sample period in which the GPU computed", labels=["gpu"]
        )

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The families with what the library says now."""
        memory, busy = self.describe()
        try:
            for index in range(self._nvml.nvmlDeviceGetCount()):
                gpu = self._nvml.nvmlDeviceGetHandleByIndex(index)
                state = self._nvml.nvmlDeviceGetMemoryInfo(gpu)
                memory.add_metric([str(index), "used"], state.used)
                memory.add_metric([str(index), "total"], state.total)
                busy.add_metric([str(index)], self._nvml.nvmlDeviceGetUtilizationRates(gpu).gpu / 100)
        except self._nvml.NVMLError:
            return
        yield memory
        yield busy


def gpu_collector() -> GpuCollector | None:
    """The collector, or None where the library or a driver is missing."""
    try:
        import pynvml
    except ModuleNotFoundError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    return GpuCollector(pynvml)
