"""The commands that import published checkpoints: their options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tapline.models.checkpoint import TracegramCheckpoint
from tapline.models.trace import SubjectKind
from tapline.training.commands.options import DryRun, Out, trace_settings, write_or_say
from tapline.training.export.mm4flow_import import import_mm4flow
from tapline.training.export.published import read_labels_file
from tapline.training.export.tracegram_import import import_tracegram


def register(app: typer.Typer) -> None:
    """Add the commands to `tapline-train`."""
    importing = typer.Typer(help="Import published checkpoints.", no_args_is_help=True)
    importing.command("tracegram")(import_tracegram_command)
    importing.command("mm4flow")(import_mm4flow_command)
    app.add_typer(importing, name="import", rich_help_panel="Published checkpoints")


def import_mm4flow_command(
    weights: Annotated[Path, typer.Option("--weights", help="Safetensors, or pytorch_model.bin.")],
    config: Annotated[Path, typer.Option("--config", help="JSON with d_model, n_layer, n_head, dim_ff.")],
    out: Out,
    labels: Annotated[str, typer.Option("--labels", help="Labels in the order of the class index, by comma.")] = "",
    labels_file: Annotated[Path | None, typer.Option("--labels-file", help="info.json with label2idx.")] = None,
    name: Annotated[str, typer.Option("--name", help="Name of the checkpoint.")] = "mm4flow",
    version: Annotated[str, typer.Option("--version", help="Version of the checkpoint.")] = "1",
    dry_run: DryRun = False,
) -> None:
    """Import a published MM4flow classifier."""
    names = _names(labels, labels_file)
    write_or_say(out, dry_run, lambda folder: import_mm4flow(weights, config, names, folder, name, version))


def import_tracegram_command(
    encoder: Annotated[Path, typer.Option("--encoder", help="Weights of the flow encoder, .pt or safetensors.")],
    trace: Annotated[Path, typer.Option("--trace", help="Weights of aggregation and head, .pt or safetensors.")],
    config: Annotated[Path, typer.Option("--config", help="JSON with the encoder's arguments (dim, depth, ...).")],
    out: Out,
    labels: Annotated[str, typer.Option("--labels", help="Labels in the order of the class index, by comma.")] = "",
    labels_file: Annotated[Path | None, typer.Option("--labels-file", help="JSON with label2idx.")] = None,
    subject: Annotated[SubjectKind, typer.Option("--subject", help="Whose flows make a trace.")] = "originator",
    window: Annotated[float, typer.Option("--window", min=0, help="Seconds of a trace; 0: a whole capture.")] = 600.0,
    header_only: Annotated[bool, typer.Option("--header-only", help="It was trained on headers alone.")] = False,
    name: Annotated[str, typer.Option("--name", help="Name of the checkpoint.")] = "tracegram",
    version: Annotated[str, typer.Option("--version", help="Version of the checkpoint.")] = "1",
    dry_run: DryRun = False,
) -> None:
    """Import a published Tracegram classifier."""
    names, settings, payload = _names(labels, labels_file), trace_settings(subject, window), not header_only

    def write(folder: Path) -> TracegramCheckpoint:
        return import_tracegram(encoder, trace, config, names, folder, name, version, settings, payload)

    write_or_say(out, dry_run, write)


def _names(labels: str, labels_file: Path | None) -> list[str]:
    """The labels in the order of their class index, from the one of the two that is given."""
    if bool(labels) == bool(labels_file):
        raise typer.BadParameter("give either --labels or --labels-file")
    return read_labels_file(labels_file) if labels_file else [label.strip() for label in labels.split(",")]
