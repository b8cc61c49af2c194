"""The space of a search: settings of fine-tuning by the names of their options, each fixed, a choice, or a range."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import msgspec

from tapline.training.loop.config import TrainingConfig, TrainingError, network_sizes

OPTIONS = {
    "d": "-d", "nh": "-nh", "l": "-l", "f": "-f", "b": "-b", "ep": "-ep", "frozen-epochs": "--frozen-epochs",
    "lr": "-lr", "draws": "--draws", "clip": "--clip", "packets": "--packets", "content-bytes": "--content-bytes",
}  # fmt: skip
"""What can be searched, and the options of finetune that take it."""
_FIELDS = {
    "d": "d_model", "nh": "n_head", "l": "n_layer", "f": "dim_ff", "b": "batch_flows", "ep": "epochs",
    "frozen-epochs": "frozen_epochs", "lr": "learning_rate", "draws": "draws", "clip": "clip_norm",
}  # fmt: skip
_FEATURES = {"packets": "payload_lengths", "content-bytes": "content_bytes"}
_REAL = frozenset({"lr", "clip"})
MAX_NETWORKS = 1000
"""Widths and heads that are tried for whether they go together."""

Value = int | float
Settings = Mapping[str, Value]


class Range(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Values from `low` to `high`, both included, by logarithm where so."""

    low: Value
    high: Value
    log: bool = False


class _SpaceFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    search: dict[str, Range | Annotated[list[Value], msgspec.Meta(min_length=1)]]
    fixed: dict[str, Value] = {}


class Space(msgspec.Struct, frozen=True):
    """What is searched, and what is fixed at other values than those of finetune."""

    searched: dict[str, Range | list[Value]]
    fixed: dict[str, Value] = {}

    def config(self, chosen: Settings, base: TrainingConfig) -> TrainingConfig:
        """The settings of a trial.

        Raises:
            TrainingError: they are out of bounds, or do not go together.
        """
        given = {**self.fixed, **chosen}
        changes: dict[str, Any] = {_FIELDS[name]: value for name, value in given.items() if name in _FIELDS}
        reads = {_FEATURES[name]: value for name, value in given.items() if name in _FEATURES}
        try:
            features = msgspec.convert(msgspec.structs.asdict(base.features) | reads, type(base.features))
            config = msgspec.convert(
                msgspec.structs.asdict(msgspec.structs.replace(base, features=features)) | changes, TrainingConfig
            )
        except (msgspec.ValidationError, ValueError) as error:
            raise TrainingError(f"settings of a trial: {error}") from None
        if least := [
            name for name, value in given.items() if value <= 0 and name not in ("frozen-epochs", "content-bytes")
        ]:
            raise TrainingError(f"{least[0]}: expected more than 0")
        network_sizes(config, 1)
        return config

    def options(self, chosen: Settings) -> str:
        """What finetune is given for them."""
        return " ".join(f"{OPTIONS[name]} {value!r}" for name, value in {**self.fixed, **chosen}.items())

    def corners(self) -> Iterator[dict[str, Value]]:
        """Settings at the bounds of every range, and all networks that there may be."""
        ends = {name: [v.low, v.high] if isinstance(v, Range) else list(v) for name, v in self.searched.items()}
        middle = {name: values[0] for name, values in ends.items()}
        for name, values in ends.items():
            yield from ({**middle, name: value} for value in values)
        widths, heads = (ends.get(name, [self.fixed[name]] if name in self.fixed else []) for name in ("d", "nh"))
        for d, nh in product(widths[:MAX_NETWORKS], heads):
            yield {**middle, "d": d, "nh": nh}


DEFAULT_SPACE = Space({
    "lr": Range(5e-4, 5e-3, log=True),
    "b": [16, 32, 64],
    "d": [32, 64, 128],
    "l": [1, 2, 3],
    "packets": [16, 32],
    "content-bytes": [32, 64, 128],
})  # fmt: skip


def read_space(path: Path | None) -> Space:
    """The space of a TOML file with the tables `search` and, if anything is, `fixed`; the default without a file.

    Raises:
        TrainingError: it is unreadable, a setting is none of `OPTIONS`, its range is empty, or a value out of bounds.
    """
    if path is None:
        return DEFAULT_SPACE
    try:
        found = msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), _SpaceFile)
    except OSError as error:
        raise TrainingError(f"{path}: unreadable: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as error:
        raise TrainingError(f"{path}: not a space of settings: {error}") from None
    if strange := sorted((found.search.keys() | found.fixed.keys()) - OPTIONS.keys()):
        raise TrainingError(f"{path}: no setting {strange[0]}: expected some of {', '.join(OPTIONS)}")
    if twice := sorted(found.search.keys() & found.fixed.keys()):
        raise TrainingError(f"{path}: {twice[0]} is searched and fixed: leave one of them out")
    if not found.search:
        raise TrainingError(f"{path}: nothing to search: give settings in the table `search`")
    for name, values in found.search.items():
        _check(f"{path}: {name}", name, values)
    space = Space(dict(found.search), dict(found.fixed))
    for corner in space.corners():
        try:
            space.config(corner, TrainingConfig())
        except TrainingError as error:
            raise TrainingError(f"{path}: {error}") from None
    return space


def _check(where: str, name: str, values: Range | list[Value]) -> None:
    ends = [values.low, values.high] if isinstance(values, Range) else values
    if name not in _REAL and any(isinstance(value, float) for value in ends):
        raise TrainingError(f"{where}: expected whole numbers")
    if isinstance(values, Range) and not values.low < values.high:
        raise TrainingError(f"{where}: expected low below high")
    if isinstance(values, Range) and values.log and values.low <= 0:
        raise TrainingError(f"{where}: expected more than 0 with log")
    if not isinstance(values, Range) and len(set(values)) < len(values):
        raise TrainingError(f"{where}: a value stands there twice")
