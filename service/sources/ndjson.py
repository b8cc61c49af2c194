"""Flows from NDJSON as `tapline features` writes it: a bad line costs that line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from tapline.models.flow import Flow, FlowError, parse_flow

MAX_LINE_BYTES = 64 << 10
"""Longest line that is read; a flow with everything in it takes a quarter of that."""


class FlowLines:
    """Iterates once over the flows of an NDJSON file; `warning` says what was wrong with the first bad line."""

    def __init__(self, source: Path | BinaryIO) -> None:
        self.bytes_read = 0
        self.bytes_total = source.stat().st_size if isinstance(source, Path) else None
        self.packets = 0
        self.bad_lines = 0
        self._first_error = ""
        self._source = source

    @property
    def warning(self) -> str | None:
        """What was left out, or None."""
        if not self.bad_lines:
            return None
        return f"{self.bad_lines} of its lines are not flows; the first: {self._first_error}"

    @property
    def skipped(self) -> dict[str, int]:
        """Lines left out by reason."""
        return {"bad_line": self.bad_lines} if self.bad_lines else {}

    def __iter__(self) -> Iterator[Flow]:
        if isinstance(self._source, Path):
            with self._source.open("rb") as file:
                yield from self._flows(file)
        else:
            yield from self._flows(self._source)

    def _flows(self, file: BinaryIO) -> Iterator[Flow]:
        number = 0
        while line := file.readline(MAX_LINE_BYTES):
            number += 1
            self.bytes_read += len(line)
            if len(line) == MAX_LINE_BYTES and not line.endswith(b"\n"):
                self._skip_rest(file)
                self._refuse(number, f"longer than {MAX_LINE_BYTES} bytes")
                continue
            if not line.strip():
                continue
            try:
                yield parse_flow(line)
            except FlowError as error:
                self._refuse(number, str(error))

    def _skip_rest(self, file: BinaryIO) -> None:
        while (rest := file.readline(MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
            self.bytes_read += len(rest)

    def _refuse(self, number: int, reason: str) -> None:
        self.bad_lines += 1
        self._first_error = self._first_error or f"line {number}: {reason}"
