"""The commands between training and export of flow models: evaluate a run, and calibrate it again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, as_completed
from contextlib import nullcontext
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import msgspec
import torch
from torch import Tensor

from tapline.models.mm4flow import Mm4flow
from tapline.training.data.corpus import Corpus, make_corpus
from tapline.training.data.partition import read_partition
from tapline.training.data.samples import features_of
from tapline.training.data.split import check_tuned
from tapline.training.data.store import open_samples
from tapline.training.data.zeek_services import read_services, services_of
from tapline.training.evaluation.evaluation_record import (
    Evaluation,
    EvaluationRecord,
    EvaluationSettings,
    read_evaluation,
)
from tapline.training.evaluation.flow_figures import evaluate
from tapline.training.evaluation.flow_folds import Fold, corpus_folds, flow_folds, parts_of, train_fold
from tapline.training.evaluation.flow_measured import FALSE_REJECTION
from tapline.training.evaluation.flow_outcomes import Int8Logits, measure_flows
from tapline.training.evaluation.outcomes import FlowOutcome, read_outcomes, write_outcomes
from tapline.training.evaluation.page import REPORTS, write_report
from tapline.training.evaluation.report import flows_report
from tapline.training.evaluation.verdict_file import write_verdicts
from tapline.training.flows.flow_record import Run, read_run
from tapline.training.loop.config import TrainingError, steps_of
from tapline.training.loop.plan import Plan
from tapline.training.loop.processes import ALONE, Group, is_first, join_group, world_size
from tapline.training.loop.run_files import (
    EVALUATION,
    MODEL,
    OUTCOMES,
    VERDICTS,
    encoders_of,
    load_weights,
    read_encoders,
    scratch_folder,
    write_json,
)
from tapline.training.loop.scores import Ints
from tapline.training.loop.trainer import Report

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


@dataclass(frozen=True)
class _Asked:
    """What each process of an evaluation is given; `zeek`: what Zeek's services say of every flow, where asked for."""

    features: Sequence[Path]
    directory: Path
    settings: EvaluationSettings
    encoders: Sequence[Path]
    split: Path | None
    int8: Int8Logits | None
    zeek: Ints | None = None


