"""The hours of every model on disk, so that last week is known after a restart: a file each, replaced whole."""

from __future__ import annotations

import os
import re
from pathlib import Path

import msgspec

from tapline.models.checkpoint import CheckpointError
from tapline.models.foreign_text import clean
from tapline.service.drift.counts import KEPT_HOURS, Hour
from tapline.service.log_lines import log
from tapline.service.process.files import write_all
from tapline.service.traces.state_files import DamageError, DirectoryLock, framed, open_private, read_framed

STATE_VERSION = 1
MAX_FILES = 64
DRIFT_DIRECTORY = "drift"
"""In the data directory."""

_FAULTS = (OSError, DamageError, msgspec.DecodeError, UnicodeDecodeError)
FILE_NAMES = re.compile(r"([a-z0-9][a-z0-9._-]{0,63})\.drift")


class ModelHours(msgspec.Struct, forbid_unknown_fields=True):
    """What is remembered of a version of a model; `axes` names the baseline along whose axes embeddings were counted
    (SHA-256, empty without one)."""

    model: str
    version: str
    axes: str
    hours: list[Hour]
    state_version: int = STATE_VERSION


def read_hours(directory: Path, model: str) -> ModelHours:
    """What a service that may run remembers of a model.

    Raises:
        CheckpointError: it remembers none of this name, or the file cannot be used.
    """
    path = directory / f"{model}.drift"
    try:
        return _read(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: nothing is remembered of this model: name the data directory") from None
    except _FAULTS as error:
        raise CheckpointError(f"{path}: cannot be used: {clean(str(error))}") from None


class DriftState:
    """A directory of such files, which one service holds until `close`."""

    def __init__(self, directory: Path) -> None:
        """
        Raises:
            OSError: it cannot be made, or another service has it.
        """
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._directory = directory
        self._lock = DirectoryLock(directory)

    def load(self) -> dict[str, ModelHours]:
        """What was saved, by model. A file that is not whole is left out, with a warning, and replaced later."""
        found = {}
        paths = [path for path in sorted(self._directory.iterdir()) if FILE_NAMES.fullmatch(path.name)]
        for path in paths[:MAX_FILES]:
            try:
                kept = _read(path)
            except _FAULTS as error:
                log.warning("what was remembered of a model is left out", file=str(path), reason=clean(str(error)))
            else:
                found[kept.model] = kept
        return found

    def save(self, kept: ModelHours) -> None:
        """Write what is remembered of a model in the place of what was.

        Raises:
            OSError: it cannot be written; what was there stays.
        """
        path = self._directory / f"{kept.model}.drift"
        staging = path.with_suffix(".new")
        try:
            with open_private(staging, os.O_TRUNC) as file:
                write_all(file, framed(msgspec.json.encode(kept)))
                os.fsync(file.fileno())
            staging.replace(path)
        finally:
            staging.unlink(missing_ok=True)

    def close(self) -> None:
        """Let another service have it."""
        self._lock.close()


def _read(path: Path) -> ModelHours:
    """
    Raises:
        OSError, DamageError, DecodeError: it cannot be read, or is not what was written.
    """
    with path.open("rb") as file:
        kept = msgspec.json.decode(read_framed(file), type=ModelHours)
    numbers = [hour.hour for hour in kept.hours]
    if kept.state_version != STATE_VERSION or f"{kept.model}.drift" != path.name:
        raise DamageError("it is of another version, or another model")
    if len(numbers) > KEPT_HOURS + 1 or numbers != sorted(set(numbers)):
        raise DamageError("its hours are not in order")
    return kept
