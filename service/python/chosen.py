"""From what a user names to what computes: the model of a name or a directory, and the trace models beside it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tapline.models.checkpoint import CheckpointError
from tapline.service.engines.engine import Engine, EngineName
from tapline.service.engines.loading import load_engine
from tapline.service.engines.trace_engine import TraceEngine
from tapline.service.inference.classifier import Classifier
from tapline.service.inference.repository import Repository, UnknownModelError, newest_version
from tapline.service.inference.trace_loading import fitting, load_beside
from tapline.service.inference.trial import try_out


def model_directory(model: str | os.PathLike[str]) -> Path:
    """The checkpoint of a model that ships, by its name, or of a directory; a text that is a name means no directory.

    Raises:
        CheckpointError: there is neither.
    """
    if isinstance(model, str):
        try:
            return Repository().find(model)
        except UnknownModelError:
            pass
    if not Path(model).exists():
        shipped = ", ".join(Repository().names())
        raise CheckpointError(
            f"{os.fspath(model)}: neither the name of a model that ships ({shipped}) nor a directory: give one of "
            "these, or a checkpoint directory"
        )
    return newest_version(Path(model))


def open_classifier(
    model: Path,
    traces: Sequence[Path],
    engine: EngineName = "onnx",
    *,
    required: bool,
    warn: Callable[[str], None],
    threads: int = 0,
    **options: Any,
) -> Classifier:
    """What classifies with the checkpoint of a directory, and with the trace models that fit it. `required` and `warn`
    as of `fitting`, `options` of the classifier. Checkpoints that do not ship are tried out first.

    Raises:
        CheckpointError, EngineError: a model is none, or cannot be run.
    """
    try_out(model, *traces, engine=engine)
    flow_engine = load_engine(engine, model, threads)
    trace_engines = [load_beside(engine, each, threads) for each in traces]
    return classifier_of(flow_engine, trace_engines, required=required, warn=warn, **options)


def classifier_of(
    engine: Engine,
    traces: Sequence[TraceEngine],
    *,
    required: bool,
    warn: Callable[[str], None],
    **options: Any,
) -> Classifier:
    """The same of engines that are loaded.

    Raises:
        CheckpointError: a trace model does not fit, and is `required`.
    """
    return Classifier(engine, trace_engines=fitting(traces, engine.checkpoint, required=required, warn=warn), **options)
