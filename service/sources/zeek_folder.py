"""Temporary folders for Zeeks that read captures: each is locked while its owner lives; what a dead one left is removed
at the next start, a Zeek that still runs included."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tapline.service.log_lines import log
from tapline.service.sources.zeek_owners import LOCK, end_abandoned, owned

PREFIX = "tapline-zeek-"


@contextlib.contextmanager
def zeek_folder() -> Iterator[Path]:
    """A folder for one Zeek, ours alone while the block runs, and removed at its end.

    Raises:
        OSError: the folder cannot be made.
    """
    while True:
        made = tempfile.TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True)
        with made as name, owned(Path(name)) as is_ours:
            if is_ours:  # otherwise a sweep took it for abandoned before it was locked
                yield Path(name).resolve()
                return


def sweep() -> None:
    """End the Zeeks that dead owners left, and remove their temporary folders. Leaves alone what is not ours."""
    end_abandoned()
    for other in Path(tempfile.gettempdir()).resolve().glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # another sweep is faster, or it cannot be removed
            if other.is_symlink() or other.stat().st_uid != os.geteuid() or not (other / LOCK).exists():
                continue
            with owned(other) as is_ours:
                if is_ours:
                    shutil.rmtree(other)
                    log.info("folder of an earlier run removed", folder=str(other))
