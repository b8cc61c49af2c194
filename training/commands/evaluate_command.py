"""The command evaluate: of a run of flows, and of any checkpoint on one's own captures. Options and output."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import typer

from tapline.models.foreign_text import clean
from tapline.training.checking.check_report import check_lines
from tapline.training.checking.checkpoint_check import CheckSettings, check_checkpoint, plan_check
from tapline.training.checking.out_directory import out_notes
from tapline.training.checking.own_captures import LabelSource
from tapline.training.checking.verdict_table import VERDICT_TABLE
from tapline.training.commands import evaluate_options as asked
from tapline.training.commands import options
from tapline.training.data.label_table import TOLERANCE_SECONDS
from tapline.training.evaluation.evaluation_record import Evaluation, EvaluationSettings
from tapline.training.evaluation.flow_evaluation import evaluate_run, plan_evaluation
from tapline.training.evaluation.flow_measured import OWN
from tapline.training.evaluation.page import REPORTS
from tapline.training.export.quantise import int8_logits
from tapline.training.flows.flow_record import read_run
from tapline.training.loop.config import steps_of
from tapline.training.loop.processes import is_first
from tapline.training.loop.run_files import EVALUATION
from tapline.training.loop.trainer import StepReport


def register(app: typer.Typer, panel: str) -> None:
    """Add the command to `tapline-train`."""
    app.command("evaluate", rich_help_panel=panel)(evaluate_command)


def evaluate_command(
    context: typer.Context,
    run: asked.Run = None,
    features: asked.Features = None,
    encoders: asked.Encoders = None,
    split: asked.Split = None,
    folds: asked.Folds = 5,
    by: asked.By = "capture",
    seed: asked.Seed = 0,
    tuned: asked.Tuned = None,
    int8: asked.Int8 = False,
    zeek_logs: asked.ZeekLogs = None,
    processes: asked.Processes = 1,
    checkpoint: asked.CheckpointPlace = "",
    captures: asked.Captures = None,
    labels: asked.Labels = None,
    column: asked.Column = "",
    confidence: asked.Confidence = None,
    label_from_folder: asked.LabelFromFolder = False,
    map_: asked.Map = None,
    predictions: asked.Predictions = None,
    tolerance: asked.Tolerance = TOLERANCE_SECONDS,
    time_shift: asked.TimeShift = 0.0,
    ports: asked.Ports = "on",
    threads: asked.Threads = 0,
    out: asked.Out = None,
    dry_run: options.DryRun = False,
) -> None:
    """Measure a run and calibrate it, or any checkpoint on labelled captures of one's own; writes the report.

    A run (--run) is cross-validated by capture or corpus, or measured on its split. A corpus is a folder that was given
    to `extract`. With --by corpus each is left out once (--folds is not read), and figures are of all flows together,
    without those that have their like among the flows learned from.

    A checkpoint (--checkpoint) is measured as it is served; nothing is trained or calibrated.
    """
    asked.check_way(context, run, checkpoint)
    if run is None:
        source = LabelSource(
            labels, column, label_from_folder, tolerance, time_shift, predictions or (), confidence or ()
        )
        check = CheckSettings(checkpoint, captures or (), source, map_ or (), ports == "on", threads)
        _of_checkpoint(check, asked.needed(out, "--out"), dry_run=dry_run)
        return
    given = asked.needed(features, "--features")
    settings = EvaluationSettings(folds, seed, tuple(tuned or ()), int8, by)
    if dry_run:
        options.say_plan(plan_evaluation(given, run, settings, encoders or (), split))
    else:
        _of_run(given, run, settings, encoders or (), split, zeek_logs or (), processes)


def _of_run(
    features: Sequence[Path],
    run: Path,
    settings: EvaluationSettings,
    encoders: Sequence[Path],
    split: Path | None,
    zeek_logs: Sequence[Path],
    processes: int,
) -> None:
    config = read_run(run).config
    with options.progress_bar() as progress:
        total = None if settings.by == "corpus" else settings.folds * steps_of(config)
        task = progress.add_task("steps of all folds", total=total)

        def after_step(_: StepReport) -> None:
            progress.advance(task)

        figures = evaluate_run(
            features, run, settings, encoders, split, after_step, int8_logits if settings.int8 else None, zeek_logs,
            processes, lambda: progress.advance(task, steps_of(config)),
        )  # fmt: skip
    if is_first():
        show(figures)
        typer.echo(f"figures and report: {run / EVALUATION}, {run / REPORTS[1]}")


def _of_checkpoint(check: CheckSettings, out: Path, *, dry_run: bool) -> None:
    if dry_run:
        options.say_plan(plan_check(check, out))
        return
    replaced = out_notes(out)
    with options.progress_bar() as progress:
        task = progress.add_task("captures", total=None)
        record = check_checkpoint(check, out, lambda count: progress.advance(task, count))
    for capture, warning in record.warnings.items():
        options.say(clean(f"{capture}: {warning}"))
    for line in check_lines(record):
        typer.echo(line)
    for note in replaced:
        typer.echo(f"note: {note}")
    typer.echo(f"figures and report: {out / EVALUATION}, {out / REPORTS[1]}; each verdict: {out / VERDICT_TABLE}")


def show(figures: Evaluation) -> None:
    """Say the figures of a run."""
    interval = figures.macro_f1_interval
    unknown = "-" if figures.unknown_auroc is None else f"{figures.unknown_auroc:.3f}"
    ports = "" if figures.macro_f1_ports is None else f" port table {figures.macro_f1_ports:.3f},"
    quantised = "" if figures.macro_f1_int8 is None else f" int8 {figures.macro_f1_int8:.3f},"
    typer.echo(
        f"macro-F1 {figures.macro_f1:.3f} ({interval.low:.3f} to {interval.high:.3f}),{quantised}{ports} trees "
        f"{figures.macro_f1_trees:.3f}, forest {figures.macro_f1_forest:.3f}, majority "
        f"{figures.macro_f1_majority:.3f}; calibration error {figures.calibration_error:.3f}; unknown AUROC {unknown}"
    )
    if (without := figures.without_ports) is not None:
        own = ", ".join(
            f"{model.name.removeprefix(f'{OWN}, ')} {model.macro_f1:.3f}"
            for model in figures.models
            if model.name.startswith(f"{OWN}, ")
        )
        typer.echo(f"  macro-F1 with {own}; without ports calibration error {without.calibration_error:.3f}")
    for fold in (fold for fold in figures.folds if fold.corpus and fold.macro_f1 is not None):
        typer.echo(
            f"  without {fold.corpus}: macro-F1 {fold.macro_f1:.3f}, port table {fold.macro_f1_ports or 0:.3f}, "
            f"trees {fold.macro_f1_trees or 0:.3f}; {fold.flows} flows of {fold.captures} captures"
        )
