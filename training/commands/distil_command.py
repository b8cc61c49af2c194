"""The command `tapline-train distil`: gives a flow checkpoint a student that answers most flows at a small part of the
cost."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from tapline.models.checkpoint import Checkpoint, read_checkpoint
from tapline.training.commands import options
from tapline.training.distilling.checkpoint_student import distil_checkpoint
from tapline.training.distilling.distil import DistilSettings

DEFAULTS = DistilSettings()


def register(app: typer.Typer, panel: str) -> None:
    """Add the command to `tapline-train`."""
    app.command("distil", rich_help_panel=panel)(distil_command)


def distil_command(
    checkpoint: Annotated[Path, typer.Option("--checkpoint", help="Flow checkpoint directory: the teacher.")],
    features: options.Features,
    out: Annotated[Path, typer.Option("--out", help="Repository: the checkpoint goes to NAME/VERSION below it.")],
    version: options.Version,
    notes: options.Notes = None,
    agreement: Annotated[
        float,
        typer.Option(
            "--agreement",
            min=0.5,
            max=1,
            help="Least share of the flows it answers, of captures kept from it, of which the network says the same.",
        ),
    ] = DEFAULTS.agreement,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Batches that a student learns from.")] = DEFAULTS.steps,
    copies: Annotated[
        int, typer.Option("--copies", min=0, help="Disturbed copies of each flow to learn from.")
    ] = DEFAULTS.copies,
    seed: options.Seed = DEFAULTS.seed,
    threads: options.Threads = 1,
    dry_run: options.DryRun = False,
) -> None:
    """Distil a flow checkpoint into a student, and write it beside the network as another version."""
    torch.set_num_threads(threads)
    name, text = read_checkpoint(checkpoint, needs=()).name, options.read_notes(notes)
    settings = DistilSettings(agreement=agreement, steps=steps, copies=copies, seed=seed)
    options.write_or_say(
        out / name / version,
        dry_run,
        lambda folder: distil_checkpoint(checkpoint, features, folder, version, settings, text, options.say),
        _figures,
    )


def _figures(checkpoint: Checkpoint) -> list[str]:
    gate = checkpoint.metrics["student"]["gate"]
    return [
        f"student: from a confidence of {gate['threshold']:g} on, {gate['answered']:.1%} of the flows of captures kept "
        f"from it, and the same verdict for {gate['agreement']:.2%} of them"
    ]
