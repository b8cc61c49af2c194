"""Which models and labels there are in repositories, for those who check names."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from tapline.models.checkpoint import CheckpointError, checkpoint_kind, read_checkpoint, read_trace_checkpoint
from tapline.service.inference.repository import Repository


def names_and_labels(repositories: Iterable[Repository], warn: Callable[[str], None]) -> tuple[set[str], set[str]]:
    """Of the newest version of each model; `warn` is told of checkpoints that cannot be read."""
    names: set[str] = set()
    labels: set[str] = set()
    for repository in repositories:
        for name in repository.names():
            try:
                directory = repository.find(name)
                is_trace = checkpoint_kind(directory) == "tracegram"
                found = read_trace_checkpoint(directory, needs=()) if is_trace else read_checkpoint(directory, needs=())
            except CheckpointError as error:
                warn(str(error))
                continue
            names |= {name, found.name}
            labels |= set(found.labels)
    return names, labels
