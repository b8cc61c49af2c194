"""The directory in which a service keeps what outlives it; one service at a time has it."""

from __future__ import annotations

import fcntl
from pathlib import Path

_LOCK = "lock"


class DataDirectoryError(RuntimeError):
    """The directory cannot be used; the message says why."""


class DataDirectory:
    """A data directory that is held until `release`, or until the process ends, however it ends."""

    def __init__(self, path: Path) -> None:
        """Make the directory where there is none, for this user alone, and hold it.

        Raises:
            DataDirectoryError: it cannot be made or written, or another service has it.
        """
        self.path = path
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = (path / _LOCK).open("a")
        except OSError as error:
            reason = (error.strerror or type(error).__name__).lower()
            raise DataDirectoryError(
                f"--data-dir {path} cannot be used: {reason}: name another, or --history none"
            ) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise DataDirectoryError(
                f"another service uses {path}: give this one a --data-dir of its own, or --history none"
            ) from None

    def release(self) -> None:
        """Let another have it."""
        self._lock.close()
