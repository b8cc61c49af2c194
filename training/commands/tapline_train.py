"""The command `tapline-train`: its sub-commands, each registered by its own module, and how errors end it."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from tapline.models.checkpoint import CheckpointError
from tapline.training.commands import data_commands, flow_commands, trace_commands
from tapline.training.commands.import_commands import import_tracegram_command
from tapline.training.commands.options import DryRun, Out, console, write_or_say
from tapline.training.data.labelled_traces import TraceDataError
from tapline.training.data.labels import LabelError
from tapline.training.data.origins import ExtractError
from tapline.training.data.samples import SampleError
from tapline.training.data.split import SplitError
from tapline.training.export.mm4flow_import import ImportRefusedError, import_mm4flow, read_labels_file
from tapline.training.loop.config import TrainingError
from tapline.training.loop.processes import is_first

app = typer.Typer(
    help="Train, evaluate and export the checkpoints that tapline serves.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
importing = typer.Typer(help="Import published checkpoints.", no_args_is_help=True)
data_commands.register(app)
flow_commands.register(app)
trace_commands.register(app)
app.add_typer(importing, name="import", rich_help_panel="Published checkpoints")
importing.command("tracegram")(import_tracegram_command)

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_INTERRUPTED = 130
"""What typer ends with on Ctrl-C."""
_ERRORS = (
    CheckpointError,
    ExtractError,
    ImportRefusedError,
    LabelError,
    SampleError,
    SplitError,
    TraceDataError,
    TrainingError,
)


@importing.command("mm4flow")
def import_command(
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
    if bool(labels) == bool(labels_file):
        raise typer.BadParameter("give either --labels or --labels-file")
    names = read_labels_file(labels_file) if labels_file else [label.strip() for label in labels.split(",")]
    write_or_say(out, dry_run, lambda folder: import_mm4flow(weights, config, names, folder, name, version))
    if not dry_run:
        typer.echo(f"{out}: {len(names)} labels")


def main() -> None:
    """Run `tapline-train`; a wrong input or file ends with one sentence and status 1."""
    try:
        app()
    except _ERRORS as error:
        _end(str(error))
    except OSError as error:  # a full disk, a folder that cannot be written
        where = f"{os.fsdecode(error.filename)}: " if error.filename else ""
        remedy = ": make room and run it again" if error.errno in _FULL else ""
        _end(f"{where}{error.strerror or error}{remedy}")
    except SystemExit as ended:
        if ended.code == _INTERRUPTED:
            _end("interrupted: repeat the command; what trains goes on from the last state that it saved", _INTERRUPTED)
        raise


def _end(sentence: str, status: int = 1) -> None:
    if is_first():  # of the processes of a group, one speaks
        console.print(f"tapline-train: {sentence}", markup=False, highlight=False, soft_wrap=True)
    sys.exit(status)
