"""The command `tapline models baseline`: gives a checkpoint a baseline, from captures or from a service's own days."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NoReturn

import typer

from tapline.models.checkpoint import CheckpointError, read_any_manifest
from tapline.service.command.streams import say
from tapline.service.drift.baseline_making import BaselineError, Traffic, measure, put, remembered
from tapline.service.drift.drift_state import DRIFT_DIRECTORY, read_hours
from tapline.service.engines.engine import EngineError
from tapline.service.inference.repository import newest_version
from tapline.service.sources.capture import CaptureError
from tapline.service.sources.inputs import inputs_of

EXIT_USAGE = 2


def baseline(
    checkpoint: Annotated[Path, typer.Argument(help="checkpoint directory: NAME/VERSION, or NAME for the newest")],
    captures: Annotated[
        list[str] | None, typer.Argument(help="captures of quiet traffic, or directories of them", show_default=False)
    ] = None,
    from_data: Annotated[
        Path | None,
        typer.Option(
            "--from",
            help="data directory of a service: take what it remembers of its last eight days instead",
            show_default=False,
        ),
    ] = None,
    to: Annotated[
        Path | None, typer.Option(help="write the checkpoint there instead of in its place", show_default=False)
    ] = None,
    traffic: Annotated[
        Traffic, typer.Option(help="training: what the model was made from, which is compared and is no limit")
    ] = "site",
    measured_on: Annotated[str, typer.Option(help="which traffic it is, in words")] = "",
) -> None:
    """Give a checkpoint a baseline: what its verdicts look like on traffic that is as it should be.

    A service then tells when they look different. The checkpoint is written whole or not at all; its verdicts stay.
    """
    directory = newest_version(checkpoint)
    try:
        manifest = read_any_manifest(directory)
        if (from_data is None) == (not captures):
            raise BaselineError("expected captures, or --from DATA_DIR: give one of them")
        if from_data is not None:
            made = remembered(directory, read_hours(from_data / DRIFT_DIRECTORY, manifest.name))
        else:
            names = list(inputs_of(captures or [], keep_bad=True))
            sample = measure(directory, names, lambda name, reason: say(f"{name}: {reason}"))
            made = sample.baseline(traffic, measured_on or f"{len(names)} captures")
        put(made, directory, to or directory)
    except (BaselineError, CaptureError, CheckpointError, EngineError) as error:
        _fail(str(error))
    except OSError as error:
        _fail(f"{error.filename or directory}: {error.strerror}: give a place that can be written with --to")
    share = made.unknown / made.verdicts
    typer.echo(
        f"{to or directory}: a baseline of {made.verdicts:,} verdicts, {share:.1%} unknown, {len(made.axes)} axes"
    )


def _fail(reason: str) -> NoReturn:
    say(reason)
    raise typer.Exit(EXIT_USAGE)