def evaluate_run(
    features: Sequence[Path],
    directory: Path,
    settings: EvaluationSettings,
    encoders: Sequence[Path] = (),
    split: Path | None = None,
    report: Report = lambda _: None,
    int8: Int8Logits | None = None,
    zeek_logs: Sequence[Path] = (),
    processes: int = 1,
    after_fold: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Measure a fine-tuning run and write the figures, the outcomes and the report beside it.

    Without a split its settings are cross-validated, by captures or by whole corpora; with the split that it was
    trained on, its own weights are measured, calibrated on the part for validation. With `int8` the quantised models
    are measured too; `zeek_logs` are folders of Zeek's logs, whose services are a rival on the captures they are of.
    With more `processes` so many folds are measured at a time, and `after_fold` is called in place of `report`.

    Raises:
        TrainingError: the features, encoders or split are not those of the run, more `processes` are asked for under
            `torchrun`, or training fails.
        SplitError: a label has too few captures, or the split lacks a part.
    """
    if processes > 1 and world_size() > 1:
        raise TrainingError("--processes: `torchrun` has started processes already: leave either out")
    started = time.monotonic()
    asked = _Asked(features, directory, settings, encoders, split, int8)
    todo = _prepare(asked)
    run, corpus = todo.run, todo.corpus
    if zeek_logs:
        asked = replace(asked, zeek=services_of(read_services(zeek_logs), features, corpus.labels))
    if processes > 1:
        outcomes = _in_processes(asked, [fold.number for fold in todo.folds], processes, after_fold)
    else:
        with nullcontext(ALONE) if todo.own else join_group(run.config.device) as group:
            outcomes = [_outcome(todo, fold, asked, report, group) for fold in todo.folds]
    measured = msgspec.structs.replace(todo.settings, folds=len(outcomes))
    figures = evaluate(outcomes, corpus.labels, measured)
    if is_first():
        write_outcomes(directory, outcomes)
        record = EvaluationRecord(measured, figures, time.monotonic() - started, run.split)
        _write_figures(directory, run, outcomes, record)
    return figures


def _outcome(todo: _Flows, fold: Fold, asked: _Asked, report: Report, group: Group) -> FlowOutcome:
    """Train the model of a fold, where the run's own is not what is measured, and measure it."""
    model = todo.own or train_fold(fold, todo.corpus, todo.run.config, todo.starts, report, group)
    outcome = measure_flows(fold, todo.corpus, todo.run.config, model, asked.int8)
    return outcome if asked.zeek is None else replace(outcome, zeek=asked.zeek[fold.held.flows.rows])


def _in_processes(
    asked: _Asked, numbers: Sequence[int], processes: int, after_fold: Callable[[], None]
) -> list[FlowOutcome]:
    """The outcomes of these folds in order, each measured in one of so many processes.

    Raises:
        TrainingError: a process ended.
    """
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        waiting = [pool.submit(_in_process, asked, number) for number in numbers]
        try:
            for done in as_completed(waiting):
                done.result()
                after_fold()
        except BrokenExecutor:
            raise TrainingError("a process that measured a fold ended: is there memory for all --processes?") from None
        finally:
            pool.shutdown(cancel_futures=True)
        return [each.result() for each in waiting]


def _in_process(asked: _Asked, number: int) -> FlowOutcome:
    todo = _prepare(asked)
    with join_group(todo.run.config.device) as group:
        fold = next(fold for fold in todo.folds if fold.number == number)
        return _outcome(todo, fold, asked, lambda _: None, group)


def _prepare(asked: _Asked) -> _Flows:
    return _prepare_flows(asked.features, asked.directory, asked.settings, asked.encoders, asked.split, asked.directory)


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
    folds = list(todo.folds)
    what = "captures" if settings.by == "capture" else f"corpora ({', '.join(fold.corpus for fold in folds)})"
    learned = sum(len(fold.data.flows) for fold in folds) // len(folds)
    strange = sum(len(fold.strange) for fold in folds)
    facts = [
        "the run's own weights on validation and test"
        if todo.own
        else f"{len(folds)} folds of {what}, {len(folds) * steps_of(todo.run.config)} steps of training in all",
        f"{len(todo.corpus.labels)} labels",
        f"on average {learned} flows to learn from",
        f"{sum(len(fold.held) for fold in folds)} known and {strange} unknown flows to be measured on",
    ]
    notes = [f"the evaluation in {directory} is replaced"] if (directory / EVALUATION).exists() else []
    return Plan("evaluate", facts, [directory / name for name in (EVALUATION, OUTCOMES, VERDICTS, *REPORTS)], notes)


def _prepare_flows(
    features: Sequence[Path],
    directory: Path,
    settings: EvaluationSettings,
    encoders: Sequence[Path],
    split: Path | None,
    scratch: Path,
) -> _Flows:
    run = read_run(directory)
    if settings.by == "corpus" and (settings.tuned or split):
        raise TrainingError(
            "--by corpus measures every corpus by a model that never saw it: leave --tuned and --split out"
        )
    check_tuned(settings.folds, settings.tuned)
    if split and settings.tuned:
        raise TrainingError("--tuned: a split has no folds: give either --split or --tuned")
    if features_of(features) != run.features or encoders_of(encoders) != run.encoders:
        raise TrainingError(
            f"{directory}: made from other features or encoders: give --features and --encoders of the run"
        )
    if (split.name if split else "") != run.split:
        raise TrainingError(f"{directory}: trained with the split {run.split or 'none'}: give --split as it was then")
    if run.context is None:
        raise TrainingError(f"{directory}: a run of before flows had a context: run `finetune` again")
    torch.set_num_threads(run.config.threads)
    corpus = make_corpus(open_samples(features, scratch), run.min_captures, run.min_flows)
    if split:
        parts = parts_of(corpus, run.config, read_partition(split))
        measured = msgspec.structs.replace(SPLIT_SETTINGS, int8=settings.int8)
        return _Flows(run, corpus, measured, parts, load_model(directory, run), None)
    folds = (corpus_folds if settings.by == "corpus" else flow_folds)(corpus, run.config, settings)
    return _Flows(run, corpus, settings, folds, None, read_encoders(encoders))


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
    measured = flows_report(run, outcomes, record)
    write_report(directory, measured)
    write_verdicts(directory, measured, how_measured(record), msgspec.to_builtins(run))


def how_measured(record: EvaluationRecord) -> str:
    """How a run was measured, in words: two that were measured otherwise are not compared flow by flow."""
    settings = record.settings
    if record.split:
        return f"the part for the test of the split {record.split}"
    if settings.by == "corpus":
        return "every corpus by models that did not learn it"
    tuned = f" without {', '.join(map(str, settings.tuned))}" if settings.tuned else ""
    return f"cross-validation by capture, {settings.folds} folds{tuned}, seed {settings.seed}"
