"""The record of a run of pretrain or finetune, as its directory holds it."""

from __future__ import annotations

from pathlib import Path

import msgspec

from tapline.models.checkpoint import Mm4flowNetwork
from tapline.models.context import FlowContext
from tapline.training.data.corpus import ClassCount
from tapline.training.loop.config import TrainingConfig
from tapline.training.loop.run_files import read_record


class Run(msgspec.Struct, frozen=True):
    """What a run was: settings, data by the hash of their manifest, what was learned, on what and how long.

    `flows` is how many it learned from; `context` is that of finetune, None of runs of before there was one.
    """

    command: str
    config: TrainingConfig
    min_captures: int
    features: dict[str, str]
    encoders: str
    network: Mm4flowNetwork
    labels: list[ClassCount]
    background: list[ClassCount]
    versions: dict[str, str]
    hardware: str
    seconds: float
    split: str = ""
    flows: int = 0
    context: FlowContext | None = None
    min_flows: int = 1


def read_run(directory: Path, command: str = "finetune") -> Run:
    """The record of a run of `command`.

    Raises:
        TrainingError: the directory holds none.
    """
    return read_record(directory, Run, (command,), command)
