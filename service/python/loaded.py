"""`tapline.load`: a model of flows or of traces, by its name or its checkpoint directory."""

from __future__ import annotations

import os
from typing import Literal, overload

from tapline.models.checkpoint import CheckpointError, checkpoint_kind, read_trace_checkpoint
from tapline.service.engines.engine import EngineName
from tapline.service.engines.loading import load_engine
from tapline.service.inference.trace_loading import load_beside
from tapline.service.inference.trial import try_out
from tapline.service.log_lines import configure_logs_by_default
from tapline.service.python.arguments import check_choice, check_threads
from tapline.service.python.chosen import model_directory
from tapline.service.python.flow_model import FlowModel
from tapline.service.python.trace_model import TraceModel, check_flow_model


@overload
def load(model: Literal["flow-protocols"], *, threads: int = 0, engine: EngineName = "onnx") -> FlowModel: ...
@overload
def load(
    model: Literal["iot-devices", "intrusion"], *, threads: int = 0, engine: EngineName = "onnx"
) -> TraceModel: ...
@overload
def load(
    model: str | os.PathLike[str],
    *,
    threads: int = 0,
    engine: EngineName = "onnx",
    flow_model: FlowModel | None = None,
) -> FlowModel | TraceModel: ...
def load(
    model: str | os.PathLike[str],
    *,
    threads: int = 0,
    engine: EngineName = "onnx",
    flow_model: FlowModel | None = None,
) -> FlowModel | TraceModel:
    """A model that ships, by its name (`flow-protocols`, `iot-devices`, `intrusion`), or that of a directory:
    `./NAME` where a directory has the name of one. Nothing is fetched. A checkpoint that does not ship is first tried
    out in a process of its own.

    Args:
        model: name or checkpoint directory; of a directory of versions the newest.
        threads: of the engine, 0 for one per core.
        engine: `onnx`, or `torch` (extra `torch`).
        flow_model: whose embeddings a trace model reads, where it reads those of one.

    Raises:
        CheckpointError: there is none, it is damaged, or it reads the embeddings of another flow model.
        EngineError: the engine is not installed.
        TypeError, ValueError: an argument is none.
    """
    check_choice("engine", engine, EngineName)
    check_threads(threads)
    if flow_model is not None and not isinstance(flow_model, FlowModel):
        raise TypeError(
            f"flow_model: expected a FlowModel, got {type(flow_model).__name__}: give what tapline.load gave of one"
        )
    configure_logs_by_default()
    directory = model_directory(model)
    is_flow_model = checkpoint_kind(directory) == "mm4flow"
    if not is_flow_model and (reason := check_flow_model(read_trace_checkpoint(directory), flow_model)):
        raise CheckpointError(reason)
    try_out(directory, engine=engine)
    if is_flow_model:
        return FlowModel(load_engine(engine, directory, threads), directory, threads)
    return TraceModel(load_beside(engine, directory, threads), directory, threads, flow_model)
