"""Opens ONNX Runtime sessions the one way that all engines want them. The only place that imports `onnxruntime`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from models.checkpoint import CheckpointError

# Read when onnxruntime is loaded, which would otherwise look up its maker's host.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime

_ERRORS_ONLY = 3
_PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")


def open_session(path: Path, threads: int = 0) -> Any:
    """A session on a GPU where ONNX Runtime has CUDA, otherwise on the CPU with `threads` threads.

    0 threads: one for each core that this process may use.

    Raises:
        CheckpointError: ONNX Runtime refuses the model.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or len(os.sched_getaffinity(0))
    options.inter_op_num_threads = 1
    options.log_severity_level = _ERRORS_ONLY
    try:
        available = onnxruntime.get_available_providers()
        providers = [name for name in _PROVIDERS if name in available]
        return onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # ONNX Runtime has no public base class for its errors
        raise CheckpointError(f"{path}: ONNX Runtime refuses it: {type(error).__name__}") from error
