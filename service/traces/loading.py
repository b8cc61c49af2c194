"""Which trace checkpoint serves: the one asked for, the one that ships, or none."""

from __future__ import annotations

from pathlib import Path

from models.checkpoint import Checkpoint, CheckpointError
from service.engines.base import EngineName
from service.repository import ZOO, newest_version
from service.traces.contract import TraceEngine, TracegramCheckpoint, load_trace_engine

DEFAULT_TRACE_CHECKPOINT = "iot-devices"
NO_TRACES = Path("none")
"""Given as a trace checkpoint: no traces."""


def load_traces(chosen: Path | None, flows: Checkpoint, engine: EngineName, threads: int = 0) -> TraceEngine | None:
    """The engine for traces: of the directory `chosen`, or of the checkpoint that ships; None for no traces.

    `flows` is the checkpoint that classifies flows, on whose embeddings one for traces may have been trained. The one
    that ships is left out where it does not fit.

    Raises:
        CheckpointError: the checkpoint is missing or damaged, or was trained on the embeddings of another one.
        EngineError: the engine is not installed or refuses the model.
    """
    if chosen == NO_TRACES:
        return None
    if chosen is None:
        shipped = ZOO / DEFAULT_TRACE_CHECKPOINT
        if not shipped.is_dir():
            return None
        found = load_trace_engine(engine, newest_version(shipped), threads)
        return found if _misfit(found.checkpoint, flows) is None else None
    found = load_trace_engine(engine, newest_version(chosen), threads)
    misfit = _misfit(found.checkpoint, flows)
    if misfit is not None:
        raise CheckpointError(f"{chosen}: {misfit}")
    return found


def _misfit(traces: TracegramCheckpoint, flows: Checkpoint) -> str | None:
    """Why the traces' checkpoint cannot read the embeddings of the flows' one, or None."""
    if traces.network.encoder != "mm4flow":
        return None
    return "not yet"
