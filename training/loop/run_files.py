"""Reading and writing the files of run directories: weights, records, hashes of what a run depends on."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tapline.models.checkpoint import Mm4flowNetwork, file_sha256
from tapline.training.loop.config import TrainingError

RUN = "run.json"
MODEL = "model.safetensors"
ENCODERS = "encoders.safetensors"
EVALUATION = "evaluation.json"
OUTCOMES = "outcomes.npz"
VERDICTS = "verdicts.npz"

_Record = TypeVar("_Record")


def scratch_folder() -> Path:
    """Where flows are kept while a command that writes no directory runs."""
    return Path(tempfile.gettempdir())


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A file to be written beside `path`, whose place it takes at the end; on a failure what was there still is."""
    staging = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield staging
        staging.replace(path)
    finally:
        staging.unlink(missing_ok=True)


def write_json(path: Path, value: object) -> None:
    """Write a record as indented JSON, whole or not at all."""
    with whole(path) as staging:
        staging.write_bytes(msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n")


def save_weights(weights: Mapping[str, Tensor], path: Path) -> None:
    """Write weights, whole or not at all.

    The decoder of a masked-token head shares its matrix with the embeddings: each name gets a copy of its own.

    Raises:
        TrainingError: they could not be written; what was there before still is.
    """
    copies = {name: value.detach().cpu().clone().contiguous() for name, value in weights.items()}
    try:
        with whole(path) as staging:
            save_file(copies, staging)
    except (OSError, SafetensorError) as error:
        raise TrainingError(f"{path}: cannot write the weights ({error}): make room and run it again") from None


def load_weights(path: Path) -> dict[str, Tensor]:
    """Weights from a run directory.

    Raises:
        TrainingError: missing or damaged.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError):
        raise TrainingError(f"{path}: missing or damaged weights: run the step before again") from None


class _Command(msgspec.Struct):
    """What is read of a run's record before the rest: runs of traces have another one."""

    command: str


def command_of(directory: Path) -> str:
    """The command that made a run, "" where there is no record of one."""
    try:
        return msgspec.json.decode((directory / RUN).read_bytes(), type=_Command).command
    except (OSError, msgspec.DecodeError):
        return ""


def read_record(
    directory: Path, kind: type[_Record], commands: Collection[str], wanted: str, run: str = "", fault: str = ""
) -> _Record:
    """The record of a run of one of `commands`, which are `wanted` in words.

    `run` is what was expected where there is none, `fault` what is said before the fault of a record.

    Raises:
        TrainingError: the directory holds none.
    """
    try:
        record = (directory / RUN).read_bytes()
        found = msgspec.json.decode(record, type=_Command).command
        if found not in commands:
            raise TrainingError(f"{directory}: a run of {found}, expected one of {wanted}")
        return msgspec.json.decode(record, type=kind)
    except OSError as error:
        expected = run or f"a run of {wanted}"
        raise TrainingError(f"{directory}: no readable {RUN} ({error.strerror}): expected {expected}") from None
    except msgspec.DecodeError as error:
        raise TrainingError(f"{directory / RUN}: {fault}{error}") from None


def read_encoders(directories: Sequence[Path]) -> dict[str, Tensor] | None:
    """Weights of pre-trained encoders from runs of pretrain, None without one."""
    weights: dict[str, Tensor] = {}
    for directory in directories:
        weights |= load_weights(_encoders_file(directory))
    return weights or None


class _Encoders(msgspec.Struct):
    network: Mm4flowNetwork


def encoder_sizes(directory: Path) -> Mm4flowNetwork:
    """The network of a run of pretrain.

    Raises:
        TrainingError: the directory holds none.
    """
    return read_record(directory, _Encoders, ("pretrain",), "pretrain").network


def encoders_of(directories: Sequence[Path]) -> str:
    """The hash of the encoders that a run starts from, "" without any."""
    return "+".join(file_sha256(_encoders_file(directory)) for directory in directories)


def _encoders_file(directory: Path) -> Path:
    path = directory / ENCODERS
    if not path.is_file():
        raise TrainingError(f"{directory}: no {ENCODERS}: expected a run of pretrain")
    return path


def fingerprint(*parts: object) -> str:
    """A hash of everything that decides a run."""
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()


def weights_hash(weights: Mapping[str, Tensor] | None) -> str:
    """A hash of weights by their names, "" without any."""
    if weights is None:
        return ""
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
