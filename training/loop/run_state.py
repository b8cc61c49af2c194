"""The state of an unfinished run, written whole or not at all, and read back to go on exactly where it was."""

from __future__ import annotations

import os
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tapline.training.loop.config import TrainingError
from tapline.training.loop.run_files import whole

STATE = "state.pt"


@dataclass(frozen=True)
class Progress:
    """Where a run is: `step` optimiser steps of `stage` are done; `tensors` are the states of its parts."""

    stage: str
    step: int
    tensors: dict[str, Any]


def save_state(directory: Path, fingerprint: str, progress: Progress) -> None:
    """Replace the state of a run.

    Raises:
        TrainingError: it could not be written; the state before is still there.
    """
    path = directory / STATE
    record = {"fingerprint": fingerprint, "stage": progress.stage, "step": progress.step, "tensors": progress.tensors}
    try:
        with whole(path) as staging, staging.open("wb") as file:
            torch.save(record, file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:  # torch says RuntimeError where its writer finds the disk full
        reason = error.strerror if isinstance(error, OSError) else "the disk is full or the folder is gone"
        raise TrainingError(
            f"{path}: cannot save the state of the run ({reason}): make room and run it again"
        ) from None


def load_state(directory: Path, fingerprint: str) -> Progress | None:
    """The state of an unfinished run in this directory, None without one.

    Raises:
        TrainingError: it is damaged, or of a run with other settings or data.
    """
    path = directory / STATE
    if not path.is_file():
        return None
    try:
        record = torch.load(path, map_location="cpu", weights_only=True)
        found, progress = record["fingerprint"], Progress(record["stage"], record["step"], record["tensors"])
    except (OSError, RuntimeError, KeyError, TypeError, EOFError, pickle.UnpicklingError):
        raise TrainingError(f"{path}: damaged: begin the run again with --restart") from None
    if found != fingerprint:
        raise TrainingError(
            f"{directory}: holds an unfinished run with other settings or data: repeat its command to go on, or give "
            "--restart to throw it away"
        )
    return progress


def drop_state(directory: Path) -> None:
    """Remove the state: the run is finished, or begins again."""
    (directory / STATE).unlink(missing_ok=True)
