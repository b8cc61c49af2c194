"""Writes a checkpoint directory whole or not at all; what is in it is `checkpoint`'s business."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import msgspec

from tapline.models.checkpoint import (
    CARD,
    MANIFEST,
    AnyCheckpoint,
    Checkpoint,
    CheckpointError,
    FileRecord,
    file_sha256,
    verify_context,
)

_C = TypeVar("_C", bound=AnyCheckpoint)


def write_checkpoint(directory: Path, checkpoint: _C, write_files: Callable[[Path], None]) -> _C:
    """Write a checkpoint beside `directory` and move it there when it is whole.

    `write_files` puts every other file into the folder it is given. An existing checkpoint is replaced only at the end;
    a failure leaves nothing, not even the folders above it.

    Returns:
        The manifest as written, with the files' sizes and hashes.

    Raises:
        CheckpointError: `directory` holds something else than a checkpoint, which is left alone; or the manifest has a
            name, a version, a label or a context that could not be read back.
    """
    _refuse_unreadable(directory, checkpoint)
    refuse_other_files(directory)
    made = _make_folders(directory.parent)
    try:
        return _write_whole(directory, checkpoint, write_files)
    finally:
        for folder in made:
            with suppress(OSError):  # it is not empty: the checkpoint is there
                folder.rmdir()


def _write_whole(directory: Path, checkpoint: _C, write_files: Callable[[Path], None]) -> _C:
    staging = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        write_files(staging)
        files = {
            path.name: FileRecord(path.stat().st_size, file_sha256(path))
            for path in sorted(staging.iterdir())
            if path.name != CARD
        }
        written = msgspec.structs.replace(checkpoint, files=files)
        (staging / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(written), indent=2) + b"\n")
        staging.chmod(0o755)
        _replace(directory, staging)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return written


def _make_folders(directory: Path) -> list[Path]:
    """Make a folder and those above it; gives the ones that were not there, the deepest first."""
    missing = [folder for folder in (directory, *directory.parents) if not folder.exists()]
    directory.mkdir(parents=True, exist_ok=True)
    return missing


def _refuse_unreadable(directory: Path, checkpoint: AnyCheckpoint) -> None:
    """Check a manifest as its reader will, which a record that was made in this process never was."""
    try:
        msgspec.json.decode(msgspec.json.encode(checkpoint), type=type(checkpoint))
    except msgspec.ValidationError as error:
        raise CheckpointError(f"{directory}: this would be no readable checkpoint: {error}") from None
    if isinstance(checkpoint, Checkpoint):
        verify_context(directory, checkpoint)


def refuse_other_files(directory: Path) -> None:
    """Check that a checkpoint may be written there.

    Raises:
        CheckpointError: the directory holds something else than a checkpoint.
    """
    if directory.exists() and not (directory / MANIFEST).is_file() and any(directory.iterdir()):
        raise CheckpointError(f"{directory}: exists and holds no checkpoint: give another directory")


def _replace(directory: Path, staging: Path) -> None:
    if not directory.exists():
        staging.replace(directory)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{directory.name}-old-", dir=directory.parent))
    directory.replace(old / "was")
    staging.replace(directory)
    shutil.rmtree(old)
