"""The records that run directories hold and cards are written from."""

from __future__ import annotations

import msgspec

from tapline.models.checkpoint import Mm4flowNetwork
from tapline.training.data.corpus import ClassCount
from tapline.training.loop.config import TrainingConfig


class Run(msgspec.Struct, frozen=True):
    """What a run was: settings, data by the hash of their manifest, what was learned, on what and how long.

    `flows` is how many it learned from.
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
