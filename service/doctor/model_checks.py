"""What computes, and the checkpoints that settings ask for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tapline.models.checkpoint import CheckpointError, checkpoint_kind
from tapline.service.doctor.finding import Finding
from tapline.service.engines.engine import GPU_PROVIDER, Engine, EngineError
from tapline.service.engines.loading import load_engine, load_trace_engine
from tapline.service.engines.providers import count_drivers_gpus, idle_gpu, installed_runtimes, providers
from tapline.service.engines.trace_engine import TraceEngine
from tapline.service.inference.repository import UnknownModelError
from tapline.service.inference.trace_loading import trace_directories
from tapline.service.inference.trial import try_out
from tapline.service.runtime import find_models
from tapline.service.settings import Settings


class OnnxRuntime:
    """One build of ONNX Runtime is installed, and only one."""

    what = "ONNX Runtime"

    def __init__(self, engine: str) -> None:
        self._engine = engine

    def run(self) -> Iterator[Finding]:
        """Ask what is installed, and the library for its providers."""
        found = installed_runtimes()
        if len(found) > 1:
            yield Finding(
                self.what, "problem", f"{' and '.join(found)} are both installed, and overwrite each other's files",
                f"pip uninstall {' '.join(found)}, then install the extra `cpu` or the extra `gpu`.",
            )  # fmt: skip
        elif found:
            [(name, version)] = found.items()
            there = ", ".join(provider.removesuffix("ExecutionProvider") for provider in providers())
            if there:
                yield Finding(self.what, "ok", f"{name} {version}, built for {there}")
            else:
                yield Finding(
                    self.what, "problem", f"{name} {version} cannot be loaded", f"pip install --force-reinstall {name}"
                )
        elif self._engine == "torch":
            yield Finding(self.what, "not applicable", "none is installed, and --engine torch needs none")
        else:
            yield Finding(self.what, "problem", "none is installed", "Install the extra `cpu`, or `gpu` in its place.")


class Gpu:
    """The GPU that is there computes; `provider` of an engine is seen when checkpoints are loaded."""

    what = "GPU"

    def __init__(self, engine: str) -> None:
        self._engine = engine

    def run(self) -> Iterator[Finding]:
        """Look at NVIDIA's driver, and at what ONNX Runtime is built for."""
        gpus = count_drivers_gpus()
        if not gpus and GPU_PROVIDER not in providers():
            yield Finding(self.what, "not applicable", "there is none that NVIDIA's driver shows; the CPU computes")
        elif not gpus:
            yield Finding(
                self.what, "warning", "ONNX Runtime is built for CUDA, and NVIDIA's driver shows no GPU",
                "Look at nvidia-smi; without a GPU the extra `cpu` is smaller.",
            )  # fmt: skip
        elif self._engine == "onnx" and (reason := idle_gpu("")) and GPU_PROVIDER not in providers():
            yield Finding(self.what, "warning", f"{gpus} by NVIDIA's driver, and none computes", f"{reason}.")
        else:
            yield Finding(self.what, "ok", f"{gpus} by NVIDIA's driver")


class Checkpoints:
    """The checkpoints that settings ask for are whole, and can be served: each is loaded, and its provider told."""

    what = "checkpoint"

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def run(self) -> Iterator[Finding]:
        """Load the flow models and the trace models."""
        settings = self._settings
        try:
            repository, default = find_models(settings)
            directories = [repository.find(name) for name in dict.fromkeys([default, *settings.load_models])]
            directories += trace_directories(settings.traces, repository)
        except (CheckpointError, UnknownModelError) as error:
            yield Finding(self.what, "problem", str(error), "Name one that is there: --model, --checkpoint, --traces.")
            return
        for directory in directories:
            yield self._loaded(directory)

    def _loaded(self, directory: Path) -> Finding:
        settings = self._settings
        try:
            try_out(
                directory,
                engine=settings.engine,
                precision=settings.precision,
                seconds=settings.model_trial_seconds,
            )
            load = load_trace_engine if checkpoint_kind(directory) == "tracegram" else load_engine
            engine: Engine | TraceEngine = load(settings.engine, directory, settings.threads, settings.precision)
        except (CheckpointError, EngineError) as error:
            return Finding(f"{self.what} {directory.parent.name}", "problem", str(error), "Export or pull it again.")
        checkpoint = engine.checkpoint
        what = f"{self.what} {checkpoint.name}"
        found = f"version {checkpoint.version} loads, computed by {engine.provider}"
        if settings.devices != "cpu" and (reason := idle_gpu(engine.provider)):
            return Finding(what, "warning", found, f"{reason}.")
        return Finding(what, "ok", found)
