"""Evaluation of a run of train-traces: its variants by name, their cross-validation, the figures and the report."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.checkpoint import WEIGHTS, read_checkpoint
from training.calibrate import softmax
from training.config import TrainingError
from training.files import EVALUATION, MODEL, load_weights, write_json
from training.measured import Curve, Measured
from training.page import write_report
from training.plan import Plan
from training.traces.config import TraceTrainingConfig
from training.traces.crossval import FoldOutcome, Report, Variant, cross_validate, outcome_path, read_outcome
from training.traces.data import TraceCorpus, folds_of
from training.traces.embeddings import CHECKPOINT
from training.traces.runs import TraceJob, classes_of, read_corpus, read_trace_run
from training.traces.summary import TraceEvaluation, summarise

MAIN, UNKNOWN = "main", "unknown"
FEW = (1, 2, 5)
VARIANTS = (
    MAIN, "trees-header", "trees-sizes", "no-time", "scratch", "mm4flow-frozen", "mm4flow-tuned", UNKNOWN,
    *(f"{name}-{few}" for few in FEW for name in (MAIN, "trees-header", "trees-sizes", "mm4flow-tuned")),
)  # fmt: skip
"""What can be measured: the run's settings, tree ensembles, without time encoding, without phase 0, with MM4flow's
embedding of payload lengths as shipped or tuned, with devices left out; and with 1, 2, 5 captures of each device."""

DEFAULT_VARIANTS = (MAIN, "trees-header", "trees-sizes")


@dataclass(frozen=True)
class TraceEvaluationSettings:
    """How a run is measured. `tuned` folds chose settings; `left_out` are the labels that `unknown` does not learn."""

    folds: int = 5
    tuned: tuple[int, ...] = ()
    variants: tuple[str, ...] = DEFAULT_VARIANTS
    left_out: tuple[str, ...] = ()


def evaluate_traces(
    features: Sequence[Path],
    run: Path,
    directory: Path,
    settings: TraceEvaluationSettings,
    start: Path | None,
    report: Report = lambda _: None,
) -> TraceEvaluation:
    """Cross-validate the settings of a run, and variants of them; write figures and report into `directory`.

    Raises:
        TrainingError: `run` is no run of train-traces, or a variant has no such name.
        TraceDataError, SplitError: the features have no traces, or a label has one capture.
    """
    todo = _prepare(features, run, directory, settings, start)
    for variant in todo.variants:
        cross_validate(todo.corpus, variant, todo.fold_of, range(settings.folds), directory, todo.weights, report)
    return summarise_directory(todo.corpus, directory, [variant.name for variant in todo.variants], settings)


@dataclass(frozen=True)
class _Todo:
    """What an evaluation measures: variants on the folds `fold_of`, int64 [n], of a corpus; the encoder of phase 0."""

    corpus: TraceCorpus
    fold_of: NDArray[np.int64]
    variants: list[Variant]
    weights: dict[str, Tensor] | None


def _prepare(
    features: Sequence[Path], run: Path, directory: Path, settings: TraceEvaluationSettings, start: Path | None
) -> _Todo:
    record = read_trace_run(run)
    if record.command != "train-traces":
        raise TrainingError(f"{run}: a run of {record.command}, expected one of train-traces")
    torch.set_num_threads(record.config.threads)
    corpus = read_corpus(TraceJob(features, directory, record.config))
    base = classes_of(record.config, corpus)
    weights = load_weights(start / MODEL) if start else None
    names = dict.fromkeys((*DEFAULT_VARIANTS, *settings.variants))
    variants = [variant_of(name, base, settings.left_out) for name in names]
    return _Todo(corpus, folds_of(corpus, settings.folds, 0), variants, weights)


def plan_trace_evaluation(
    features: Sequence[Path], run: Path, directory: Path, settings: TraceEvaluationSettings, start: Path | None
) -> Plan:
    """What `evaluate_traces` would do.

    Raises:
        TrainingError, TraceDataError, SplitError: as `evaluate_traces`.
    """
    todo = _prepare(features, run, directory, settings, start)
    paths = [outcome_path(directory, variant, fold) for variant in todo.variants for fold in range(settings.folds)]
    done = sum(path.is_file() for path in paths)
    facts = [
        f"{len(todo.corpus.traces)} traces of {len(todo.corpus.labels)} labels",
        f"{settings.folds} folds of captures",
        f"variants {', '.join(variant.name for variant in todo.variants)}",
        f"{len(paths) - done} of {len(paths)} folds to train, {done} were measured before",
    ]
    return Plan("evaluate", facts, [directory])


def summarise_directory(
    corpus: TraceCorpus, directory: Path, names: Sequence[str], settings: TraceEvaluationSettings
) -> TraceEvaluation:
    """The figures of the outcomes in a directory, written there as JSON and as a report."""
    outcomes = {name: _outcomes(directory / name) for name in names}
    references = {name: _reference(name) for name in names if _reference(name) in names}
    unknown = UNKNOWN if UNKNOWN in names else None
    figures = summarise(corpus, outcomes, MAIN, settings.folds, settings.tuned, references, unknown, settings.left_out)
    write_json(directory / EVALUATION, figures)
    write_report(directory, _measured(corpus, outcomes, figures))
    return figures


def variant_of(name: str, config: TraceTrainingConfig, left_out: tuple[str, ...] = ()) -> Variant:
    """The variant of this name.

    Raises:
        TrainingError: there is none.
    """
    if name not in VARIANTS:
        raise TrainingError(f"no variant {name!r}: expected one of {', '.join(VARIANTS)}")
    few = re.search(r"-(\d+)$", name)
    variant = Variant(name, config, captures=int(few[1]) if few else 0)
    kind = name.removesuffix(few[0]) if few else name
    changes: dict[str, object] = {}
    if kind.startswith("trees-"):
        changes = {"trees": kind.removeprefix("trees-")}
    elif kind.startswith("mm4flow-"):
        width = 2 * read_checkpoint(CHECKPOINT, (WEIGHTS,)).network.d_model
        network = msgspec.structs.replace(config.network, encoder="mm4flow", feature_size=width)
        changes = {
            "mm4flow": kind.removeprefix("mm4flow-"),
            "config": msgspec.structs.replace(config, network=network),
        }
    elif kind == "no-time":
        network = msgspec.structs.replace(config.network, time_encoding=False)
        changes = {"config": msgspec.structs.replace(config, network=network)}
    elif kind == "scratch":
        changes = {"pretrained": False}
    elif kind == UNKNOWN:
        changes = {"left_out": left_out}
    return msgspec.structs.replace(variant, **changes)


def _reference(name: str) -> str:
    """The trees on header fields that learned from as many captures."""
    few = re.search(r"-\d+$", name)
    return "trees-header" + (few[0] if few else "")


def _outcomes(directory: Path) -> dict[int, FoldOutcome]:
    return {int(path.stem.removeprefix("fold-")): read_outcome(path) for path in sorted(directory.glob("fold-*"))}


def _measured(corpus: TraceCorpus, outcomes: dict[str, dict[int, FoldOutcome]], figures: TraceEvaluation) -> Measured:
    reported = [fold for fold in range(figures.folds) if fold not in figures.tuned]

    def logits(name: str) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        return np.concatenate([outcomes[name][fold].logits for fold in reported])

    rows = np.concatenate([outcomes[MAIN][fold].rows for fold in reported])
    whole = [row for row in figures.variants if row.folds == reported]
    curve = Curve(
        "By flows seen",
        "flows",
        [str(point.flows or "all") for point in figures.prefixes],
        [point.macro_f1 for point in figures.prefixes],
        [point.calibration_error for point in figures.prefixes],
    )
    return Measured(
        title="Devices by their traces",
        unit="trace",
        labels=corpus.labels,
        truth=corpus.truth[rows],
        probabilities=softmax(logits(MAIN), figures.temperature),
        captures=[corpus.traces[row].capture for row in rows],
        threshold=figures.threshold,
        rivals={row.name: logits(row.name).argmax(axis=1) for row in whole if row.name != MAIN},
        curves=[curve],
        notes=["Folds that served to choose settings are left out of every figure."] if figures.tuned else [],
    )
