"""The command `tapline-train`: its sub-commands, each registered by its own module, and how errors end it."""

from __future__ import annotations

import errno
import os
import sys

import typer

from tapline.models.checkpoint import CheckpointError
from tapline.service.engines.engine import EngineError
from tapline.training.commands import (
    compare_command,
    data_commands,
    flow_commands,
    import_commands,
    search_command,
    trace_commands,
)
from tapline.training.commands.options import say
from tapline.training.data.labelled_traces import TraceDataError
from tapline.training.data.labels import LabelError
from tapline.training.data.origins import ExtractError
from tapline.training.data.samples import SampleError
from tapline.training.data.split import SplitError
from tapline.training.export.published import ImportRefusedError
from tapline.training.loop.config import TrainingError
from tapline.training.loop.processes import is_first

app = typer.Typer(
    help="Train, evaluate and export the checkpoints that tapline serves.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
data_commands.register(app)
flow_commands.register(app)
search_command.register(app)
trace_commands.register(app)
compare_command.register(app)
import_commands.register(app)

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_INTERRUPTED = 130
"""What typer ends with on Ctrl-C."""
_ERRORS = (
    CheckpointError,
    EngineError,
    ExtractError,
    ImportRefusedError,
    LabelError,
    SampleError,
    SplitError,
    TraceDataError,
    TrainingError,
)


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
        say(f"tapline-train: {sentence}")
    sys.exit(status)
