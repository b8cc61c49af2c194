"""From weights to a checkpoint directory: safetensors, ONNX and the card. The format belongs to `models.checkpoint`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from safetensors.numpy import save_file

from models.checkpoint import CARD, ONNX, WEIGHTS, Checkpoint, write_checkpoint
from training.onnx_graph import mm4flow_graph


def serving_weights(weights: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
    """What a verdict needs: everything but the masked-token heads, which only pre-training reads."""
    return {name: value for name, value in weights.items() if ".cls." not in name}


def export(
    directory: Path, checkpoint: Checkpoint, weights: Mapping[str, NDArray[np.float32]], card: str
) -> Checkpoint:
    """Write a checkpoint directory, whole or not at all; gives the manifest as written.

    Both files hold the same float32 numbers, so that every engine gives the same scores.
    """

    def write_files(staging: Path) -> None:
        kept = {name: np.ascontiguousarray(value, np.float32) for name, value in weights.items()}
        save_file(kept, staging / WEIGHTS)
        onnx.save_model(mm4flow_graph(kept, checkpoint.network), staging / ONNX)
        (staging / CARD).write_text(card, encoding="utf-8")
        for path in staging.iterdir():
            path.chmod(0o644)  # safetensors writes for the owner alone

    return write_checkpoint(directory, checkpoint, write_files)
