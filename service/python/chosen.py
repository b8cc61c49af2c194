"""From what a user names to what computes: the model of a name, a directory or one that is loaded, and the trace models
beside it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from tapline.models.checkpoint import CheckpointError, read_trace_checkpoint
from tapline.models.checkpoint_files import refuse_remote
from tapline.service.engines.engine import EngineName
from tapline.service.engines.loading import load_engine
from tapline.service.engines.thread import EngineThread
from tapline.service.inference.classifier import Classifier
from tapline.service.inference.flow_network import BATCH_TIMEOUT_SECONDS, FlowNetwork
from tapline.service.inference.repository import Repository, UnknownModelError, newest_version
from tapline.service.inference.trace_loading import NO_TRACES, fitting, load_beside, trace_directories
from tapline.service.inference.trial import try_out
from tapline.service.log_lines import configure_logs_by_default
from tapline.service.python.arguments import expanded
from tapline.service.python.flow_model import FlowModel
from tapline.service.python.trace_model import TraceModel
from tapline.service.python.worker import Recipe
from tapline.service.python.workers import Workers

FlowChoice = str | os.PathLike[str] | FlowModel
"""A flow model by its name, by a checkpoint directory, or as `tapline.load` gave it."""

TraceChoice = str | os.PathLike[str] | TraceModel
"""A trace model likewise."""


def check_model(model: FlowChoice) -> None:
    """Raises TypeError: it is no choice of a flow model."""
    if not isinstance(model, str | os.PathLike | FlowModel):
        what = "give that as traces" if isinstance(model, TraceModel) else "give one of these"
        raise TypeError(
            "model: expected a flow model, by its name, its checkpoint directory or as tapline.load gave it, got "
            f"{type(model).__name__}: {what}"
        )


def model_directory(model: str | os.PathLike[str]) -> Path:
    """The checkpoint of a model that ships, by its name, or of a directory; a text that is a name means no directory.

    Raises:
        CheckpointError: there is neither.
        TypeError: it is neither a name nor a path.
    """
    if not isinstance(model, str | os.PathLike):
        raise TypeError(f"expected a model, by its name or checkpoint directory, got {type(model).__name__}: give one")
    refuse_remote(os.fspath(model))
    if isinstance(model, str):
        try:
            return Repository().find(model)
        except UnknownModelError:
            pass
    directory = Path(expanded(model))
    if not directory.exists():
        shipped = ", ".join(Repository().names())
        raise CheckpointError(
            f"{os.fspath(model)}: neither the name of a model that ships ({shipped}) nor a directory: give one of "
            "these, or a checkpoint directory"
        )
    return newest_version(directory)


def chosen_traces(
    traces: TraceChoice | Iterable[TraceChoice] | Literal[False] | None,
) -> list[Path | TraceModel]:
    """The trace models that are meant: None by all that ship, nothing or False by none.

    Raises:
        CheckpointError: one is none.
        TypeError: it is no choice of trace models.
    """
    if traces is None:
        return [*trace_directories([])]
    one = (str, os.PathLike, TraceModel)
    chosen: list[TraceChoice] = []
    if isinstance(traces, one):
        chosen = [traces]
    elif traces is not False:
        chosen = list(traces) if isinstance(traces, Iterable) else [traces]
    for each in chosen:
        if not isinstance(each, one):
            what = "give that as model" if isinstance(each, FlowModel) else "give these, or () for none"
            raise TypeError(
                "traces: expected trace models, by name, checkpoint directory or as tapline.load gave them, got "
                f"{type(each).__name__}: {what}"
            )
    named = [expanded(each) for each in chosen if not isinstance(each, TraceModel)]
    if NO_TRACES in named and len(chosen) > 1:
        raise CheckpointError(f"traces: `{NO_TRACES}` beside other models: give it alone, or leave it out")
    directories = iter(trace_directories(named or [NO_TRACES]))
    if NO_TRACES in named:
        return []
    return [each if isinstance(each, TraceModel) else next(directories) for each in chosen]


def open_classifier(
    model: Path | FlowModel,
    traces: Sequence[Path | TraceModel],
    engine: EngineName = "onnx",
    *,
    required: bool,
    warn: Callable[[str], None],
    threads: int = 0,
    timeout_seconds: float = BATCH_TIMEOUT_SECONDS,
    **options: Any,
) -> Classifier:
    """What classifies with a flow model, and with the trace models that fit it. `required` and `warn` as of `fitting`,
    `timeout_seconds` of the flow model for a batch, `options` of the classifier. Checkpoints that do not ship are tried
    out first.

    Raises:
        CheckpointError, EngineError: a model is none, or cannot be run.
    """
    configure_logs_by_default()
    try_out(*(each for each in (model, *traces) if isinstance(each, Path)), engine=engine)
    flow_engine = model.engine if isinstance(model, FlowModel) else load_engine(engine, model, threads)
    trace_engines = [
        each.engine if isinstance(each, TraceModel) else load_beside(engine, each, threads) for each in traces
    ]
    names = Counter(each.checkpoint.name for each in trace_engines)
    if twice := [name for name, count in names.items() if count > 1]:
        raise CheckpointError(f"two trace models are called {twice[0]}: give one of them")
    fit = fitting(trace_engines, flow_engine.checkpoint, required=required, warn=warn)
    thread = EngineThread(f"the engine of {flow_engine.checkpoint.name}", timeout_seconds)
    return Classifier(FlowNetwork(flow_engine, thread), trace_engines=fit, **options)


def chosen_workers(
    model: Path | FlowModel,
    traces: Sequence[Path | TraceModel],
    engine: EngineName,
    classifier: Classifier,
    *,
    processes: int,
    threads: int = 0,
) -> Workers | None:
    """So many processes that classify as `classifier` does, which `open_classifier` made of the same; None for one,
    which is this one. `threads`: of the engines of each, 0 for its share of the cores.

    Raises:
        ValueError: a model is loaded: it computes in this process.
    """
    if processes == 1:
        return None
    directories = [each for each in (model, *traces) if isinstance(each, Path)]
    if len(directories) <= len(traces):
        raise ValueError("processes: a model that is loaded computes in this process: give its name or its directory")
    fit = {each.checkpoint.name for each in classifier.trace_engines}
    recipe = Recipe(
        str(directories[0]),
        [str(each) for each in directories[1:] if read_trace_checkpoint(each, needs=()).name in fit],
        engine,
        threads or max(1, len(os.sched_getaffinity(0)) // processes),
        classifier.min_packets,
        classifier.with_scores,
        classifier.ports,
        classifier.asked_cascade,
    )
    return Workers(recipe, processes)
