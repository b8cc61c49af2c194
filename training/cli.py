"""The command `tapline-train`: options and progress. What it does is in the modules that it calls."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from models.checkpoint import CheckpointError
from models.encode import Mm4flowFeatures
from training.corpus import count_labels
from training.evaluate import EvaluationSettings
from training.extract import ExtractError, extract, find_origins
from training.finetune import TrainingConfig, TrainingError
from training.importing import ImportRefusedError, import_mm4flow, read_labels_file
from training.labels import LabelError, read_labels
from training.runs import evaluate_run, export_run, finetune_run, pretrain_run, read_run
from training.samples import SampleError, read_samples
from training.split import SplitError
from training.trace_import_command import import_tracegram_command

app = typer.Typer(
    help="Train, evaluate and export the checkpoints that tapline serves.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
importing = typer.Typer(help="Import published checkpoints.", no_args_is_help=True)
app.add_typer(importing, name="import")
importing.command("tracegram")(import_tracegram_command)

_ERRORS = (CheckpointError, ExtractError, ImportRefusedError, LabelError, SampleError, SplitError, TrainingError)
_console = Console(stderr=True)

Features = Annotated[Path, typer.Option("--features", help="Directory written by `extract`.")]
Out = Annotated[Path, typer.Option("--out", file_okay=False, help="Directory to write.")]
Width = Annotated[int, typer.Option("-d", help="Width of the network.")]
Heads = Annotated[int, typer.Option("-nh", help="Attention heads.")]
Layers = Annotated[int, typer.Option("-l", help="Layers of each encoder.")]
FeedForward = Annotated[int, typer.Option("-f", help="Width of the feed-forward blocks.")]
BatchFlows = Annotated[int, typer.Option("-b", help="Flows in a batch.")]
Epochs = Annotated[int, typer.Option("-ep", help="Epochs.")]
Rate = Annotated[float, typer.Option("-lr", help="Highest learning rate.")]
Draws = Annotated[int, typer.Option("--draws", help="Flows drawn in an epoch.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of everything random.")]
Threads = Annotated[int, typer.Option("--threads", help="CPU threads.")]
Packets = Annotated[int, typer.Option("--packets", help="Payload lengths that the model reads of a flow.")]
ContentBytes = Annotated[int, typer.Option("--content-bytes", help="Content bytes that the model reads each way.")]
Encoders = Annotated[Path | None, typer.Option("--encoders", help="Directory written by `pretrain`.")]
MinCaptures = Annotated[int, typer.Option("--min-captures", help="Learn the labels that so many captures hold.")]
DEFAULTS = TrainingConfig()


@app.command("extract")
def extract_command(
    captures: Annotated[list[Path], typer.Argument(help="Captures, or folders of captures or of Zeek's logs.")],
    out: Out,
    labels: Annotated[Path | None, typer.Option("--labels", help="CSV table of labels, one row for each flow.")] = None,
    column: Annotated[str, typer.Option("--column", help="Column of the table that holds the label.")] = "protocol",
    confidence: Annotated[
        str, typer.Option("--confidence", help="Use only rows whose column `confidence` begins so.")
    ] = "",
    processes: Annotated[int, typer.Option("--processes", min=1, help="Processes that read captures.")] = 2,
) -> None:
    """Read captures into a feature directory."""
    table = read_labels(labels, column, confidence) if labels else None
    origins = find_origins(captures)
    with _progress() as progress:
        task = progress.add_task("captures", total=len(origins))
        manifest = extract(origins, out, table, processes, lambda: progress.advance(task))
    for capture, warning in manifest.warnings.items():
        _console.print(f"{capture}: {warning}", markup=False)
    for reason, count in sorted(manifest.left_out.items()):
        _console.print(f"left out: {count} x {reason}", markup=False)
    _console.print(f"{manifest.samples} flows of {manifest.captures} captures, {manifest.labelled} labelled: {out}")


@app.command("labels")
def labels_command(features: Features) -> None:
    """Show how many captures and flows each label has."""
    for count in count_labels(read_samples(features)):
        typer.echo(f"{count.label}\t{count.captures}\t{count.flows}")


@app.command("pretrain")
def pretrain_command(
    features: Annotated[list[Path], typer.Option("--features", help="Directory written by `extract`; several times.")],
    out: Out,
    d: Width = DEFAULTS.d_model,
    nh: Heads = DEFAULTS.n_head,
    l: Layers = DEFAULTS.n_layer,  # noqa: E741 - the published letter
    f: FeedForward = DEFAULTS.dim_ff,
    b: BatchFlows = 64,
    ep: Epochs = 30,
    lr: Rate = 2e-3,
    draws: Draws = 8192,
    seed: Seed = 0,
    threads: Threads = 1,
    packets: Packets = DEFAULTS.features.payload_lengths,
    content_bytes: ContentBytes = DEFAULTS.features.content_bytes,
) -> None:
    """Pre-train both encoders by masked-token prediction; labels are not read."""
    config = TrainingConfig(
        d, nh, l, f, b, ep, lr, seed, draws, 0.01, threads=threads, features=Mm4flowFeatures(packets, content_bytes)
    )
    with _progress() as progress:
        task = progress.add_task("epochs", total=ep)
        pretrain_run(features, out, config, lambda _: progress.advance(task))


@app.command("finetune")
def finetune_command(
    features: Annotated[list[Path], typer.Option("--features", help="Directory written by `extract`; several times.")],
    out: Out,
    encoders: Encoders = None,
    d: Width = DEFAULTS.d_model,
    nh: Heads = DEFAULTS.n_head,
    l: Layers = DEFAULTS.n_layer,  # noqa: E741 - the published letter
    f: FeedForward = DEFAULTS.dim_ff,
    b: BatchFlows = DEFAULTS.batch_flows,
    ep: Epochs = DEFAULTS.epochs,
    lr: Rate = DEFAULTS.learning_rate,
    draws: Draws = DEFAULTS.draws,
    seed: Seed = DEFAULTS.seed,
    threads: Threads = DEFAULTS.threads,
    packets: Packets = DEFAULTS.features.payload_lengths,
    content_bytes: ContentBytes = DEFAULTS.features.content_bytes,
    min_captures: MinCaptures = 3,
) -> None:
    """Train the classifier on labelled flows; labels in too few captures become background."""
    config = TrainingConfig(
        d, nh, l, f, b, ep, lr, seed, draws, threads=threads, features=Mm4flowFeatures(packets, content_bytes)
    )
    with _progress() as progress:
        task = progress.add_task("epochs", total=ep)
        finetune_run(features, out, config, min_captures, encoders, lambda _: progress.advance(task))


@app.command("evaluate")
def evaluate_command(
    features: Annotated[list[Path], typer.Option("--features", help="The features of the run; several times.")],
    run: Annotated[Path, typer.Option("--run", help="Directory written by `finetune`: its settings are measured.")],
    encoders: Encoders = None,
    folds: Annotated[int, typer.Option("--folds", min=2, help="Folds of captures.")] = 5,
    seed: Seed = 0,
    tuned: Annotated[list[int] | None, typer.Option("--tuned", help="Fold that served to choose settings.")] = None,
) -> None:
    """Cross-validate a run's settings by capture, beside a tree ensemble, and calibrate."""
    settings = EvaluationSettings(folds, seed, tuple(tuned or ()))
    epochs = read_run(run).config.epochs
    with _progress() as progress:
        task = progress.add_task("epochs of all folds", total=folds * epochs)
        figures = evaluate_run(features, run, settings, encoders, lambda _: progress.advance(task))
    interval = figures.macro_f1_interval
    typer.echo(
        f"macro-F1 {figures.macro_f1:.3f} ({interval.low:.3f} to {interval.high:.3f}), "
        f"trees {figures.macro_f1_trees:.3f}; calibration error {figures.calibration_error:.3f}; "
        f"unknown AUROC {figures.unknown_auroc:.3f}"
    )


