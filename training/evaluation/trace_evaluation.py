"""Evaluation of a run of train-traces: its variants by name, their cross-validation, the figures and the report."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tapline.models.checkpoint import TracegramNetwork
from tapline.training.data.labelled_traces import LabelledTrace, TraceCorpus, folds_of, look_alike
from tapline.training.data.samples import features_of
from tapline.training.data.split import check_filled, check_tuned
from tapline.training.evaluation.calibration import softmax
from tapline.training.evaluation.measured import Curve, Measured
from tapline.training.evaluation.page import write_report
from tapline.training.evaluation.trace_cross_validation import (
    FoldOutcome,
    Variant,
    cross_validate,
    measured_folds,
    read_outcome,
)
from tapline.training.evaluation.trace_figures import TraceEvaluation, summarise
from tapline.training.loop.config import TrainingError
from tapline.training.loop.plan import Plan
from tapline.training.loop.run_files import (
    EVALUATION,
    MODEL,
    command_of,
    encoders_of,
    load_weights,
    read_encoders,
    write_json,
)
from tapline.training.loop.runs import Job
from tapline.training.loop.trainer import Report
from tapline.training.traces.flow_embeddings import flow_embedding_width
from tapline.training.traces.trace_config import JOINT_CONTENT, TraceTrainingConfig, encoder_features
from tapline.training.traces.trace_record import TraceRun, read_trace_run
from tapline.training.traces.trace_runs import classes_of, read_background, read_corpus

MAIN, UNKNOWN, TREES = "main", "unknown", ("trees-header", "trees-sizes")
NO_BACKGROUND = "no-background"
PUBLISHED = ("tracegram", "tracegram-scratch")
FEW = (1, 2, 5)
VARIANTS = (
    MAIN, *TREES, "no-time", "scratch", "payload", *PUBLISHED, "frozen", UNKNOWN, NO_BACKGROUND,
    *(f"{name}-{few}" for few in FEW for name in (MAIN, "scratch", *TREES)),
)  # fmt: skip
"""What can be measured: the run's settings, tree ensembles, without time encoding, without pre-training, with content
bytes (own addresses masked), the published encoder with and without pre-training, the flow checkpoint's embedding of
payload lengths as it ships, with devices left out, without the run's background; and with 1, 2, 5 captures of each
device. Only `main` and `unknown` learn the run's background: the others compare what is read, and how."""

DEFAULT_VARIANTS = (MAIN, *TREES)


@dataclass(frozen=True)
class TraceEvaluationSettings:
    """How a run is measured. `tuned` folds chose settings; `left_out` are the labels that `unknown` does not learn.

    `start` is what the folds' encoders start from: a run of pretrain-packets, or runs of pretrain for an encoder of
    MM4flow; `packets` is the run of pretrain-packets that the variant `tracegram` starts from; `background` are the
    features that the run learned as background.
    """

    folds: int = 5
    tuned: tuple[int, ...] = ()
    variants: tuple[str, ...] = DEFAULT_VARIANTS
    left_out: tuple[str, ...] = ()
    start: tuple[Path, ...] = ()
    packets: Path | None = None
    background: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Starts:
    """Pre-trained weights: of the encoder of the run that is measured, and of the published one."""

    main: Mapping[str, Tensor] | None = None
    packets: Mapping[str, Tensor] | None = None


def evaluate_traces(
    features: Sequence[Path],
    run: Path,
    directory: Path,
    settings: TraceEvaluationSettings,
    report: Report = lambda _: None,
) -> TraceEvaluation:
    """Cross-validate the settings of a run, and variants of them; write figures and report into `directory`.

    Raises:
        TrainingError: `run` is no run of train-traces, a variant has no such name, the settings contradict each other
            or the traces, or `directory` has folds that were measured on something else.
        TraceDataError, SplitError: the features have no traces, or a label has one capture.
    """
    todo = _prepare(features, run, directory, settings)
    for variant in todo.variants:
        cross_validate(todo.corpus, variant, todo.fold_of, _wanted(variant, settings), directory, report)
    names = [variant.name for variant in todo.variants]
    return summarise_directory(todo.corpus, directory, names, settings, todo.background)


@dataclass(frozen=True)
class _Todo:
    """What an evaluation measures: variants on the folds `fold_of`, int64 [n], of a corpus; for each variant the folds
    that were measured before; the background of the run."""

    corpus: TraceCorpus
    fold_of: NDArray[np.int64]
    variants: list[Variant]
    measured: list[frozenset[int]]
    background: list[LabelledTrace]


