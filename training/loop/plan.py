"""What a command would do, for `--dry-run`: one record for all of them, and checkpoint directories tried elsewhere."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

from tapline.models.checkpoint_writing import refuse_other_files

_Written = TypeVar("_Written")


class Plan(msgspec.Struct, frozen=True):
    """What a command does, in words: the verb, with what, where it writes, and what is worth a look before."""

    does: str
    facts: list[str]
    writes: list[Path]
    notes: list[str] = []

    def lines(self) -> list[str]:
        """The plan as the user reads it."""
        return [
            f"would {self.does}: {', '.join(self.facts)}",
            *(f"note: {note}" for note in self.notes),
            f"would write: {', '.join(map(str, self.writes))}",
        ]


@dataclass(frozen=True)
class Tried(Generic[_Written]):
    """What writing a directory gave, and its files in words."""

    written: _Written
    facts: list[str]


def tried(directory: Path, write: Callable[[Path], _Written]) -> Tried[_Written]:
    """Let `write`, which writes a checkpoint directory, write a temporary one.

    Raises:
        CheckpointError: `directory` holds something else than a checkpoint.
        Exception: whatever `write` raises.
    """
    refuse_other_files(directory)
    with tempfile.TemporaryDirectory() as folder:
        written = write(Path(folder) / directory.name)
        sizes = [path.stat().st_size for path in (Path(folder) / directory.name).iterdir()]
    return Tried(written, [f"{len(sizes)} files", f"{sum(sizes) / 1e6:.1f} MB"])


def too_few(labels: Iterable[tuple[str, int]], least: int) -> list[str]:
    """A note on labels, each with its captures, that fewer than `least` captures hold."""
    few = [f"{label} ({captures})" for label, captures in labels if captures < least]
    return [f"in fewer than {least} captures, not learned: {', '.join(few)}"] if few else []


def joined(facts: Sequence[str | None]) -> list[str]:
    """The facts there are."""
    return [fact for fact in facts if fact]
