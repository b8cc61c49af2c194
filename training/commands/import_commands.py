"""The command `tapline-train import tracegram`: its options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tapline.models.checkpoint import TracegramCheckpoint
from tapline.models.trace import SubjectKind
from tapline.training.commands.options import DryRun, trace_settings, write_or_say
from tapline.training.export.mm4flow_import import read_labels_file
from tapline.training.export.tracegram_import import import_tracegram


def import_tracegram_command(
    encoder: Annotated[Path, typer.Option("--encoder", help="Weights of the flow encoder, .pt or safetensors.")],
    trace: Annotated[Path, typer.Option("--trace", help="Weights of aggregation and head, .pt or safetensors.")],
    config: Annotated[Path, typer.Option("--config", help="JSON with the encoder's arguments (dim, depth, ...).")],
    out: Annotated[Path, typer.Option("--out", file_okay=False, help="Directory to write.")],
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
    if bool(labels) == bool(labels_file):
        raise typer.BadParameter("give either --labels or --labels-file")
    names = read_labels_file(labels_file) if labels_file else [label.strip() for label in labels.split(",")]
    settings = trace_settings(subject, window)

    def write(folder: Path) -> TracegramCheckpoint:
        return import_tracegram(encoder, trace, config, names, folder, name, version, settings, not header_only)

    write_or_say(out, dry_run, write)
    if not dry_run:
        typer.echo(f"{out}: {len(names)} labels")
