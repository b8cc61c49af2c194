"""What models of flows and of traces have alike in Python: where they are from, and what they say of themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Generic, TypeVar

from tapline.models.card_header import read_card
from tapline.models.checkpoint import CARD, AnyCheckpoint

C = TypeVar("C", bound=AnyCheckpoint)


class LoadedModel(Generic[C]):
    """A checkpoint that is loaded: its manifest `checkpoint`, its `directory`, and the `threads` of its engine."""

    def __init__(self, checkpoint: C, directory: Path, threads: int) -> None:
        self.checkpoint = checkpoint
        self.directory = directory
        self.threads = threads

    @property
    def name(self) -> str:
        """The model's name."""
        return self.checkpoint.name

    @property
    def version(self) -> str:
        """The model's version."""
        return self.checkpoint.version

    @property
    def labels(self) -> list[str]:
        """What it knows, in the order of the columns of `predict_proba`."""
        return list(self.checkpoint.labels)

    @property
    def card(self) -> str:
        """The model card in Markdown, empty where the checkpoint has none."""
        return read_card(self.directory) if (self.directory / CARD).is_file() else ""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name} {self.version}: {len(self.checkpoint.labels)} labels>"
