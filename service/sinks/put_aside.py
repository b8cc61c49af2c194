"""Files of an output that were put aside: their names, how many stay, and their compressing, which nobody waits for."""

from __future__ import annotations

import contextlib
import gzip
import re
import shutil
import threading
import time
from pathlib import Path
from typing import IO, Any, Literal

import zstandard

from tapline.service.log_lines import log
from tapline.service.sinks.sender import reason_of

Compression = Literal["none", "gzip", "zstd"]

_SUFFIX: dict[Compression, str] = {"none": "", "gzip": ".gz", "zstd": ".zst"}
_UNFINISHED = ".part"
_COPY_BYTES = 1 << 20


class PutAside:
    """Puts a file aside as `NAME.YYYYmmddTHHMMSSffffffZ`, with `.gz` or `.zst` where it is compressed; the newest
    `keep` of those stay. Files of other names are never touched."""

    def __init__(self, path: Path, keep: int, compress: Compression) -> None:
        self._path = path
        self._keep = keep
        self._compress = compress
        self._pattern = re.compile(rf"{re.escape(path.name)}\.[0-9]{{8}}T[0-9]{{12}}Z(\.gz|\.zst)?")
        self._compressing: threading.Thread | None = None

    def put_aside(self) -> None:
        """Give the file its other name.

        Raises:
            OSError: it cannot be renamed.
        """
        self._wait(None)
        seconds, nanos = divmod(time.time_ns(), 1_000_000_000)
        now = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime(seconds))}{nanos // 1000:06}Z"
        aside = self._path.with_name(f"{self._path.name}.{now}")
        self._path.rename(aside)
        if self._compress == "none":
            self._delete_oldest()
            return
        self._compressing = threading.Thread(
            target=self._compressed, args=(aside,), name=f"compressing {self._path.name}", daemon=True
        )
        self._compressing.start()

    def close(self) -> None:
        """Wait a little for what is being compressed; what is not done stays as it was."""
        self._wait(5)

    def _wait(self, seconds: float | None) -> None:
        if self._compressing is not None:
            self._compressing.join(seconds)

    def _compressed(self, aside: Path) -> None:
        made = aside.with_name(aside.name + _SUFFIX[self._compress])
        unfinished = made.with_name(made.name + _UNFINISHED)
        try:
            with aside.open("rb") as source, _compressing(self._compress, unfinished) as target:
                unfinished.chmod(aside.stat().st_mode & 0o777)
                shutil.copyfileobj(source, target, _COPY_BYTES)
            unfinished.rename(made)
            aside.unlink()
        except OSError as error:
            log.error("a file could not be compressed, it stays as it is", file=aside, reason=reason_of(error))
            with contextlib.suppress(OSError):
                unfinished.unlink(missing_ok=True)
        self._delete_oldest()

    def _delete_oldest(self) -> None:
        try:
            found = sorted(path for path in self._path.parent.iterdir() if self._pattern.fullmatch(path.name))
            for path in found[: -self._keep]:
                path.unlink(missing_ok=True)
            for path in self._path.parent.glob(f"{self._path.name}.*Z.*{_UNFINISHED}"):
                if self._pattern.fullmatch(path.name.removesuffix(_UNFINISHED)):  # of a process that was killed
                    path.unlink(missing_ok=True)
        except OSError as error:
            log.error("old files could not be deleted", file=self._path, reason=reason_of(error))


def _compressing(compress: Compression, path: Path) -> IO[Any] | gzip.GzipFile:
    if compress == "gzip":
        return gzip.GzipFile(path, "wb", compresslevel=6)
    compressed: IO[Any] = zstandard.open(path, "wb")
    return compressed
