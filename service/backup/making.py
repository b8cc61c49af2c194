"""Makes a backup while the service goes on."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path

import msgspec

from tapline.service.backup.archive import BackupError, BackupWriter, Table
from tapline.service.backup.kept_places import DRIFT, HISTORY, JOBS, MODELS, STATE, STATE_FILES, Places, files_below
from tapline.service.jobs.job import Job
from tapline.service.jobs.job_store import CAPTURE, RECORD, RESULT

_BUSY_SECONDS = 60.0


def make_backup(places: Places, path: Path, *, captures: bool) -> tuple[Table, int]:
    """Write all that is there into a new backup; its table, and its size in bytes.

    `captures`: those of jobs that have ended, too; of the others they are in it anyway, for they begin again.

    Raises:
        BackupError: what is there cannot be read, or the backup not be written.
    """
    if path.exists():
        raise BackupError(f"{path} is there: give another name")
    try:
        with BackupWriter(path) as writer:
            if places.history is not None and places.history.exists():
                _add_history(writer, places.history, path)
            for folder in places.entries(JOBS):
                with contextlib.suppress(FileNotFoundError):  # it was removed meanwhile
                    _add_job(writer, folder, captures)
            for folder in places.entries(STATE):
                for name in STATE_FILES:
                    with contextlib.suppress(FileNotFoundError):
                        writer.add(f"{STATE}/{folder.name}/{name}", folder / name)
            for file in places.entries(DRIFT):
                writer.add(f"{DRIFT}/{file.name}", file)
            for folder in places.entries(MODELS):
                for file in files_below(folder):
                    writer.add(f"{MODELS}/{folder.name}/{file.relative_to(folder).as_posix()}", file)
            return writer.table, writer.finish()
    except (OSError, sqlite3.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise BackupError(f"{path} cannot be made: {reason}") from None


def _add_history(writer: BackupWriter, file: Path, target: Path) -> None:
    """Put in a copy as of one moment, whatever is written meanwhile."""
    copy = target.with_name(f".{target.name}.{os.getpid()}.history")
    try:
        os.close(os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        with (
            contextlib.closing(
                sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", timeout=_BUSY_SECONDS, uri=True)
            ) as source,
            contextlib.closing(sqlite3.connect(copy)) as kept,
        ):
            source.backup(kept)  # all pages in one step: a reader of WAL holds up no writer, and begins never anew
        writer.add(HISTORY, copy)
    finally:
        copy.unlink(missing_ok=True)


def _add_job(writer: BackupWriter, folder: Path, captures: bool) -> None:
    """Put in a job: its record last, since a folder without one is none."""
    record = folder / RECORD
    try:
        job = msgspec.json.decode(record.read_bytes(), type=Job)
    except msgspec.DecodeError:
        return
    names = [CAPTURE] if captures or not job.has_ended else []
    names += [RESULT] if job.state == "done" else []
    for name in names:
        if (folder / name).exists():
            writer.add(f"{JOBS}/{folder.name}/{name}", folder / name)
    writer.add(f"{JOBS}/{folder.name}/{RECORD}", record)
