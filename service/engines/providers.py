"""What can compute here, without loading a model: builds of ONNX Runtime that are installed, GPUs that lie idle."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

from tapline.service.engines.engine import GPU_PROVIDER

RUNTIMES = ("onnxruntime", "onnxruntime-gpu")
"""The builds of ONNX Runtime, of the extras `cpu` and `gpu`. They install the same files: one alone may be there."""

_DRIVER = Path("/proc/driver/nvidia/gpus")


def installed_runtimes() -> dict[str, str]:
    """The versions of the builds of ONNX Runtime that are installed."""
    found = {}
    for name in RUNTIMES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def providers() -> list[str]:
    """The execution providers of ONNX Runtime that is installed; none where it is not, or cannot be loaded."""
    try:
        from tapline.service.engines.onnx_session import available_providers
    except ImportError:
        return []
    return available_providers()


def count_drivers_gpus() -> int:
    """GPUs that NVIDIA's driver shows on this machine, whether anything can use them or not."""
    try:
        return sum(1 for _ in _DRIVER.iterdir())
    except OSError:
        return 0


def computes_on_gpu(provider: str) -> bool:
    """Whether a GPU is what computes, as of `Engine`."""
    return provider == GPU_PROVIDER or "cuda" in provider


def idle_gpu(provider: str) -> str | None:
    """Why no GPU computes where one might, or None; `provider`: what computes, as of `Engine`."""
    if computes_on_gpu(provider):
        return None
    if "in the place of GPU" in provider:
        return "GPUs are simulated, as `devices` says: the CPU computes what they would"
    if GPU_PROVIDER in providers():
        return (
            "this ONNX Runtime is built for CUDA and cannot use it here: look at nvidia-smi for driver and GPU, and "
            "install onnxruntime-gpu[cuda,cudnn], which brings CUDA's libraries"
        )
    if count_drivers_gpus():
        return "there is a GPU, and ONNX Runtime for the CPU: pip uninstall onnxruntime, then install the extra `gpu`"
    return None
