"""The commands between training and export: evaluate a run of flows or of traces, and calibrate it again."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch
from torch import Tensor

from tapline.models.mm4flow import Mm4flow
from tapline.training.data.corpus import Corpus, make_corpus
from tapline.training.data.labelled_traces import LabelledTrace, TraceCorpus, folds_of
from tapline.training.data.partition import read_partition
from tapline.training.data.samples import features_of
from tapline.training.data.split import check_filled, check_tuned
from tapline.training.data.store import open_samples
from tapline.training.evaluation.cross_validation import (
    Fold,
    Int8Logits,
    cross_validate,
    flow_folds,
    fold_number,
    measure_flows,
    measured_folds,
    parts_of,
    train_fold,
)
from tapline.training.evaluation.evaluation_record import (
    Evaluation,
    EvaluationRecord,
    EvaluationSettings,
    TraceEvaluation,
    read_evaluation,
)
from tapline.training.evaluation.flow_figures import FALSE_REJECTION, evaluate
from tapline.training.evaluation.outcomes import (
    FlowOutcome,
    read_outcome,
    read_outcomes,
    write_outcomes,
)
from tapline.training.evaluation.page import REPORTS, write_report
from tapline.training.evaluation.report import flows_report, traces_report
from tapline.training.evaluation.trace_figures import summarise
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
from tapline.training.flows.flow_record import Run, read_run
from tapline.training.loop.config import TrainingError, steps_of
from tapline.training.loop.plan import Plan
from tapline.training.loop.processes import ALONE, is_first, join_group
from tapline.training.loop.run_files import (
    EVALUATION,
    MODEL,
    OUTCOMES,
    command_of,
    encoders_of,
    load_weights,
    read_encoders,
    scratch_folder,
    write_json,
)
from tapline.training.loop.runs import Job
from tapline.training.loop.scores import Ints
from tapline.training.loop.trainer import Report
from tapline.training.traces.trace_config import TraceTrainingConfig
from tapline.training.traces.trace_record import TraceRun, read_trace_run
from tapline.training.traces.trace_runs import classes_of, read_background, read_corpus

SPLIT_SETTINGS = EvaluationSettings(folds=2, tuned=(0,))
"""On a split, fold 0 is the part for validation, which settings may be chosen on, fold 1 the test."""


@dataclass(frozen=True)
class _Flows:
    """What an evaluation of flows measures: folds of a corpus, with the run's `own` weights or, without, with models
    that are trained from `starts`."""

    run: Run
    corpus: Corpus
    settings: EvaluationSettings
    folds: Iterator[Fold]
    own: Mm4flow | None
    starts: Mapping[str, Tensor] | None


def evaluate_run(
    features: Sequence[Path],
    directory: Path,
    settings: EvaluationSettings,
    encoders: Sequence[Path] = (),
    split: Path | None = None,
    report: Report = lambda _: None,
    int8: Int8Logits | None = None,
) -> Evaluation:
    """Measure a fine-tuning run and write the figures, the outcomes and the report beside it.

    Without a split its settings are cross-validated; with the split that it was trained on, its own weights are
    measured, calibrated on the part for validation. With `int8` the quantised models are measured too.

    Raises:
        TrainingError: the features, encoders or split are not those of the run, or training fails.
        SplitError: a label has too few captures, or the split lacks a part.
    """
    started = time.monotonic()
    todo = _prepare_flows(features, directory, settings, encoders, split, directory)
    run, corpus, outcomes = todo.run, todo.corpus, []
    with nullcontext(ALONE) if todo.own else join_group(run.config.device) as group:
        for fold in todo.folds:
            model = todo.own or train_fold(fold, corpus, run.config, todo.starts, report, group)
            outcomes.append(measure_flows(fold, corpus, run.config, model, int8))
    figures = evaluate(outcomes, corpus.labels, todo.settings)
    if is_first():
        write_outcomes(directory, outcomes)
        record = EvaluationRecord(todo.settings, figures, time.monotonic() - started, run.split)
        _write_figures(directory, run, outcomes, record)
    return figures


def plan_evaluation(
    features: Sequence[Path],
    directory: Path,
    settings: EvaluationSettings,
    encoders: Sequence[Path] = (),
    split: Path | None = None,
) -> Plan:
    """What `evaluate_run` would do, everything checked that can fail before training.

    Raises:
        TrainingError, SplitError: as `evaluate_run`.
    """
    todo = _prepare_flows(features, directory, settings, encoders, split, scratch_folder())
    folds, steps = list(todo.folds), settings.folds * steps_of(todo.run.config)
    learned = sum(len(fold.data.flows) for fold in folds) // len(folds)
    strange = sum(len(fold.strange) for fold in folds)
    facts = [
        "the run's own weights on validation and test"
        if todo.own
        else f"{settings.folds} folds of captures, {steps} steps of training in all",
        f"{len(todo.corpus.labels)} labels",
        f"on average {learned} flows to learn from",
        f"{sum(len(fold.held) for fold in folds)} known and {strange} unknown flows to be measured on",
    ]
    notes = [f"the evaluation in {directory} is replaced"] if (directory / EVALUATION).exists() else []
    return Plan("evaluate", facts, [directory / name for name in (EVALUATION, OUTCOMES, *REPORTS)], notes)


def _prepare_flows(
    features: Sequence[Path],
    directory: Path,
    settings: EvaluationSettings,
    encoders: Sequence[Path],
    split: Path | None,
    scratch: Path,
) -> _Flows:
    run = read_run(directory)
    check_tuned(settings.folds, settings.tuned)
    if split and settings.tuned:
        raise TrainingError("--tuned: a split has no folds: give either --split or --tuned")
    if features_of(features) != run.features or encoders_of(encoders) != run.encoders:
        raise TrainingError(
            f"{directory}: made from other features or encoders: give --features and --encoders of the run"
        )
    if (split.name if split else "") != run.split:
        raise TrainingError(f"{directory}: trained with the split {run.split or 'none'}: give --split as it was then")
    torch.set_num_threads(run.config.threads)
    corpus = make_corpus(open_samples(features, scratch), run.min_captures)
    if split:
        parts = parts_of(corpus, run.config, read_partition(split))
        measured = msgspec.structs.replace(SPLIT_SETTINGS, int8=settings.int8)
        return _Flows(run, corpus, measured, parts, load_model(directory, run), None)
    return _Flows(run, corpus, settings, flow_folds(corpus, run.config, settings), None, read_encoders(encoders))


def load_model(directory: Path, run: Run) -> Mm4flow:
    """The trained network of a run."""
    model = Mm4flow(run.network)
    model.load_state_dict(load_weights(directory / MODEL))
    return model.eval()


def calibrate_run(directory: Path, false_rejection: float = FALSE_REJECTION, *, dry_run: bool = False) -> Evaluation:
    """Fit temperature and unknown threshold again, on the outcomes of the evaluation, at another false-rejection rate.

    With `dry_run` the figures are made and not written.

    Raises:
        TrainingError: the run was not evaluated.
    """
    run, record = read_run(directory), read_evaluation(directory)
    outcomes = read_outcomes(directory)
    if record is None:
        raise TrainingError(f"{directory}: no {EVALUATION}: run `evaluate` first")
    figures = evaluate(outcomes, sorted(count.label for count in run.labels), record.settings, false_rejection)
    if not dry_run:
        _write_figures(directory, run, outcomes, msgspec.structs.replace(record, figures=figures))
    return figures


def _write_figures(directory: Path, run: Run, outcomes: Sequence[FlowOutcome], record: EvaluationRecord) -> None:
    write_json(directory / EVALUATION, record)
    write_report(directory, flows_report(run, outcomes, record))


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
    write_json(directory / EVALUATION, figures)
    write_report(directory, traces_report(corpus, outcomes, figures))
    return figures


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
    fold_of = folds_of(corpus, settings.folds, 0)
    check_filled(settings.folds, fold_of.tolist())
    measured = [measured_folds(corpus, variant, fold_of, directory) for variant in variants]
    return _Todo(corpus, fold_of, variants, measured, background)


def _read_trace_run(run: Path, settings: TraceEvaluationSettings) -> TraceRun:
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
