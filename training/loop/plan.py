"""What a command would do, for `--dry-run`: one record for all of them, and the checks of where they write."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

from tapline.models.checkpoint_writing import refuse_other_files
from tapline.training.loop.config import TrainingError
from tapline.training.loop.run_files import RUN
from tapline.training.loop.run_log import EVENTS, LOSSES
from tapline.training.loop.run_state import STATE
from tapline.training.loop.trainer import Stage

LOOKED_AT = 16
"""Batches that the number of tokens is estimated from."""

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


class _Command(msgspec.Struct):
    command: str


def run_notes(directory: Path, command: str) -> list[str]:
    """What a run of this command would replace in a directory.

    Raises:
        TrainingError: the directory holds a run of another command, or something else than a run.
    """
    path = directory / RUN
    if path.is_file():
        try:
            found = msgspec.json.decode(path.read_bytes(), type=_Command).command
        except (OSError, msgspec.DecodeError):
            raise TrainingError(f"{path}: not the record of a run: give another directory") from None
        if found != command:
            raise TrainingError(f"{directory}: holds a run of {found}: give another directory")
        return [f"the finished run in {directory} is replaced when the new one is finished"]
    mine = any((directory / name).exists() for name in (STATE, LOSSES, EVENTS))
    if not mine and directory.is_dir() and any(not path.name.startswith(".") for path in directory.iterdir()):
        raise TrainingError(f"{directory}: exists and holds no run: give another directory")
    return []


def expected_tokens(stage: Stage, steps: int) -> str:
    """How many tokens so many steps of a stage read, and how much of what is computed is padding: from the first
    batches."""
    works = list(islice(stage.works(0), LOOKED_AT))
    tokens, computed = sum(work.tokens for work in works), sum(work.computed for work in works)
    return (
        f"about {steps * tokens / len(works):,.0f} tokens ({1 - tokens / computed:.0%} of what is computed is padding)"
    )


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
