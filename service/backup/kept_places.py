"""Where a service keeps what outlives it, and what of that belongs to a backup."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sql

from tapline.models.checkpoint import MANIFEST
from tapline.service.backup.archive import BackupError
from tapline.service.drift.drift_state import DRIFT_DIRECTORY, FILE_NAMES
from tapline.service.history.database import FILE_NAME
from tapline.service.jobs.job_store import JOB_ID
from tapline.service.traces.window_state import JOURNAL, SNAPSHOT

HISTORY, JOBS, STATE, MODELS, DRIFT = "history.db", "jobs", "state", "models", DRIFT_DIRECTORY
"""Parts of a backup, by their names in it."""


STATE_FILES = (f"{JOURNAL}.old", JOURNAL, SNAPSHOT)
"""Of the open windows of a model, in the order in which they are read: a window is in the journal before it leaves the
snapshot, so none is lost between them and closed again."""


@dataclass(frozen=True)
class Places:
    """Where parts are: `history` the file, of SQLite; the others folders. None for what is kept nowhere."""

    data_dir: Path
    history: Path | None
    state: Path | None
    models: Path | None

    @property
    def jobs(self) -> Path:
        """The folder of jobs."""
        return self.data_dir / "jobs"

    def folder(self, part: str) -> Path | None:
        """The folder of a part that is one."""
        return {JOBS: self.jobs, STATE: self.state, MODELS: self.models, DRIFT: self.data_dir / DRIFT}[part]

    def entries(self, part: str) -> list[Path]:
        """What belongs to a part, directly below its folder: one folder for each job or model, a file for each model's
        drift."""
        folder = self.folder(part)
        if folder is None or not folder.is_dir():
            return []
        return sorted(path for path in folder.iterdir() if not path.is_symlink() and _is_of(part, path))


def _is_of(part: str, path: Path) -> bool:
    if part == DRIFT:
        return path.is_file() and FILE_NAMES.fullmatch(path.name) is not None
    if not path.is_dir():
        return False
    if part == JOBS:
        return JOB_ID.fullmatch(path.name) is not None
    if part == STATE:
        return any((path / name).exists() for name in STATE_FILES)
    return path.name[0] != "." and any(path.glob(f"*/{MANIFEST}"))


def history_file(place: str, data_dir: Path) -> Path | None:
    """The file of the history that the setting names, or None where it is none of ours.

    Raises:
        BackupError: it is no URL.
    """
    if place == "sqlite":
        return data_dir / FILE_NAME
    if place == "none":
        return None
    try:
        url = sql.make_url(place)
    except sql.exc.ArgumentError:
        raise BackupError("--history: expected sqlite, none, or a URL, as of `serve`") from None
    return Path(url.database) if url.get_backend_name() == "sqlite" and url.database else None


def files_below(folder: Path) -> Iterator[Path]:
    """Every regular file below a folder."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            yield path
