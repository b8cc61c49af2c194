"""From weights to a checkpoint directory: safetensors, ONNX, int8 ONNX, card. The format is `models.checkpoint`'s."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import msgspec
import numpy as np
import onnx
from safetensors import SafetensorError
from safetensors.numpy import save_file

from tapline.models.card_header import with_header
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
from tapline.training.export.onnx_builder import Weights
from tapline.training.export.quantise import compare_int8, quantise
from tapline.training.export.tracegram_onnx import encoder_graph, trace_graph
from tapline.training.loop.config import TrainingError

_Checkpoint = TypeVar("_Checkpoint", Checkpoint, TracegramCheckpoint)


@dataclass(frozen=True)
class Parts(Generic[_Checkpoint]):
    """What a kind of checkpoint holds: the weights that serve, by their name, and the ONNX graphs made of them, by file
    name; `quantised` is the file of one of them and that of its int8 form."""

    serves: Callable[[str], bool]
    graphs: Callable[[Weights, _Checkpoint], Mapping[str, onnx.ModelProto]]
    quantised: tuple[str, str]


def _trace_graphs(weights: Weights, checkpoint: TracegramCheckpoint) -> dict[str, onnx.ModelProto]:
    """The trace network, and whichever encoder of flows the checkpoint brings."""
    graphs = {TRACE_ONNX: trace_graph(weights, checkpoint.network)}
    if checkpoint.mm4flow is not None:
        own = {name.removeprefix("encoder."): each for name, each in weights.items() if name.startswith("encoder.")}
        graphs[ENCODER_ONNX] = features_graph(own, checkpoint.mm4flow.network)
    elif checkpoint.has_encoder:
        graphs[ENCODER_ONNX] = encoder_graph(weights, checkpoint.network, checkpoint.features.max_tokens)
    return graphs


FLOWS = Parts[Checkpoint](
    lambda name: ".cls." not in name,  # heads of masked tokens, which only pre-training reads
    lambda weights, checkpoint: {ONNX: mm4flow_graph(weights, checkpoint.network)},
    (ONNX, ONNX_INT8),
)
TRACES = Parts[TracegramCheckpoint](
    lambda name: not is_for_training(name), _trace_graphs, (ENCODER_ONNX, ENCODER_ONNX_INT8)
)


def export(
    directory: Path,
    checkpoint: Checkpoint,
    weights: Weights,
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
    # the comparison is in the manifest because `metrics` is filled before the manifest is encoded
    whole = msgspec.structs.replace(checkpoint, metrics=metrics)

    def card_of(staging: Path) -> str:
        if int8_samples is not None:
            metrics["int8"] = msgspec.to_builtins(compare_int8(staging, int8_samples, checkpoint))
        return card(whole)

    return _export(directory, whole, weights, FLOWS, card_of, int8_samples is not None)


def export_traces(
    directory: Path, checkpoint: TracegramCheckpoint, weights: Weights, card: str, int8: bool = False
) -> TracegramCheckpoint:
    """Write the directory of a trace checkpoint, whole or not at all; gives the manifest as written.

    `weights` bear the names of `models.tracegram.Tracegram`, those of an own MM4flow below `encoder.` too; what only
    training reads is left out. `int8` adds a quantised flow encoder.

    Raises:
        CheckpointError, TrainingError: as `export`.
        ValueError: the encoder's graph cannot read as many tokens as the checkpoint's features have.
    """
    return _export(directory, checkpoint, weights, TRACES, lambda _: card, int8 and checkpoint.has_encoder)


def _export(
    directory: Path,
    checkpoint: _Checkpoint,
    weights: Weights,
    parts: Parts[_Checkpoint],
    card: Callable[[Path], str],
    int8: bool,
) -> _Checkpoint:
    """Write the parts, then the `card` that is made of the folder where they lie."""

    def write_files(staging: Path) -> None:
        kept = {name: np.ascontiguousarray(each, np.float32) for name, each in weights.items() if parts.serves(name)}
        try:
            save_file(kept, staging / WEIGHTS)
        except SafetensorError as error:  # what its writer makes of a full disk
            raise TrainingError(
                f"cannot write the weights of the checkpoint ({error}): make room and run it again"
            ) from None
        for name, graph in parts.graphs(kept, checkpoint).items():
            onnx.save_model(graph, staging / name)
        if int8:
            quantise(*(staging / name for name in parts.quantised))
        (staging / CARD).write_text(with_header(card(staging), checkpoint), encoding="utf-8")
        for path in staging.iterdir():
            path.chmod(0o644)  # safetensors writes for the owner alone

    return write_checkpoint(directory, checkpoint, write_files)
