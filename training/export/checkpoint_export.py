"""From weights to a checkpoint directory: safetensors, ONNX, int8 ONNX, card. The format is `models.checkpoint`'s."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import save_file

from tapline.models.checkpoint import (
    CARD,
    ENCODER_ONNX,
    ENCODER_ONNX_INT8,
    ONNX,
    ONNX_INT8,
    TRACE_ONNX,
    WEIGHTS,
    Checkpoint,
    TracegramCheckpoint,
)
from tapline.models.checkpoint_writing import write_checkpoint
from tapline.models.tracegram import is_for_training
from tapline.training.data.store import StoredSamples
from tapline.training.export.mm4flow_onnx import features_graph, mm4flow_graph
from tapline.training.export.quantise import compare_int8, quantise
from tapline.training.export.tracegram_onnx import encoder_graph, trace_graph
from tapline.training.loop.config import TrainingError


def serving_weights(weights: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
    """What a verdict needs: everything but the masked-token heads, which only pre-training reads."""
    return {name: value for name, value in weights.items() if ".cls." not in name}


def export(
    directory: Path,
    checkpoint: Checkpoint,
    weights: Mapping[str, NDArray[np.float32]],
    card: Callable[[Checkpoint], str],
    int8_samples: StoredSamples | None = None,
) -> Checkpoint:
    """Write a checkpoint directory, whole or not at all; gives the manifest as written.

    Both float32 files hold the same numbers, so that every engine gives the same scores. With `int8_samples`, labelled
    flows, a quantised model is written too and the manifest's metrics say what it costs on them.

    Raises:
        CheckpointError: as `models.checkpoint_writing.write_checkpoint`.
        TrainingError: there is no room for the weights.
    """
    metrics = dict(checkpoint.metrics)

    def write_files(staging: Path) -> None:
        kept = _write_weights(staging, weights)
        onnx.save_model(mm4flow_graph(kept, checkpoint.network), staging / ONNX)
        if int8_samples is not None:
            quantise(staging / ONNX, staging / ONNX_INT8)
            metrics["int8"] = msgspec.to_builtins(compare_int8(staging, int8_samples, checkpoint))
        _finish(staging, card(msgspec.structs.replace(checkpoint, metrics=metrics)))

    # the comparison is in the manifest because `metrics` is filled before the manifest is encoded
    return write_checkpoint(directory, msgspec.structs.replace(checkpoint, metrics=metrics), write_files)


def export_traces(
    directory: Path,
    checkpoint: TracegramCheckpoint,
    weights: Mapping[str, NDArray[np.float32]],
    card: str,
    int8: bool = False,
) -> TracegramCheckpoint:
    """Write the directory of a trace checkpoint, whole or not at all; gives the manifest as written.

    `weights` bear the names of `models.tracegram.Tracegram`, those of an own MM4flow below `encoder.` too; what only
    training reads is left out. `int8` adds a quantised flow encoder.

    Raises:
        CheckpointError, TrainingError: as `export`.
        ValueError: the encoder's graph cannot read as many tokens as the checkpoint's features have.
    """

    def write_files(staging: Path) -> None:
        kept = _write_weights(staging, {name: each for name, each in weights.items() if not is_for_training(name)})
        if checkpoint.has_encoder:
            onnx.save_model(_encoder_graph(kept, checkpoint), staging / ENCODER_ONNX)
            if int8:
                quantise(staging / ENCODER_ONNX, staging / ENCODER_ONNX_INT8)
        onnx.save_model(trace_graph(kept, checkpoint.network), staging / TRACE_ONNX)
        _finish(staging, card)

    return write_checkpoint(directory, checkpoint, write_files)


def _encoder_graph(weights: Mapping[str, NDArray[np.float32]], checkpoint: TracegramCheckpoint) -> onnx.ModelProto:
    """The graph of whichever encoder of flows the checkpoint brings."""
    if checkpoint.mm4flow is None:
        return encoder_graph(weights, checkpoint.network, checkpoint.features.max_tokens)
    own = {name.removeprefix("encoder."): each for name, each in weights.items() if name.startswith("encoder.")}
    return features_graph(own, checkpoint.mm4flow.network)


def _write_weights(staging: Path, weights: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
    kept = {name: np.ascontiguousarray(value, np.float32) for name, value in weights.items()}
    try:
        save_file(kept, staging / WEIGHTS)
    except SafetensorError as error:  # what its writer makes of a full disk
        raise TrainingError(
            f"cannot write the weights of the checkpoint ({error}): make room and run it again"
        ) from None
    return kept


def _finish(staging: Path, card: str) -> None:
    (staging / CARD).write_text(card, encoding="utf-8")
    for path in staging.iterdir():
        path.chmod(0o644)  # safetensors writes for the owner alone
