"""What both torch engines share: weights into a module, refusing what does not fit; devices, and copies to and from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load
from torch import Tensor, nn

from tapline.models.checkpoint import WEIGHTS, AnyCheckpoint, CheckpointError, read_file
from tapline.models.foreign_text import clean
from tapline.service.engines.devices import Device


def load_weights(directory: Path, checkpoint: AnyCheckpoint, model: nn.Module, may_lack: Callable[[str], bool]) -> None:
    """Fill `model` in place, in float32, with the weights of a checkpoint.

    `may_lack` says whether a weight of this name, which serving does not need, may be missing.

    Raises:
        CheckpointError: the file is unreadable, or a weight is missing, unknown, of another shape or no number.
    """
    path, content = directory / WEIGHTS, read_file(directory, checkpoint, WEIGHTS)
    try:
        weights = {name: value.float() if value.is_floating_point() else value for name, value in load(content).items()}
        broken = [name for name, value in weights.items() if not value.isfinite().all()]
        missing, unexpected = model.load_state_dict(weights, strict=False)
    except Exception as error:  # the reader of safetensors raises what it meets: KeyError, TypeError, ...
        reason = str(error).strip().rsplit("\n", 1)[-1].strip()
        raise CheckpointError(f"{path}: {clean(reason)}: export it again") from None
    needed = [name for name in missing if not may_lack(name)]
    if needed or unexpected:
        raise CheckpointError(
            f"{path}: missing {needed[:3]}, unexpected {[clean(name, 32) for name in unexpected[:3]]}: export it again"
        )
    if broken:
        raise CheckpointError(f"{path}: expected numbers, got NaN or infinity in {broken[:3]}: train it again")


def count_gpus() -> int:
    """GPUs that CUDA can use here."""
    return torch.cuda.device_count()


def pick_device(device: Device) -> torch.device:
    """The GPU that is meant where CUDA has it, otherwise the CPU."""
    if device.gpu is None or device.simulated or device.gpu >= count_gpus():
        return torch.device("cpu")
    return torch.device("cuda", device.gpu)


def set_threads(threads: int) -> None:
    """torch's own threads for the whole process; 0 leaves them."""
    if threads:
        torch.set_num_threads(threads)


def on_device(values: NDArray[np.generic], device: torch.device) -> Tensor:
    """A copy on the device; to a GPU from pinned memory, without waiting for it."""
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def copied_back(values: Tensor) -> Tensor:
    """A copy in the host's memory; from a GPU not yet there until its stream is synchronised."""
    if values.device.type != "cuda":
        return values
    return torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values, non_blocking=True)
