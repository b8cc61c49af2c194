"""The command evaluate: of a run of flows, and of any checkpoint on one's own captures. Options and output."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from tapline.models.foreign_text import clean
from tapline.training.checking.check_report import check_lines
from tapline.training.checking.checkpoint_check import CheckSettings, check_checkpoint, plan_check
from tapline.training.checking.out_directory import out_notes
from tapline.training.checking.own_captures import LabelSource
from tapline.training.checking.verdict_table import VERDICT_TABLE
from tapline.training.commands import options
from tapline.training.data.label_table import TOLERANCE_SECONDS
from tapline.training.evaluation.evaluation_record import Evaluation, EvaluationSettings
from tapline.training.evaluation.flow_evaluation import evaluate_run, plan_evaluation
from tapline.training.evaluation.flow_measured import OWN
from tapline.training.evaluation.page import REPORTS
from tapline.training.export.quantise import int8_logits
from tapline.training.flows.flow_record import read_run
from tapline.training.loop.config import TrainingError, steps_of
from tapline.training.loop.processes import is_first
from tapline.training.loop.run_files import EVALUATION
from tapline.training.loop.trainer import StepReport

OF_RUN, OF_CHECKPOINT = "Of a run", "Of a checkpoint on captures"
RUN_OPTIONS = {
    "features": "--features", "encoders": "--encoders", "split": "--split", "folds": "--folds", "by": "--by",
    "seed": "--seed", "tuned": "--tuned", "int8": "--int8", "zeek_logs": "--zeek-logs", "processes": "--processes",
}  # fmt: skip
CHECKPOINT_OPTIONS = {
    "captures": "--captures", "labels": "--labels", "column": "--column", "confidence": "--confidence",
    "label_from_folder": "--label-from-folder", "map_": "--map", "tolerance": "--tolerance",
    "time_shift": "--time-shift", "predictions": "--predictions", "ports": "--ports", "threads": "--threads",
    "out": "--out",
}  # fmt: skip
"""Parameters of either way, and their options: with the other way they say nothing, and are refused."""


def register(app: typer.Typer, panel: str) -> None:
    """Add the command to `tapline-train`."""
    app.command("evaluate", rich_help_panel=panel)(evaluate_command)


def evaluate_command(
    context: typer.Context,
    run: Annotated[
        Path | None, typer.Option("--run", help="Directory written by `finetune`.", rich_help_panel=OF_RUN)
    ] = None,
    features: Annotated[
        list[Path] | None,
        typer.Option(
            "--features", help="Directory written by `extract`; as the run had them.", rich_help_panel=OF_RUN
        ),
    ] = None,
    encoders: Annotated[
        list[Path] | None,
        typer.Option("--encoders", help="Directory written by `pretrain`; as of the run.", rich_help_panel=OF_RUN),
    ] = None,
    split: Annotated[
        Path | None, typer.Option("--split", help="File written by `split`.", rich_help_panel=OF_RUN)
    ] = None,
    folds: Annotated[int, typer.Option("--folds", min=2, help="Folds of captures.", rich_help_panel=OF_RUN)] = 5,
    by: Annotated[
        Literal["capture", "corpus"],
        typer.Option(
            "--by",
            help="What a fold leaves out of training: some captures, or a whole corpus.",
            rich_help_panel=OF_RUN,
        ),
    ] = "capture",
    seed: Annotated[
        int, typer.Option("--seed", min=0, help="Seed of everything random.", rich_help_panel=OF_RUN)
    ] = 0,
    tuned: Annotated[
        list[int] | None,
        typer.Option("--tuned", help="Fold that served to choose settings.", rich_help_panel=OF_RUN),
    ] = None,
    int8: Annotated[
        bool, typer.Option("--int8", help="Measure the int8 model of each fold beside it.", rich_help_panel=OF_RUN)
    ] = False,
    zeek_logs: Annotated[
        list[Path] | None,
        typer.Option(
            "--zeek-logs",
            help="Zeek's logs, a folder for each capture: its `service` is measured beside.",
            rich_help_panel=OF_RUN,
        ),
    ] = None,
    processes: Annotated[
        int, typer.Option("--processes", min=1, help="Folds that are measured at a time.", rich_help_panel=OF_RUN)
    ] = 1,
    checkpoint: Annotated[
        str,
        typer.Option(
            "--checkpoint",
            help="Directory of a checkpoint of flows or traces, or the name of one that ships.",
            rich_help_panel=OF_CHECKPOINT,
        ),
    ] = "",
    captures: Annotated[
        list[Path] | None,
        typer.Option(
            "--captures", help="Capture, logs, or a folder of them; several times.", rich_help_panel=OF_CHECKPOINT
        ),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            "--labels",
            help="CSV table of labels: by uid, community_id, endpoints with time or capture, capture, or host.",
            rich_help_panel=OF_CHECKPOINT,
        ),
    ] = None,
    column: Annotated[
        str,
        typer.Option("--column", help="Column of the table with the label.", rich_help_panel=OF_CHECKPOINT),
    ] = "",
    confidence: Annotated[
        list[str] | None,
        typer.Option(
            "--confidence",
            help="Use only rows whose column `confidence` begins so; several times.",
            rich_help_panel=OF_CHECKPOINT,
        ),
    ] = None,
    label_from_folder: Annotated[
        bool,
        typer.Option(
            "--label-from-folder", help="The first folder below the one given is the label.",
            rich_help_panel=OF_CHECKPOINT,
        ),
    ] = False,
    map_: Annotated[
        list[str] | None,
        typer.Option(
            "--map",
            help="NAME=LABEL: what tables call a label of the checkpoint; or a CSV with label,becomes; several times.",
            rich_help_panel=OF_CHECKPOINT,
        ),
    ] = None,
    predictions: Annotated[
        list[str] | None,
        typer.Option(
            "--predictions",
            help="CSV of what another tool says of the same flows, FILE or FILE=NAME; several times.",
            rich_help_panel=OF_CHECKPOINT,
        ),
    ] = None,
    tolerance: Annotated[
        float,
        typer.Option(
            "--tolerance", min=0, help="Seconds that a row's time and a flow's start may differ by.",
            rich_help_panel=OF_CHECKPOINT,
        ),
    ] = TOLERANCE_SECONDS,
    time_shift: Annotated[
        float,
        typer.Option(
            "--time-shift", help="Seconds added to the times of the table of labels.", rich_help_panel=OF_CHECKPOINT
        ),
    ] = 0.0,
    ports: Annotated[
        Literal["on", "off"],
        typer.Option("--ports", help="Whether verdicts read ports.", rich_help_panel=OF_CHECKPOINT),
    ] = "on",
    threads: Annotated[
        int, typer.Option("--threads", min=0, help="CPU threads, 0: one per core.", rich_help_panel=OF_CHECKPOINT)
    ] = 0,
    out: Annotated[
        Path | None,
        typer.Option("--out", file_okay=False, help="Directory to write.", rich_help_panel=OF_CHECKPOINT),
    ] = None,
    dry_run: options.DryRun = False,
) -> None:  # fmt: skip
    """Measure a run and calibrate it, or any checkpoint on labelled captures of one's own; writes the report.

    A run (--run) is cross-validated by capture or corpus, or measured on its split. A corpus is a folder that was given
    to `extract`. With --by corpus each is left out once (--folds is not read), and figures are of all flows together,
    without those that have their like among the flows learned from.

    A checkpoint (--checkpoint) is measured as it is served; nothing is trained or calibrated.
    """
    _check_way(context, run, checkpoint)
    if run is None:
        source = LabelSource(
            labels, column, label_from_folder, tolerance, time_shift, predictions or (), confidence or ()
        )
        asked = CheckSettings(checkpoint, captures or (), source, map_ or (), ports == "on", threads)
        _of_checkpoint(asked, _needed(out, "--out"), dry_run=dry_run)
        return
    given = _needed(features, "--features")
    settings = EvaluationSettings(folds, seed, tuple(tuned or ()), int8, by)
    if dry_run:
        options.say_plan(plan_evaluation(given, run, settings, encoders or (), split))
        return
    config = read_run(run).config
    with options.progress_bar() as progress:
        total = None if by == "corpus" else folds * steps_of(config)
        task = progress.add_task("steps of all folds", total=total)

        def after_step(_: StepReport) -> None:
            progress.advance(task)

        figures = evaluate_run(
            given, run, settings, encoders or (), split, after_step, int8_logits if int8 else None, zeek_logs or (),
            processes, lambda: progress.advance(task, steps_of(config)),
        )  # fmt: skip
    if is_first():
        show(figures)
        typer.echo(f"figures and report: {run / EVALUATION}, {run / REPORTS[1]}")


def _check_way(context: typer.Context, run: Path | None, checkpoint: str) -> None:
    """Refuse options of the way that was not chosen, both ways at once, and neither."""
    if (run is None) == (not checkpoint):
        raise TrainingError(
            "what is to be evaluated? Give --run, a directory written by `finetune`, with --features; or --checkpoint "
            "with --captures, --labels and --out" + (", not both" if run else "")
        )
    foreign, way = (RUN_OPTIONS, "--checkpoint") if run is None else (CHECKPOINT_OPTIONS, "--run")
    for parameter, option in foreign.items():
        if options.is_given(context, parameter):
            raise TrainingError(f"{option} says nothing with {way}: leave it out")


def _needed(value: options.Given | None, option: str) -> options.Given:
    if value is None:
        raise TrainingError(f"{option} is needed: see --help")
    return value


def _of_checkpoint(asked: CheckSettings, out: Path, *, dry_run: bool) -> None:
    if dry_run:
        options.say_plan(plan_check(asked, out))
        return
    replaced = out_notes(out)
    with options.progress_bar() as progress:
        task = progress.add_task("captures", total=None)
        record = check_checkpoint(asked, out, lambda count: progress.advance(task, count))
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
