"""Which trace checkpoint serves: the one asked for, the one that ships, or none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tapline.models.checkpoint import (
    ENCODER_ONNX_INT8,
    WEIGHTS,
    Checkpoint,
    CheckpointError,
    TracegramCheckpoint,
    read_trace_checkpoint,
)
from tapline.service.engines.engine import EngineName, Precision
from tapline.service.engines.loading import load_trace_engine
from tapline.service.engines.trace_engine import TraceEngine
from tapline.service.inference.repository import ZOO, newest_version

DEFAULT_TRACE_CHECKPOINT = "iot-devices"
NO_TRACES = Path("none")
"""Given as a trace checkpoint: no traces."""


def trace_directory(chosen: Path | None) -> Path | None:
    """The trace checkpoint that serves: in the directory `chosen`, or the one that ships; None for no traces."""
    if chosen == NO_TRACES:
        return None
    directory = newest_version(chosen or ZOO / DEFAULT_TRACE_CHECKPOINT)
    if chosen is None and not directory.is_dir():
        return None
    return directory


def load_traces(
    chosen: Path | None, engine: EngineName, threads: int = 0, precision: Precision = "float32"
) -> TraceEngine | None:
    """The engine of `trace_directory`; None for no traces. `precision` as of `load_beside`.

    Raises:
        CheckpointError: the checkpoint is missing or damaged.
        EngineError: the engine is not installed or refuses the model.
    """
    directory = trace_directory(chosen)
    return None if directory is None else load_beside(engine, directory, threads, precision)


def load_beside(engine: EngineName, directory: Path, threads: int = 0, precision: Precision = "float32") -> TraceEngine:
    """The engine of a trace checkpoint in the precision of the flow models beside it.

    Its encoder is in float32 where int8 is asked for and the checkpoint has no `encoder.int8.onnx`: one flag is for all
    models, and not every checkpoint has every form.

    Raises:
        CheckpointError, EngineError: as of `load_trace_engine`.
    """
    if precision == "int8" and ENCODER_ONNX_INT8 not in read_trace_checkpoint(directory).files:
        precision = "float32"
    return load_trace_engine(engine, directory, threads, precision)


def fitting(
    traces: TraceEngine | None, flows: Checkpoint, *, required: bool, warn: Callable[[str], None]
) -> TraceEngine | None:
    """The engine for traces, where flows that `flows` classifies can be read by it, else None; `warn` is told why.

    Raises:
        CheckpointError: they cannot, and it was `required`.
    """
    reason = misfit(traces.checkpoint, flows) if traces is not None else None
    if reason is None:
        return traces
    if required:
        raise CheckpointError(reason)
    warn(f"no traces: {reason}")
    return None


def misfit(traces: TracegramCheckpoint, flows: Checkpoint) -> str | None:
    """Why the traces' checkpoint cannot read the embeddings of the flows' one, or None."""
    trained = traces.flow_checkpoint
    if trained is None:
        return None
    weights = flows.files.get(WEIGHTS)
    digest = weights.sha256 if weights is not None else ""
    if (trained.name, trained.version, trained.weights_sha256) == (flows.name, flows.version, digest):
        return None
    return (
        f"the trace checkpoint {traces.name} {traces.version} reads the embeddings of {trained.name} {trained.version} "
        f"(weights {trained.weights_sha256[:8]}), but {flows.name} {flows.version} (weights {digest[:8]}) classifies "
        "the flows: give the one that it was trained on"
    )
