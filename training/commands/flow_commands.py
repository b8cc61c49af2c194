"""The commands that make flow models: pretrain, finetune, evaluate, calibrate, export, card. Options, output."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import typer

from tapline.models.encode import Mm4flowFeatures
from tapline.training.commands import distil_command, evaluate_command, options
from tapline.training.evaluation.flow_evaluation import calibrate_run
from tapline.training.evaluation.flow_measured import FALSE_REJECTION
from tapline.training.evaluation.page import REPORTS
from tapline.training.export.run_export import card_of, export_run, manifest_of
from tapline.training.flows.flow_record import Run
from tapline.training.flows.flow_runs import finetune_run, pretrain_run
from tapline.training.flows.pretrain import BOTH, Modality
from tapline.training.loop.config import TrainingConfig
from tapline.training.loop.plan import Plan
from tapline.training.loop.run_files import EVALUATION, VERDICTS
from tapline.training.loop.runs import Job

DEFAULTS = TrainingConfig()


PANEL = "Models of flows"


def register(app: typer.Typer) -> None:
    """Add the commands to `tapline-train`."""
    _add_pretrain(app, "pretrain", BOTH, "Pre-train both encoders by masked-token prediction; labels are not read.")
    _add_pretrain(app, "pretrain-ps", ("ps",), "Pre-train the encoder of payload lengths alone.")
    _add_pretrain(app, "pretrain-bytes", ("bytes",), "Pre-train the encoder of content bytes alone.")
    app.command("finetune", rich_help_panel=PANEL)(finetune_command)
    evaluate_command.register(app, PANEL)
    app.command("calibrate", rich_help_panel=PANEL)(calibrate_command)
    app.command("export", rich_help_panel=PANEL)(export_command)
    app.command("card", rich_help_panel=PANEL)(card_command)
    distil_command.register(app, PANEL)


def _add_pretrain(app: typer.Typer, name: str, modalities: tuple[Modality, ...], text: str) -> None:
    @app.command(name, help=text, rich_help_panel=PANEL)
    def pretrain_command(
        features: options.Features,
        out: options.Out,
        split: Annotated[
            Path | None, typer.Option("--split", help="Leave out what this split keeps for validation and the test.")
        ] = None,
        d: options.Width = DEFAULTS.d_model,
        nh: options.Heads = DEFAULTS.n_head,
        l: options.Layers = DEFAULTS.n_layer,  # noqa: E741 - the published letter
        f: options.FeedForward = DEFAULTS.dim_ff,
        b: options.BatchFlows = 64,
        ep: options.Epochs = 30,
        ev: options.Evaluations = DEFAULTS.evaluations,
        sv: options.Saves = DEFAULTS.saves,
        lr: options.Rate = 2e-3,
        draws: options.Draws = 8192,
        clip: options.Clip = DEFAULTS.clip_norm,
        accumulate: options.Accumulate = DEFAULTS.accumulate,
        seed: options.Seed = 0,
        threads: options.Threads = 1,
        device: options.Device = DEFAULTS.device,
        packets: options.Packets = DEFAULTS.features.payload_lengths,
        content_bytes: options.ContentBytes = DEFAULTS.features.content_bytes,
        restart: options.Restart = False,
        dry_run: options.DryRun = False,
    ) -> None:
        config = TrainingConfig(
            d_model=d, n_head=nh, n_layer=l, dim_ff=f, batch_flows=b, epochs=ep, learning_rate=lr, seed=seed,
            draws=draws, weight_decay=0.01, threads=threads, features=Mm4flowFeatures(packets, content_bytes),
            clip_norm=clip, accumulate=accumulate, evaluations=ev, saves=sv, device=device,
        )  # fmt: skip
        job = Job(features, out, config, restart=restart, dry_run=dry_run, split=split, announce=options.announce)
        options.train(name, out, lambda report: pretrain_run(job, report, modalities), _learned)


def finetune_command(
    features: options.Features,
    out: options.Out,
    encoders: options.Encoders = None,
    split: options.Split = None,
    d: options.Width = DEFAULTS.d_model,
    nh: options.Heads = DEFAULTS.n_head,
    l: options.Layers = DEFAULTS.n_layer,  # noqa: E741 - the published letter
    f: options.FeedForward = DEFAULTS.dim_ff,
    b: options.BatchFlows = DEFAULTS.batch_flows,
    ep: options.Epochs = DEFAULTS.epochs,
    frozen_epochs: Annotated[
        int, typer.Option("--frozen-epochs", min=0, help="Epochs with frozen encoders first; published: as -ep.")
    ] = DEFAULTS.frozen_epochs,
    ev: options.Evaluations = DEFAULTS.evaluations,
    sv: options.Saves = DEFAULTS.saves,
    lr: options.Rate = DEFAULTS.learning_rate,
    draws: options.Draws = DEFAULTS.draws,
    clip: options.Clip = DEFAULTS.clip_norm,
    accumulate: options.Accumulate = DEFAULTS.accumulate,
    seed: options.Seed = DEFAULTS.seed,
    threads: options.Threads = DEFAULTS.threads,
    device: options.Device = DEFAULTS.device,
    packets: options.Packets = DEFAULTS.features.payload_lengths,
    content_bytes: options.ContentBytes = DEFAULTS.features.content_bytes,
    min_captures: options.MinCaptures = options.MIN_CAPTURES,
    min_flows: options.MinFlows = 1,
    ports: Annotated[
        Literal["on", "off"], typer.Option("--ports", help="off: the checkpoint has no prior on server ports.")
    ] = "on",
    restart: options.Restart = False,
    dry_run: options.DryRun = False,
) -> None:
    """Train the classifier on labelled flows; rarer labels, and `background`, become background."""
    config = TrainingConfig(
        d_model=d, n_head=nh, n_layer=l, dim_ff=f, batch_flows=b, epochs=ep, learning_rate=lr, seed=seed, draws=draws,
        threads=threads, features=Mm4flowFeatures(packets, content_bytes), frozen_epochs=frozen_epochs,
        clip_norm=clip, accumulate=accumulate, evaluations=ev, saves=sv, device=device,
        port_weight=DEFAULTS.port_weight if ports == "on" else 0.0,
    )  # fmt: skip
    job = Job(features, out, config, None, restart, dry_run, encoders or (), split=split, announce=options.announce)
    options.train("finetune", out, lambda report: finetune_run(job, report, min_captures, min_flows), _learned)


def calibrate_command(
    run: options.RunDirectory,
    false_rejection: Annotated[
        float, typer.Option("--false-rejection", min=0, max=0.5, help="Share of known flows that may be rejected.")
    ] = FALSE_REJECTION,
    dry_run: options.DryRun = False,
) -> None:
    """Fit temperature and unknown threshold again, at another false-rejection rate; nothing is trained."""
    figures = calibrate_run(run, false_rejection, dry_run=dry_run)
    unknown = "" if figures.unknown_rejected is None else f" and {figures.unknown_rejected:.1%} of unknown ones"
    result = (
        f"temperature {figures.temperature:.3f}, unknown below {figures.threshold:.3f}: rejects "
        f"{figures.known_rejected:.1%} of known flows{unknown}"
    )
    if dry_run:
        options.say_plan(Plan("calibrate", [result], [run / name for name in (EVALUATION, VERDICTS, *REPORTS)]))
        return
    evaluate_command.show(figures)
    typer.echo(f"{result}: {run / EVALUATION}")


def export_command(
    run: options.RunDirectory,
    out: Annotated[Path, typer.Option("--out", help="Repository: the checkpoint goes to NAME/VERSION below it.")],
    name: options.Name,
    version: options.Version,
    notes: options.Notes = None,
    int8: Annotated[
        list[Path] | None,
        typer.Option("--int8", help="Write an int8 ONNX too, compared on the labelled flows of these features."),
    ] = None,
    dry_run: options.DryRun = False,
) -> None:
    """Write a run as a checkpoint that tapline serves: safetensors, ONNX, card."""
    text = options.read_notes(notes)
    options.write_or_say(
        out / name / version,
        dry_run,
        lambda folder: export_run(run, folder, name, version, text, int8 or ()),
        lambda checkpoint: [_int8_line(checkpoint.metrics["int8"])] if int8 else [],
    )


def _int8_line(figures: Mapping[str, float]) -> str:
    return (
        f"int8: macro-F1 {figures['macro_f1_int8']:.4f}, float32 {figures['macro_f1']:.4f}, "
        f"same label for {figures['agreement']:.2%} of {figures['flows']} flows"
    )


def card_command(
    run: options.RunDirectory, name: options.Name, version: options.Version, notes: options.Notes = None
) -> None:
    """Print the model card that `export` would write."""
    typer.echo(card_of(run, manifest_of(run, name, version), options.read_notes(notes)), nl=False)


def _learned(run: Run) -> list[str | None]:
    background = " and a background class" if run.network.n_class > len(run.labels) else ""
    return [f"{len(run.labels)} labels{background}" if run.labels else None]
