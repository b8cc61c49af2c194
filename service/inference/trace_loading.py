"""Which trace models serve: those asked for, those that ship, or none."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from tapline.models.checkpoint import (
    ENCODER_ONNX_INT8,
    WEIGHTS,
    Checkpoint,
    CheckpointError,
    TracegramCheckpoint,
    read_trace_checkpoint,
)
from tapline.models.checkpoint_files import refuse_remote
from tapline.service.engines.devices import FIRST_GPU, Device
from tapline.service.engines.engine import EngineName, Precision
from tapline.service.engines.loading import load_trace_engine
from tapline.service.engines.trace_engine import TraceEngine
from tapline.service.inference.repository import ZOO, Repository, UnknownModelError, newest_version

SHIPPED_TRACES = ("iot-devices", "intrusion")
"""The trace models that serve where none is asked for, if they are there."""

NO_TRACES = "none"
"""Given as a trace model, alone: no traces."""


def trace_directories(chosen: Sequence[str], repository: Repository | None = None) -> list[Path]:
    """The checkpoints of the trace models that serve: those `chosen`, each by its name in the repository or among those
    that ship, or by its directory; those that ship where none is chosen.

    Raises:
        CheckpointError: `none` beside others, two models of one name, or no checkpoint at all.
    """
    if NO_TRACES in chosen:
        if len(chosen) > 1:
            raise CheckpointError(f"traces {', '.join(chosen)}: give `{NO_TRACES}` alone, or leave it out")
        return []
    if not chosen:
        return [newest_version(ZOO / name) for name in SHIPPED_TRACES if (ZOO / name).is_dir()]
    found: dict[str, Path] = {}
    for text in chosen:
        refuse_remote(text)
        directory = _directory(text, [repository, Repository()] if repository is not None else [Repository()])
        name = read_trace_checkpoint(directory, needs=()).name
        if name in found:
            raise CheckpointError(
                f"two trace models are called {name}: {found[name]} and {directory}: give one of them"
            )
        found[name] = directory
    return list(found.values())


def _directory(text: str, repositories: Iterable[Repository]) -> Path:
    """The directory of a trace model; a name comes before a directory of that name, which is meant by `./NAME`."""
    for repository in repositories:
        try:
            return repository.find(text)
        except UnknownModelError:
            continue
    if not Path(text).exists():
        shipped = ", ".join(name for name in SHIPPED_TRACES if (ZOO / name).is_dir())
        raise CheckpointError(
            f"{text}: neither the name of a trace model here nor a directory: give a checkpoint directory, one that "
            f"ships ({shipped}), or {NO_TRACES}"
        )
    return newest_version(Path(text))


def load_traces(
    chosen: Sequence[str], engine: EngineName, threads: int = 0, precision: Precision = "float32"
) -> list[TraceEngine]:
    """The engines of `trace_directories`; `precision` as of `load_beside`.

    Raises:
        CheckpointError: a checkpoint is missing or damaged.
        EngineError: the engine is not installed or refuses a model.
    """
    return [load_beside(engine, directory, threads, precision) for directory in trace_directories(chosen)]


def load_beside(
    engine: EngineName,
    directory: Path,
    threads: int = 0,
    precision: Precision = "float32",
    device: Device = FIRST_GPU,
) -> TraceEngine:
    """The engine of a trace checkpoint in the precision of the flow models beside it.

    Its encoder is in float32 where int8 is asked for and the checkpoint has no `encoder.int8.onnx`: one flag is for all
    models, and not every checkpoint has every form.

    Raises:
        CheckpointError, EngineError: as of `load_trace_engine`.
    """
    if precision == "int8" and ENCODER_ONNX_INT8 not in read_trace_checkpoint(directory).files:
        precision = "float32"
    return load_trace_engine(engine, directory, threads, precision, device)


def fitting(
    traces: Iterable[TraceEngine], flows: Checkpoint, *, required: bool, warn: Callable[[str], None]
) -> list[TraceEngine]:
    """The engines for traces that can read the flows that `flows` classifies; `warn` is told why others cannot.

    Raises:
        CheckpointError: one cannot, and they were `required`.
    """
    found = []
    for engine in traces:
        reason = misfit(engine.checkpoint, flows)
        if reason is None:
            found.append(engine)
        elif required:
            raise CheckpointError(reason)
        else:
            warn(f"no traces by {engine.checkpoint.name}: {reason}")
    return found


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
