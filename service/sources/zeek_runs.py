"""The directories that Zeeks on interfaces run in and keep their logs in: a new one for each start, so that no log of
an earlier one is overwritten, and none of these is ever removed."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from tapline.service.sources.zeek_owners import owned

_UNUSUAL = re.compile(r"[^A-Za-z0-9._-]+")
_ROTATED = re.compile(r".+\.\d{4}(-\d\d){5}\.log(\.gz)?")
"""What Zeek calls a log that it has rotated: name, then date and time."""

_MAX_OF_A_SECOND = 1000


@contextlib.contextmanager
def zeek_run(directory: Path, sensor: str) -> Iterator[Path]:
    """A new directory below `directory` for one run of Zeek, ours alone while the block runs; it stays.

    It is called by the sensor and the time (UTC): `host_eth0-20250601T080000Z`.

    Raises:
        OSError: it cannot be made.
    """
    folder = _new(directory, sensor)
    with owned(folder) as is_ours:
        if not is_ours:
            raise FileNotFoundError(f"{folder}: it was taken away")
        yield folder


def _new(directory: Path, sensor: str) -> Path:
    name = f"{_UNUSUAL.sub('_', sensor).lstrip('.') or 'zeek'}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    for number in range(_MAX_OF_A_SECOND):
        folder = directory.resolve() / (f"{name}-{number}" if number else name)
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            return folder
    raise FileExistsError(f"{directory / name}: too many runs began in one second")


def trim_run(folder: Path, max_bytes: int) -> tuple[int, int]:
    """Remove the oldest rotated logs of a run that still runs until it has at most so many bytes; how many logs and
    bytes that were. What Zeek writes to is left alone."""
    found = []
    for path in folder.iterdir():
        with contextlib.suppress(OSError):
            status = path.lstat()
            found.append((status.st_mtime_ns, status.st_size, path))
    total = sum(size for _, size, _ in found)
    count = removed_bytes = 0
    for _, size, path in sorted(found):
        if total - removed_bytes <= max_bytes:
            break
        if _ROTATED.fullmatch(path.name):
            path.unlink(missing_ok=True)
            count, removed_bytes = count + 1, removed_bytes + size
    return count, removed_bytes
