"""Loads the weights of a checkpoint into a torch module, refusing what does not fit. Needs torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from models.checkpoint import CheckpointError


def load_weights(path: Path, model: nn.Module, may_lack: Callable[[str], bool]) -> None:
    """Fill `model` in place, in float32.

    Args:
        path: safetensors.
        model: to be filled.
        may_lack: whether a weight of this name, which serving does not need, may be missing.

    Raises:
        CheckpointError: the file is unreadable, or a weight is missing, unknown or of another shape.
    """
    try:
        weights = {
            name: value.float() if value.is_floating_point() else value for name, value in load_file(path).items()
        }
        missing, unexpected = model.load_state_dict(weights, strict=False)
    except (SafetensorError, RuntimeError) as error:
        raise CheckpointError(f"{path}: {str(error).splitlines()[-1].strip()}") from None
    needed = [name for name in missing if not may_lack(name)]
    if needed or unexpected:
        raise CheckpointError(f"{path}: missing {needed[:3]}, unexpected {unexpected[:3]}")
