"""Opens ONNX Runtime sessions the one way that all engines want them. The only place that imports `onnxruntime`."""

from __future__ import annotations

import contextlib
import functools
import io
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from tapline.models.checkpoint import AnyCheckpoint, CheckpointError, read_file
from tapline.models.foreign_text import clean
from tapline.service.engines.devices import FIRST_GPU, Device
from tapline.service.engines.engine import GPU_PROVIDER, EngineError
from tapline.service.engines.onnx_file import OnnxFileError, check_onnx

_SILENT = 4
CPU = "CPUExecutionProvider"

Shape = tuple[int, ...]


class Session:
    """A graph whose inputs and outputs are the ones asked for; a run gives what was asked for, or an error.

    `provider` is what computes it, as of `Engine`.
    """

    def __init__(self, name: str, session: Any, device: Device) -> None:
        self.provider = device.said(session.get_providers()[0])
        self._name = name
        self._session = session

    def run(self, inputs: Mapping[str, NDArray[Any]], outputs: Mapping[str, Shape]) -> list[NDArray[np.float32]]:
        """The outputs of these names, float32 of these shapes, in their order.

        Raises:
            EngineError: the graph cannot compute them, or gives others.
        """
        try:
            found: list[NDArray[np.float32]] = self._session.run(list(outputs), dict(inputs))
        except Exception as error:  # ONNX Runtime has no public base class for its errors
            raise EngineError(f"{self._name} failed on a batch: {type(error).__name__}: export it again") from error
        for (name, shape), value in zip(outputs.items(), found, strict=True):
            if not isinstance(value, np.ndarray) or value.dtype != np.float32 or value.shape != shape:
                raise EngineError(
                    f"{self._name}: expected {name} as float32 {list(shape)}, got {_described(value)}: export it again"
                )
        return found


def open_session(
    directory: Path,
    checkpoint: AnyCheckpoint,
    name: str,
    *,
    inputs: Collection[str],
    outputs: Mapping[str, tuple[int | None, ...]],
    threads: int = 0,
    device: Device = FIRST_GPU,
) -> Session:
    """A session of a file of a checkpoint, on the GPU of `device` where ONNX Runtime has CUDA and can use it, otherwise
    on the CPU with `threads` threads, 0: one for each core that this process may use.

    `inputs` are all that the graph reads; `outputs` are among what it gives, with their shapes, None where any size is
    right.

    Raises:
        CheckpointError: the file is not the recorded one, holds more than a plain graph, has other inputs or outputs,
            or ONNX Runtime refuses it.
    """
    path, content = directory / name, read_file(directory, checkpoint, name)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or len(os.sched_getaffinity(0))
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # waiting threads leave cores to others
    options.log_severity_level = _SILENT
    options.add_session_config_entry("session.load_model_format", "ONNX")
    try:
        check_onnx(content)
        session = _session(content, options, device)
        _check_names(path, session, inputs, outputs)
    except (OnnxFileError, MemoryError) as error:
        raise CheckpointError(f"{path}: {error or 'there is not enough memory'}: export it again") from None
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"{path}: ONNX Runtime refuses it: {type(error).__name__}: export it again") from error
    return Session(name, session, device)


def _session(content: bytes, options: Any, device: Device) -> Any:
    """The session on the best provider that can be used. ONNX Runtime's own way back to the CPU writes to standard
    output, which is for results: it is off."""
    if device.gpu is not None and not device.simulated and GPU_PROVIDER in available_providers():
        _load_cuda()
        on_gpu = (GPU_PROVIDER, {"device_id": device.gpu})
        with contextlib.suppress(Exception):  # what is wrong with the graph itself is said by the CPU as well
            return _opened(content, options, [on_gpu, CPU])
    return _opened(content, options, [CPU])


def _opened(content: bytes, options: Any, providers: list[Any]) -> Any:
    session = onnxruntime.InferenceSession(content, options, providers=providers, enable_fallback=0)
    with contextlib.suppress(AttributeError):  # a version that has no such attribute keeps nothing, or keeps it
        session._model_bytes = b""  # the whole file, to begin anew with other providers: nobody asks for that
    return session


def available_providers() -> list[str]:
    """The execution providers that this build of ONNX Runtime has; whether they can be used is seen by using them."""
    found: list[str] = onnxruntime.get_available_providers()
    return found


@functools.cache
def _load_cuda() -> None:
    """Load the libraries of CUDA that wheels brought, once; what it would print of those it did not find is lost."""
    with contextlib.redirect_stdout(io.StringIO()):
        onnxruntime.preload_dlls()


def _check_names(
    path: Path, session: Any, inputs: Collection[str], outputs: Mapping[str, tuple[int | None, ...]]
) -> None:
    given = {value.name for value in session.get_inputs()}
    if given != set(inputs):
        raise CheckpointError(f"{path}: expected inputs {_names(inputs)}, got {_names(given)}: export it again")
    found = {value.name: value for value in session.get_outputs()}
    for name, shape in outputs.items():
        if name not in found:
            raise CheckpointError(f"{path}: expected an output {name}, got {_names(found)}: export it again")
        declared = found[name].shape
        if found[name].type != "tensor(float)" or not _fits(declared, shape):
            raise CheckpointError(
                f"{path}: expected {name} as float32 {_shown(shape)}, got {found[name].type} {_shown(declared)}: "
                "export it again"
            )


def _fits(declared: list[Any], shape: tuple[int | None, ...]) -> bool:
    """Whether a declared shape can be the expected one: sizes that the graph leaves open fit any."""
    return len(declared) == len(shape) and all(
        size is None or not isinstance(found, int) or found == size for found, size in zip(declared, shape, strict=True)
    )


def _names(names: Collection[str]) -> str:
    """The first few of the names that a graph has chosen, short."""
    return ", ".join(clean(name, 32) for name in sorted(names)[:4])


def _shown(shape: Collection[Any]) -> str:
    return f"[{', '.join(str(size) if isinstance(size, int) else '*' for size in shape)}]"


def _described(value: Any) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, np.ndarray) else type(value).__name__
