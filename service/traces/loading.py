"""Which trace checkpoint serves: the one asked for, the one that ships, or none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from models.checkpoint import WEIGHTS, Checkpoint, CheckpointError, TracegramCheckpoint
from service.engines.base import EngineName
from service.engines.traces import TraceEngine, load_trace_engine
from service.repository import ZOO, newest_version

DEFAULT_TRACE_CHECKPOINT = "iot-devices"
NO_TRACES = Path("none")
"""Given as a trace checkpoint: no traces."""


def load_traces(chosen: Path | None, engine: EngineName, threads: int = 0) -> TraceEngine | None:
    """The engine for traces: of the directory `chosen`, or of the checkpoint that ships; None for no traces.

    Raises:
        CheckpointError: the checkpoint is missing or damaged.
        EngineError: the engine is not installed or refuses the model.
    """
    if chosen == NO_TRACES:
        return None
    directory = newest_version(chosen or ZOO / DEFAULT_TRACE_CHECKPOINT)
    if chosen is None and not directory.is_dir():
        return None
    return load_trace_engine(engine, directory, threads)


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