@app.command("export")
def export_command(
    run: Annotated[Path, typer.Option("--run", help="Directory written by `finetune`.")],
    out: Annotated[Path, typer.Option("--out", help="Repository: the checkpoint goes to NAME/VERSION below it.")],
    name: Annotated[str, typer.Option("--name", help="Name of the checkpoint.")],
    version: Annotated[str, typer.Option("--version", help="Version of the checkpoint.")],
    notes: Annotated[Path | None, typer.Option("--notes", help="Markdown put into the card.")] = None,
) -> None:
    """Write a run as a checkpoint that tapline serves: safetensors, ONNX, card."""
    text = notes.read_text(encoding="utf-8") if notes else ""
    checkpoint = export_run(run, out, name, version, text)
    typer.echo(f"{out / checkpoint.name / checkpoint.version}: {len(checkpoint.labels)} labels")


@importing.command("mm4flow")
def import_command(
    weights: Annotated[Path, typer.Option("--weights", help="Safetensors, or pytorch_model.bin.")],
    config: Annotated[Path, typer.Option("--config", help="JSON with d_model, n_layer, n_head, dim_ff.")],
    out: Out,
    labels: Annotated[str, typer.Option("--labels", help="Labels in the order of the class index, by comma.")] = "",
    labels_file: Annotated[Path | None, typer.Option("--labels-file", help="info.json with label2idx.")] = None,
    name: Annotated[str, typer.Option("--name", help="Name of the checkpoint.")] = "mm4flow",
    version: Annotated[str, typer.Option("--version", help="Version of the checkpoint.")] = "1",
) -> None:
    """Import a published MM4flow classifier."""
    if bool(labels) == bool(labels_file):
        raise typer.BadParameter("give either --labels or --labels-file")
    names = read_labels_file(labels_file) if labels_file else [label.strip() for label in labels.split(",")]
    import_mm4flow(weights, config, names, out, name, version)
    typer.echo(f"{out}: {len(names)} labels")


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=_console, disable=not _console.is_terminal)


def main() -> None:
    """Run `tapline-train`; a wrong input or file ends with one sentence and status 1."""
    try:
        app()
    except _ERRORS as error:
        _console.print(f"tapline-train: {error}", markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)
    except OSError as error:  # a full disk, a folder that cannot be written
        _console.print(f"tapline-train: {error.filename}: {error.strerror}", markup=False, soft_wrap=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