def _prepare(features: Sequence[Path], run: Path, directory: Path, settings: TraceEvaluationSettings) -> _Todo:
    record = _read_run(run, settings)
    torch.set_num_threads(record.config.threads)
    job = Job(features, directory, record.config, background=settings.background)
    corpus = read_corpus(job)
    if corpus.labels != record.labels:
        raise TrainingError(f"{run}: learned other labels than these features have: give the features of the run")
    _check(settings, corpus)
    base = classes_of(record.config, corpus)
    starts = _starts(base, settings)
    names = dict.fromkeys((*DEFAULT_VARIANTS, *settings.variants))
    background = read_background(job, corpus)
    variants = [variant_of(name, base, settings.left_out, starts, background) for name in names]
    fold_of = folds_of(corpus, settings.folds, 0)
    check_filled(settings.folds, fold_of.tolist())
    measured = [measured_folds(corpus, variant, fold_of, directory) for variant in variants]
    return _Todo(corpus, fold_of, variants, measured, background)


def _read_run(run: Path, settings: TraceEvaluationSettings) -> TraceRun:
    """The record of the run, which learned from what the settings name."""
    record = read_trace_run(run, "train-traces")
    if record.config.mm4flow is not None and encoders_of(settings.start) != record.start:
        raise TrainingError(f"{run}: learned from other encoders: give --start what train-traces had as --encoders")
    if sorted(features_of(settings.background).values()) != sorted(record.background.values()):
        had = f"another background, {', '.join(record.background)}" if record.background else "no background"
        raise TrainingError(f"{run}: learned {had}: give as --background what train-traces had")
    return record


def _check(settings: TraceEvaluationSettings, corpus: TraceCorpus) -> None:
    """Refuse what would fail, or say nothing, only after everything was trained."""
    check_tuned(settings.folds, settings.tuned)
    if (UNKNOWN in settings.variants) != bool(settings.left_out):
        raise TrainingError(
            f"--variant {UNKNOWN} and --left-out go together: it learns all labels but those left out, and is measured "
            "on these"
        )
    if NO_BACKGROUND in settings.variants and not settings.background:
        raise TrainingError(f"--variant {NO_BACKGROUND}: the run has no background: leave it out")
    if strange := sorted(set(settings.left_out) - set(corpus.labels)):
        raise TrainingError(f"--left-out {strange[0]}: no such label: expected one of {', '.join(corpus.labels)}")
    if len(set(corpus.labels) - set(settings.left_out)) < 2:
        raise TrainingError("--left-out: fewer than two labels remain to be learned: leave out fewer")


def _wanted(variant: Variant, settings: TraceEvaluationSettings) -> list[int]:
    """The folds to train: tuned ones are in no figure but the calibration of what is measured."""
    return [fold for fold in range(settings.folds) if variant.name == MAIN or fold not in settings.tuned]


def plan_trace_evaluation(
    features: Sequence[Path], run: Path, directory: Path, settings: TraceEvaluationSettings
) -> Plan:
    """What `evaluate_traces` would do.

    Raises:
        TrainingError, TraceDataError, SplitError: as `evaluate_traces`.
    """
    todo = _prepare(features, run, directory, settings)
    wanted = [frozenset(_wanted(variant, settings)) for variant in todo.variants]
    folds = sum(map(len, wanted))
    done = sum(len(some & before) for some, before in zip(wanted, todo.measured, strict=True))
    facts = [
        f"{len(todo.corpus.traces)} traces of {len(todo.corpus.labels)} labels",
        *([f"{len(todo.background)} background traces"] if todo.background else []),
        f"{settings.folds} folds of captures",
        f"variants {', '.join(variant.name for variant in todo.variants)}",
        f"{folds - done} of {folds} folds to train, {done} were measured before",
    ]
    return Plan("evaluate", facts, [directory])


def _starts(config: TraceTrainingConfig, settings: TraceEvaluationSettings) -> Starts:
    if config.mm4flow is not None:
        main = read_encoders(settings.start)
    elif len(settings.start) > 1:
        raise TrainingError("an encoder of Tracegram starts from one run of pretrain-packets: give one --start")
    else:
        main = _pretrained(settings.start[0]) if settings.start else None
    return Starts(main, _pretrained(settings.packets) if settings.packets else None)


def _pretrained(run: Path) -> dict[str, Tensor]:
    """An encoder that has read no label: one of a later phase knows those of the traces that a fold measures."""
    if (found := command_of(run)) != "pretrain-packets":
        raise TrainingError(f"{run}: {f'a run of {found}' if found else 'no run'}, expected one of pretrain-packets")
    return load_weights(run / MODEL)


