"""The last numbers of sensors' flows on disk, so that after a restart what was published meanwhile counts as missed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import msgspec

from tapline.service.log_lines import log
from tapline.service.sources.bus.source import Numbers

FILE_NAME = "numbers.json"
"""In the data directory."""

SAVE_SECONDS = 1.0
"""Between two looks whether there are others to save: what came in the last of these before a kill counts as missed,
too."""

MAX_BYTES = 64 << 20

_READ = msgspec.json.Decoder(dict[str, dict[str, dict[str, int]]])


class KeptNumbers:
    """A file of numbers by bus, sensor and topic, replaced whole. Where it cannot be read or written that is told once,
    and what the next start misses is not counted."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._saved = b""
        self._told = False

    def load(self) -> Mapping[str, Numbers]:
        """What was saved, by bus; nothing where there is no file, or none that can be read."""
        try:
            with self._path.open("rb") as file:
                return _READ.decode(file.read(MAX_BYTES))
        except FileNotFoundError:
            return {}
        except (OSError, msgspec.DecodeError) as error:
            log.warning("numbers of sensors cannot be read", file=str(self._path), reason=str(error))
            return {}

    def save(self, numbers: Mapping[str, Numbers]) -> None:
        """Write them where they are others than those written last."""
        text = msgspec.json.encode(numbers)
        if text == self._saved:
            return
        staging = self._path.with_suffix(".new")
        try:
            with open(staging, "wb", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
                file.write(text)
            staging.replace(self._path)
        except OSError as error:
            if not self._told:
                log.warning("numbers of sensors cannot be saved", file=str(self._path), reason=str(error))
            self._told = True
        else:
            self._saved, self._told = text, False
