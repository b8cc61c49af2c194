"""The commands after training: evaluate a run, calibrate it again, export it, write its card and its report."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch

from tapline.models.checkpoint import Calibration as CalibrationRecord
from tapline.models.checkpoint import Checkpoint, Unknown
from tapline.models.mm4flow import Mm4flow
from tapline.training.data.corpus import Corpus, make_corpus, make_training_set
from tapline.training.data.partition import PARTS, Partition, read_partition
from tapline.training.data.samples import features_of
from tapline.training.data.split import SplitError, check_tuned, halve_labels
from tapline.training.data.store import open_samples
from tapline.training.evaluation.evaluation_record import EvaluationRecord, read_evaluation
from tapline.training.evaluation.flow_card import render_card
from tapline.training.evaluation.flow_cross_validation import (
    EvaluationSettings,
    Fold,
    FoldOutcome,
    cross_validate,
    folds_of,
    measure,
)
from tapline.training.evaluation.flow_figures import FALSE_REJECTION, Evaluation, evaluate
from tapline.training.evaluation.flow_report import write_flow_report
from tapline.training.evaluation.outcomes import read_outcomes, write_outcomes
from tapline.training.evaluation.page import REPORTS
from tapline.training.export.checkpoint_export import export, serving_weights
from tapline.training.flows.flow_record import Run, read_run
from tapline.training.loop.config import TrainingError, steps_of
from tapline.training.loop.plan import Plan
from tapline.training.loop.processes import is_first, join_group
from tapline.training.loop.run_files import (
    EVALUATION,
    MODEL,
    OUTCOMES,
    encoders_of,
    load_weights,
    read_encoders,
    scratch_folder,
    write_json,
)
from tapline.training.loop.trainer import StepReport

SPLIT_SETTINGS = EvaluationSettings(folds=2, tuned=(0,))
"""On a split, fold 0 is the part for validation, which settings may be chosen on, fold 1 the test."""


def evaluate_run(
    features: Sequence[Path],
    directory: Path,
    settings: EvaluationSettings,
    encoders: Sequence[Path] = (),
    split: Path | None = None,
    report: Callable[[StepReport], None] = lambda _: None,
) -> Evaluation:
    """Measure a fine-tuning run and write the figures, the outcomes and the report beside it.

    Without a split its settings are cross-validated; with the split that it was trained on, its own weights are
    measured, calibrated on the part for validation.

    Raises:
        TrainingError: the features, encoders or split are not those of the run, or training fails.
        SplitError: a label has too few captures, or the split lacks a part.
    """
    run = _checked_run(features, directory, encoders, split, settings)
    torch.set_num_threads(run.config.threads)
    started = time.monotonic()
    corpus = make_corpus(open_samples(features, directory), run.min_captures)
    if split:
        model = load_model(directory, run)
        outcomes = [
            measure(part, corpus, run.config, model, int8=settings.int8)
            for part in _parts(corpus, run, read_partition(split))
        ]
        settings = msgspec.structs.replace(SPLIT_SETTINGS, int8=settings.int8)
    else:
        with join_group(run.config.device) as group:
            outcomes = cross_validate(corpus, run.config, settings, read_encoders(encoders), report, group)
    figures = evaluate(outcomes, corpus.labels, settings)
    if is_first():
        write_outcomes(directory, outcomes)
        record = EvaluationRecord(settings, figures, time.monotonic() - started, run.split)
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
    run = _checked_run(features, directory, encoders, split, settings)
    corpus = make_corpus(open_samples(features, scratch_folder()), run.min_captures)
    if split:
        load_model(directory, run)
        folds = list(_parts(corpus, run, read_partition(split)))
        how = "the run's own weights on validation and test"
    else:
        read_encoders(encoders)
        folds = list(folds_of(corpus, run.config, settings))
        how = f"{settings.folds} folds of captures, {settings.folds * steps_of(run.config)} steps of training in all"
    learned = sum(len(fold.data.flows) for fold in folds) // len(folds)
    strange = sum(len(fold.strange) for fold in folds)
    facts = [
        how,
        f"{len(corpus.labels)} labels",
        f"on average {learned} flows to learn from",
        f"{sum(len(fold.held) for fold in folds)} known and {strange} unknown flows to be measured on",
    ]
    notes = [f"the evaluation in {directory} is replaced"] if (directory / EVALUATION).exists() else []
    return Plan("evaluate", facts, [directory / name for name in (EVALUATION, OUTCOMES, *REPORTS)], notes)


def _checked_run(
    features: Sequence[Path],
    directory: Path,
    encoders: Sequence[Path],
    split: Path | None,
    settings: EvaluationSettings,
) -> Run:
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
    return run


def _parts(corpus: Corpus, run: Run, partition: Partition) -> Iterator[Fold]:
    """Validation and test of a split, as folds of which the first may have served to choose settings."""
    background, unseen = halve_labels(corpus.rare, 0)
    known, strange = corpus.known(), corpus.samples.take(corpus.samples.with_label(unseen))
    parts, strange_parts = partition.parts(known), partition.parts(strange)
    data = make_training_set(corpus, corpus.samples.take(partition.parts(corpus.samples) == 0), background, run.config)
    for fold, part in enumerate((1, 2)):
        held = known.take(parts == part)
        if not len(held):
            raise SplitError(
                f"the split has no known flow for {PARTS[part]}: split again, with more captures of each label; or "
                "train and evaluate without --split"
            )
        yield Fold(fold, data, bool(background), held, strange.take(strange_parts == part))


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
    figures = evaluate(outcomes, _labels(run), record.settings, false_rejection)
    if not dry_run:
        _write_figures(directory, run, outcomes, msgspec.structs.replace(record, figures=figures))
    return figures


def _labels(run: Run) -> list[str]:
    return sorted(count.label for count in run.labels)


def _write_figures(directory: Path, run: Run, outcomes: Sequence[FoldOutcome], record: EvaluationRecord) -> None:
    write_json(directory / EVALUATION, record)
    write_flow_report(directory, run, outcomes, record)


def manifest_of(directory: Path, name: str, version: str) -> Checkpoint:
    """The manifest that a run is exported with, calibrated where the run was evaluated.

    Raises:
        TrainingError: the run is not a whole fine-tuning run.
    """
    run, record = read_run(directory), read_evaluation(directory)
    background = run.network.n_class > len(run.labels)
    return Checkpoint(
        kind="mm4flow",
        name=name,
        version=version,
        network=run.network,
        labels=_labels(run),
        features=run.config.features,
        calibration=CalibrationRecord(round(record.figures.temperature, 4)) if record else CalibrationRecord(),
        unknown=Unknown(round(record.figures.threshold, 4) if record else 0.0, background),
        metrics=_metrics(record),
        provenance={"features": run.features, "encoders": run.encoders, "versions": run.versions},
    )


def card_of(directory: Path, manifest: Checkpoint, notes: str) -> str:
    """The card of a run."""
    run, record = read_run(directory), read_evaluation(directory)
    return render_card(manifest, run.labels, run.background, run.config, record, run.hardware, run.seconds, notes)


def export_run(
    directory: Path, out: Path, name: str, version: str, notes: str, int8_features: Sequence[Path] = ()
) -> Checkpoint:
    """Write a run as the checkpoint directory `out`.

    With `int8_features` a quantised model is written too, and what it says of the labelled flows there is compared
    with what the whole model says; the comparison is in the manifest's metrics and on the card.

    Raises:
        TrainingError: the run is not a whole fine-tuning run.
    """
    manifest = manifest_of(directory, name, version)
    weights = serving_weights({key: value.numpy() for key, value in load_weights(directory / MODEL).items()})
    samples = None
    if int8_features:
        stored = open_samples(int8_features, scratch_folder())
        samples = stored.take(stored.with_label(manifest.labels))
        if not len(samples):
            raise TrainingError("--int8: no flow with a label of the run in these features")
    return export(out, manifest, weights, lambda whole: card_of(directory, whole, notes), samples)


def _metrics(record: EvaluationRecord | None) -> dict[str, Any]:
    return {} if record is None else {"cross_validation" if not record.split else "split": msgspec.to_builtins(record)}
