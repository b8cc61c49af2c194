"""Where the captures of jobs come from: a directory that the operator names. Nothing outside of it can be reached."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from tapline.service.jobs.job import JobError

MAX_PATH_CHARS = 1024
_MAX_DEPTH = 32
_MAX_LISTED = 10_000
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class BadPathError(JobError):
    """The path names no capture below the configured directory."""


def open_below(directory: Path | None, path: str) -> BinaryIO:
    """Open a regular file below a directory. No symbolic link is followed, so that none leads out, nor does `..`.

    Raises:
        BadPathError: there is no such file, or no directory is configured.
    """
    if directory is None:
        raise BadPathError("captures on this machine are not offered: start the service with --captures-dir")
    parts = PurePosixPath(path).parts
    if not path or len(path) > MAX_PATH_CHARS or len(parts) > _MAX_DEPTH or "\0" in path:
        raise BadPathError("expected the path of a capture below the directory of captures")
    if path.startswith("/") or ".." in parts or not parts:
        raise BadPathError("expected a path below the directory of captures, without / at its start and without ..")
    try:
        return _open(directory, parts)
    except (OSError, UnicodeError):
        raise BadPathError("there is no such regular file below the directory of captures") from None


def _open(directory: Path, parts: tuple[str, ...]) -> BinaryIO:
    """Open it part by part: what is opened is what was looked at."""
    folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in parts[:-1]:
            inner = os.open(part, _FOLDER, dir_fd=folder)
            os.close(folder)
            folder = inner
        file = os.open(parts[-1], _FILE, dir_fd=folder)
    finally:
        os.close(folder)
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise FileNotFoundError
        return os.fdopen(file, "rb", buffering=0)
    except BaseException:
        os.close(file)
        raise


def captures_below(directory: Path | None) -> list[str]:
    """The regular files below a directory, by their paths as `open_below` takes them, at most `_MAX_LISTED`, in order.
    Hidden ones and what links lead to are left out."""
    return sorted(path for path, _ in zip(_below(directory), range(_MAX_LISTED), strict=False)) if directory else []


def _below(directory: Path) -> Iterator[str]:
    for folder, folders, files in os.walk(directory):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            path = Path(folder, name)
            if not name.startswith(".") and stat.S_ISREG(path.lstat().st_mode):
                yield path.relative_to(directory).as_posix()
