"""Loads a checkpoint directory into an engine, by the engine's name. Engines themselves know nothing of each other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from tapline.installation import install_command
from tapline.service.engines.devices import FIRST_GPU, Device, visible_gpus
from tapline.service.engines.engine import GPU_PROVIDER, Engine, EngineError, EngineName, Precision
from tapline.service.engines.providers import computes_on_gpu, count_drivers_gpus, providers
from tapline.service.engines.trace_engine import TraceEngine


class _Provided(Protocol):
    """Something that computes."""

    @property
    def provider(self) -> str: ...


_Loaded = TypeVar("_Loaded", bound=_Provided)


def load_engine(
    name: EngineName, directory: Path, threads: int = 0, precision: Precision = "float32", device: Device = FIRST_GPU
) -> Engine:
    """Load a checkpoint directory into an engine.

    Args:
        name: of the engine.
        directory: of a flow checkpoint.
        threads: 0 means one per core.
        precision: what it computes with.
        device: where it computes.

    Raises:
        CheckpointError: the checkpoint is missing, damaged, of another version, or has no model of this precision.
        EngineError: the engine is not installed, refuses the model, or has no such precision.
    """
    check_precision(name, precision)
    try:
        if name == "torch":
            from tapline.service.engines.torch_engine import TorchEngine

            return TorchEngine(directory, threads, precision, device)
        from tapline.service.engines.onnx_engine import OnnxEngine

        return OnnxEngine(directory, threads, precision, device)
    except ModuleNotFoundError as error:
        raise missing_library(name, error) from None


def load_engines(
    name: EngineName,
    directory: Path,
    threads: int = 0,
    precision: Precision = "float32",
    devices: Sequence[Device] | None = None,
) -> list[Engine]:
    """One engine for each of the `devices`, by default for each GPU that the engine can use, at least one.

    The rest is as of `load_engine`.

    Raises:
        CheckpointError, EngineError: as there; or a GPU that was chosen cannot be used.
    """
    asked = asked_devices(name, devices)
    engines = [load_engine(name, directory, threads, precision, device) for device in asked]
    return usable(name, asked, engines, chosen=devices is not None)


def asked_devices(name: EngineName, devices: Sequence[Device] | None) -> Sequence[Device]:
    """The `devices` that were chosen, by default each GPU that the engine can use, at least one."""
    return [Device(number) for number in range(count_devices(name))] if devices is None else devices


def usable(
    name: EngineName, asked: Sequence[Device], loaded: Sequence[_Loaded], *, chosen: bool, least: int = 1
) -> list[_Loaded]:
    """What was loaded where it was asked to; the `least` that there must be where nothing was, and no devices were
    `chosen`.

    Raises:
        EngineError: a GPU that was chosen cannot be used.
    """
    unused = [device.gpu for device, each in zip(asked, loaded, strict=True) if _is_missed(device, each.provider)]
    if unused and chosen:
        raise EngineError(
            f"the {name} engine cannot use GPU {', '.join(map(str, unused))}: choose others with --devices, "
            "or `tapline doctor` says what is wrong"
        )
    found = [each for device, each in zip(asked, loaded, strict=True) if device.gpu not in unused]
    return found or list(loaded[:least])


def _is_missed(device: Device, provider: str) -> bool:
    """Whether a GPU was meant and something else computes."""
    return device.gpu is not None and not device.simulated and not computes_on_gpu(provider)


def count_devices(name: EngineName) -> int:
    """Engines that it pays to run side by side: one for each GPU, one without."""
    try:
        if name == "torch":
            from tapline.service.engines.torch_common import count_gpus

            return max(1, count_gpus())
    except ModuleNotFoundError as error:
        raise missing_library(name, error) from None
    return max(1, visible_gpus(count_drivers_gpus)) if GPU_PROVIDER in providers() else 1


def load_trace_engine(
    name: EngineName, directory: Path, threads: int = 0, precision: Precision = "float32", device: Device = FIRST_GPU
) -> TraceEngine:
    """Load the directory of a trace checkpoint into an engine; arguments as of `load_engine`.

    Raises:
        CheckpointError: the checkpoint is missing, damaged, or of another kind or version.
        EngineError: the engine is not installed, or has no such precision.
    """
    check_precision(name, precision)
    try:
        if name == "torch":
            from tapline.service.engines.torch_trace_engine import TorchTraceEngine

            return TorchTraceEngine(directory, threads, precision, device)
        from tapline.service.engines.onnx_trace_engine import OnnxTraceEngine

        return OnnxTraceEngine(directory, threads, precision, device)
    except ModuleNotFoundError as error:
        raise missing_library(name, error) from None


def check_precision(name: EngineName, precision: Precision) -> None:
    """Refuse what an engine cannot compute with.

    Raises:
        EngineError: it has no such precision.
    """
    if (name, precision) in {("onnx", "bfloat16"), ("torch", "int8")}:
        other = "torch" if name == "onnx" else "onnx"
        raise EngineError(f"the {name} engine does not compute in {precision}: use --engine {other}, or float32")


def missing_library(name: EngineName, error: ModuleNotFoundError) -> EngineError:
    """What to say where the library of an engine, or what comes with it, is not installed."""
    if name == "torch":
        return EngineError(
            f"the torch engine needs {error.name}: install the extra `torch` ({install_command('torch')}), or use "
            "--engine onnx"
        )
    return EngineError(
        f"the onnx engine needs {error.name}: install the extra `cpu` ({install_command('cpu')}), or `gpu` in its "
        "place where there is a GPU of NVIDIA"
    )
