"""The command between training and export of trace models: evaluate a run, and variants of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import torch
from torch import Tensor

from tapline.training.data.labelled_traces import LabelledTrace, TraceCorpus, folds_of, name_of
from tapline.training.data.samples import features_of
from tapline.training.data.split import check_filled, check_tuned
from tapline.training.evaluation.evaluation_record import TraceEvaluation, read_trace_evaluation
from tapline.training.evaluation.outcomes import read_outcome
from tapline.training.evaluation.page import write_report
from tapline.training.evaluation.report import traces_report
from tapline.training.evaluation.suspicion import (
    SUSPICION,
    SuspicionFigures,
    SuspicionTask,
    check_suspicion,
    measure_suspicion,
)
from tapline.training.evaluation.trace_figures import summarise
from tapline.training.evaluation.trace_folds import cross_validate, fold_number, measured_folds
from tapline.training.evaluation.variants import (
    DEFAULT_VARIANTS,
    MAIN,
    NO_BACKGROUND,
    UNKNOWN,
    Starts,
    Variant,
    reference_of,
    variant_of,
)
from tapline.training.evaluation.verdict_file import write_verdicts
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
from tapline.training.loop.scores import Ints
from tapline.training.loop.trainer import Report
from tapline.training.traces.trace_config import TraceTrainingConfig
from tapline.training.traces.trace_record import TraceRun, read_trace_run
from tapline.training.traces.trace_runs import classes_of, read_background, read_corpus


@dataclass(frozen=True)
class TraceEvaluationSettings:
    """How a run is measured. `tuned` folds chose settings; `left_out` are the labels that `unknown` does not learn.

    `start` is what the folds' encoders start from: a run of pretrain-packets, or runs of pretrain for an encoder of
    MM4flow; `packets` is the run of pretrain-packets that the variant `tracegram` starts from; `background` are the
    features that the run learned as background; `by_day`: captures of one day are in one fold; `test`: captures whose
    names begin so are measured and all others learned, once, in the place of folds.
    """

    folds: int = 5
    tuned: tuple[int, ...] = ()
    variants: tuple[str, ...] = DEFAULT_VARIANTS
    left_out: tuple[str, ...] = ()
    start: tuple[Path, ...] = ()
    packets: Path | None = None
    background: tuple[Path, ...] = ()
    by_day: bool = False
    test: str = ""


@dataclass(frozen=True)
class _Todo:
    """What an evaluation of traces measures: variants on the folds `fold_of`, int64 [n], of a corpus; for each variant
    the folds that were measured before; the background of the run."""

    corpus: TraceCorpus
    fold_of: Ints
    variants: list[Variant]
    measured: list[frozenset[int]]
    background: list[LabelledTrace]


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
    corpus, names = todo.corpus, [variant.name for variant in todo.variants]
    for variant in todo.variants:
        cross_validate(corpus, variant, todo.fold_of, _wanted(variant, settings), directory, report)
    outcomes = {
        name: {fold_number(path): read_outcome(path) for path in sorted((directory / name).glob("fold-*"))}
        for name in names
    }
    references = {name: reference_of(name) for name in names if reference_of(name) in names}
    unknown = UNKNOWN if UNKNOWN in names else None
    folds, tuned, left_out = settings.folds, settings.tuned, settings.left_out
    figures = summarise(corpus, outcomes, MAIN, folds, tuned, references, unknown, left_out, todo.background)
    figures = msgspec.structs.replace(figures, by_day=settings.by_day, test=settings.test)
    write_json(directory / EVALUATION, figures)
    measured = traces_report(corpus, outcomes, figures)
    write_report(directory, measured)
    write_verdicts(directory, measured, _how_measured(settings), msgspec.to_builtins(read_trace_run(run)))
    return figures


def _how_measured(settings: TraceEvaluationSettings) -> str:
    if settings.test:
        return f"captures of {settings.test}..., all others learned"
    tuned = f" without {', '.join(map(str, settings.tuned))}" if settings.tuned else ""
    return f"cross-validation by {_unit(settings)}, {settings.folds} folds{tuned}"


def evaluate_suspicion(
    features: Sequence[Path],
    run: Path,
    evaluation: Path,
    background: Sequence[Path],
    laboratories: Sequence[str],
    report: Report = lambda _: None,
) -> SuspicionFigures:
    """Measure the suspicion of a run beside what `evaluate_traces` measured, and write the figures there.

    Raises:
        TrainingError: `run` is no run of train-traces, `evaluation` none of evaluate-traces, two sources have one name,
            or as `measure_suspicion`.
        TraceDataError: the features have no traces, or a source has those of fewer than two captures.
    """
    figures = measure_suspicion(_suspicion_task(features, run, evaluation, background, laboratories), report)
    write_json(evaluation / SUSPICION, figures)
    return figures


def plan_suspicion(
    features: Sequence[Path], run: Path, evaluation: Path, background: Sequence[Path], laboratories: Sequence[str]
) -> Plan:
    """What `evaluate_suspicion` would do.

    Raises:
        TrainingError, TraceDataError: as `evaluate_suspicion`.
    """
    task = _suspicion_task(features, run, evaluation, background, laboratories)
    check_suspicion(task)
    sources, labels = len(task.sources), len(task.corpus.labels)
    facts = [
        f"{len(task.corpus.traces)} traces of {labels} labels",
        f"{len(task.corpus.rare)} traces of labels never learned",
        f"{sum(map(len, task.sources.values()))} traces of {sources} sources",
        f"{sources + labels + len(laboratories)} models to train",
    ]
    return Plan("evaluate", facts, [evaluation / SUSPICION])


def _suspicion_task(
    features: Sequence[Path], run: Path, evaluation: Path, background: Sequence[Path], laboratories: Sequence[str]
) -> SuspicionTask:
    record = read_trace_run(run, "train-traces")
    torch.set_num_threads(record.config.threads)
    temperature = round(read_trace_evaluation(evaluation).temperature, 4)  # as the checkpoint will have it
    corpus = read_corpus(Job(features, evaluation, record.config))
    sources = {
        name: read_background(Job(features, evaluation, record.config, background=[path]), corpus)
        for name, path in zip(features_of(background), background, strict=True)
    }
    return SuspicionTask(corpus, sources, classes_of(record.config, corpus), temperature, laboratories)


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
        f"captures of {settings.test}... to measure"
        if settings.test
        else f"{settings.folds} folds of {_unit(settings)}s",
        f"variants {', '.join(variant.name for variant in todo.variants)}",
        f"{folds - done} of {folds} folds to train, {done} were measured before",
    ]
    return Plan("evaluate", facts, [directory])


def _prepare(features: Sequence[Path], run: Path, directory: Path, settings: TraceEvaluationSettings) -> _Todo:
    record = _read_trace_run(run, settings)
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
    fold_of = _fold_of(corpus, settings)
    measured = [measured_folds(corpus, variant, fold_of, directory) for variant in variants]
    return _Todo(corpus, fold_of, variants, measured, background)


def _fold_of(corpus: TraceCorpus, settings: TraceEvaluationSettings) -> Ints:
    """The fold of each trace, int64 [n]; with a test it is the only one, and what is learned is in none, -1."""
    if not settings.test:
        fold_of = folds_of(corpus, settings.folds, 0, by_day=settings.by_day)
        check_filled(settings.folds, fold_of.tolist(), _unit(settings))
        return fold_of
    is_test = np.array([name_of(trace.capture).startswith(settings.test) for trace in corpus.traces])
    if not is_test.any():
        raise TrainingError(f"--test {settings.test}: no capture has a name that begins so")
    if unlearned := set(corpus.truth.tolist()) - set(corpus.truth[~is_test].tolist()):
        label = corpus.labels[min(unlearned)]
        raise TrainingError(f"--test {settings.test}: {label} has no other captures to be learned from: leave it out")
    return np.where(is_test, 0, -1)


def _unit(settings: TraceEvaluationSettings) -> str:
    """What is in one fold as a whole."""
    return "day" if settings.by_day else "capture"


def _read_trace_run(run: Path, settings: TraceEvaluationSettings) -> TraceRun:
    """The record of the run, which learned from what the settings name."""
    record = read_trace_run(run, "train-traces")
    if record.config.mm4flow is not None and encoders_of(settings.start) != record.start:
        raise TrainingError(f"{run}: learned from other encoders: give --start what train-traces had as --encoders")
    if record.config.network.encoder == "context" and settings.start:
        raise TrainingError(f"{run}: it has no encoder: leave --start out")
    if sorted(features_of(settings.background).values()) != sorted(record.background.values()):
        had = f"another background, {', '.join(record.background)}" if record.background else "no background"
        raise TrainingError(f"{run}: learned {had}: give as --background what train-traces had")
    return record


def _check(settings: TraceEvaluationSettings, corpus: TraceCorpus) -> None:
    """Refuse what would fail, or say nothing, only after everything was trained."""
    check_tuned(settings.folds, settings.tuned)
    if settings.test and (settings.folds > 1 or settings.by_day):
        raise TrainingError("--test is in the place of folds: leave out --folds, --tuned and --by-day")
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