def summarise_directory(
    corpus: TraceCorpus,
    directory: Path,
    names: Sequence[str],
    settings: TraceEvaluationSettings,
    background: Sequence[LabelledTrace] = (),
) -> TraceEvaluation:
    """The figures of the outcomes in a directory, written there as JSON and as a report."""
    outcomes = {name: _outcomes(directory / name) for name in names}
    references = {name: _reference(name) for name in names if _reference(name) in names}
    unknown = UNKNOWN if UNKNOWN in names else None
    figures = summarise(
        corpus, outcomes, MAIN, settings.folds, settings.tuned, references, unknown, settings.left_out, background
    )
    write_json(directory / EVALUATION, figures)
    write_report(directory, _measured(corpus, outcomes, figures))
    return figures


def variant_of(
    name: str,
    config: TraceTrainingConfig,
    left_out: tuple[str, ...] = (),
    starts: Starts | None = None,
    background: Sequence[LabelledTrace] = (),
) -> Variant:
    """The variant of this name; `main` and `unknown` alone learn the background.

    Raises:
        TrainingError: there is none, or it needs a pre-trained encoder that is not given.
    """
    if name not in VARIANTS:
        raise TrainingError(f"no variant {name!r}: expected one of {', '.join(VARIANTS)}")
    starts = starts or Starts()
    few = re.search(r"-(\d+)$", name)
    variant = Variant(name, config, starts.main, captures=int(few[1]) if few else 0)
    kind = name.removesuffix(few[0]) if few else name
    if kind in TREES:
        return replace(variant, trees="header" if kind == "trees-header" else "sizes")
    if kind == "tracegram" and starts.packets is None:
        raise TrainingError("the variant tracegram is pre-trained: give its run of pretrain-packets")
    plain = TraceTrainingConfig(trace=config.trace, seed=config.seed, threads=config.threads, device=config.device)
    network = config.network
    changes: dict[str, dict[str, Any]] = {
        "no-time": {"config": msgspec.structs.replace(config, network=_with(network, time_encoding=False))},
        "scratch": {"start": None},
        "tracegram": {"config": _sized(plain, network.n_class), "start": starts.packets},
        "tracegram-scratch": {"config": _sized(plain, network.n_class), "start": None},
        UNKNOWN: {"left_out": left_out, "background": background},
        MAIN: {"background": () if few else background},
    }
    if kind == "payload":
        if config.mm4flow is None:
            raise TrainingError("the variant payload is of a run with an MM4flow encoder")
        reads = encoder_features(config.mm4flow.features.payload_lengths, JOINT_CONTENT)
        content = msgspec.structs.replace(config.mm4flow, features=reads)
        return replace(variant, config=msgspec.structs.replace(config, mm4flow=content))
    if kind == "frozen":
        frozen = _with(plain.network, encoder="mm4flow", feature_size=flow_embedding_width(), n_class=network.n_class)
        return replace(variant, frozen=True, config=msgspec.structs.replace(plain, network=frozen))
    return replace(variant, **changes.get(kind, {}))


def _with(network: TracegramNetwork, **changes: object) -> TracegramNetwork:
    return msgspec.structs.replace(network, **changes)


def _sized(config: TraceTrainingConfig, classes: int) -> TraceTrainingConfig:
    return msgspec.structs.replace(config, network=_with(config.network, n_class=classes))


def _reference(name: str) -> str:
    """The trees on header fields that learned from as many captures."""
    few = re.search(r"-\d+$", name)
    return "trees-header" + (few[0] if few else "")


def _outcomes(directory: Path) -> dict[int, FoldOutcome]:
    return {int(path.stem.removeprefix("fold-")): read_outcome(path) for path in sorted(directory.glob("fold-*"))}


def _measured(corpus: TraceCorpus, outcomes: dict[str, dict[int, FoldOutcome]], figures: TraceEvaluation) -> Measured:
    reported = [fold for fold in range(figures.folds) if fold not in figures.tuned]
    labels = len(corpus.labels)  # columns: background may follow

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
        title="Devices by their traces" if look_alike(corpus.labels) else "Labels of traces",
        unit="trace",
        labels=corpus.labels,
        truth=corpus.truth[rows],
        probabilities=softmax(logits(MAIN), figures.temperature)[:, :labels],
        captures=[corpus.traces[row].capture for row in rows],
        threshold=figures.threshold,
        rivals={row.name: logits(row.name)[:, :labels].argmax(axis=1) for row in whole if row.name != MAIN},
        curves=[curve],
        notes=["Folds that served to choose settings are left out of every figure."] if figures.tuned else [],
    )
