"""Puts a backup back where a service keeps its things, while none runs: all of it, or nothing."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from sqlalchemy.exc import DBAPIError

from tapline.service.backup.archive import BackupError, Table, sync_folders, unpack
from tapline.service.backup.kept_places import DRIFT, HISTORY, JOBS, MODELS, STATE, Places
from tapline.service.history.database import Database
from tapline.service.history.history_errors import HistoryError

_SIDE_FILES = ("", "-wal", "-shm", "-journal")


def restore(path: Path, places: Places, *, replace: bool) -> tuple[Table, list[Path]]:
    """Put back what a backup holds; the table of it, and where what was there before lies now.

    `replace`: what is there is moved aside, into `.before-restore-TIME` beside it; else it is an error.

    Raises:
        BackupError: the backup or a place cannot be used, or a service runs; then everything is as it was.
    """
    if not path.is_file():
        raise BackupError(f"{path}: there is no such backup")
    try:
        with (
            _data_dir(places.data_dir),
            _no_service(places),
            tempfile.TemporaryDirectory(prefix=".restore-", dir=places.data_dir) as staging,
        ):
            table = unpack(path, Path(staging))
            _check(table, Path(staging), places)
            return table, _put(Path(staging), table, places, replace)
    except OSError as error:
        raise BackupError(f"{path} cannot be restored: {error.filename or ''}: {error.strerror}") from None


@contextlib.contextmanager
def _data_dir(folder: Path) -> Iterator[None]:
    """The folder is there; where it was not, it is gone again after an error."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        yield
    except (BackupError, OSError):
        with contextlib.suppress(OSError):  # something is in it that is not ours
            if made:
                (folder / "lock").unlink(missing_ok=True)
            for path in made:
                path.rmdir()
        raise


@contextlib.contextmanager
def _no_service(places: Places) -> Iterator[None]:
    """Hold what a service holds while it runs."""
    locks = [places.data_dir / "lock", *([places.jobs / ".lock"] if places.jobs.is_dir() else [])]
    locks += [folder / "lock" for folder in places.entries(STATE)]
    with contextlib.ExitStack() as stack:
        for lock in locks:
            file = stack.enter_context(os.fdopen(os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BackupError(f"a service uses {lock.parent}: stop it first") from None
        yield


def _check(table: Table, staging: Path, places: Places) -> None:
    """Raises: BackupError where this tapline cannot use what there is, or has no place for it."""
    for part, flag in ((STATE, "--state-dir"), (MODELS, "--repository")):
        if table.count(part) and places.folder(part) is None:
            raise BackupError(f"the backup holds {part}: say with {flag} where to")
    if HISTORY not in table.files:
        return
    if places.history is None:
        raise BackupError("the backup holds a history: say with --history where to (sqlite, sqlite:///FILE)")
    with contextlib.closing(sqlite3.connect(staging / HISTORY)) as connection:
        said = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if said != "ok":
        raise BackupError(f"the history in the backup is damaged: {said[:80]}")
    try:
        database = Database(f"sqlite:///{staging / HISTORY}", staging)
        try:
            database.open(create=False)
        finally:
            database.close()
    except (HistoryError, DBAPIError) as error:
        raise BackupError(str(error).replace(f"{staging}/", "the backup's ")) from None


def _put(staging: Path, table: Table, places: Places, replace: bool) -> list[Path]:
    """Move what is new in and what was there aside; on an error all of it back."""
    moves: list[tuple[Path, Path]] = []
    if HISTORY in table.files and places.history is not None:
        moves.append((staging / HISTORY, places.history))
    for part in (JOBS, STATE, DRIFT, MODELS):
        folder, new = places.folder(part), staging / part
        if folder is not None and new.is_dir():
            moves += [(path, folder / path.name) for path in sorted(new.iterdir())]
    there = [target for target in _replaced(table, places) if target.exists()]
    there += [target for _, target in moves if target.exists() and target not in there]
    if there and not replace:
        raise BackupError(f"{there[0]} is there: give --replace, which moves what is there aside")
    stamp = time.strftime(".before-restore-%Y%m%dT%H%M%SZ", time.gmtime())
    done: list[tuple[Path, Path]] = []
    try:
        for target in there:
            _move(target, target.parent / stamp / target.name, done)
        for new, target in moves:
            _move(new, target, done)
    except OSError:
        for source, target in reversed(done):
            shutil.move(target, source)
        raise
    sync_folders({target.parent for _, target in moves})
    return sorted({target.parent / stamp for target in there})


def _replaced(table: Table, places: Places) -> list[Path]:
    """What must not stay beside what is restored: all of the same part, but for models, which go beside each other."""
    found = []
    if HISTORY in table.files and places.history is not None:
        found += [places.history.with_name(places.history.name + suffix) for suffix in _SIDE_FILES]
    for part in (JOBS, STATE, DRIFT):
        if table.count(part):
            found += places.entries(part)
    return found


def _move(source: Path, target: Path, done: list[tuple[Path, Path]]) -> None:
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    shutil.move(source, target)
    done.append((source, target))
