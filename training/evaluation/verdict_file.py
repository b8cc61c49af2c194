"""What a model said of each thing it was measured on, in one small file beside the report, whatever was measured; so
that two evaluations can be compared on the same flows or traces. Reads and writes it."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from tapline.training.data.store import Ids
from tapline.training.evaluation.measured import Measured
from tapline.training.loop.config import TrainingError
from tapline.training.loop.run_files import VERDICTS, whole
from tapline.training.loop.scores import Floats, Ints


class VerdictsAbout(msgspec.Struct, frozen=True):
    """Of which `unit` the verdicts are, `labels`, how they were measured in words, and the settings of the model."""

    unit: str
    labels: list[str]
    how: str
    min_support: int
    settings: dict[str, Any]


@dataclass(frozen=True)
class Verdicts:
    """What was said of n things: `ids` uint64 [n] name them (`data.store.id_of`), `truth` and `predicted` int64 [n] are
    places among the labels, `confidence` float64 [n]; `folds` int64 [n], of one fold all 0."""

    about: VerdictsAbout
    ids: Ids
    truth: Ints
    predicted: Ints
    confidence: Floats
    folds: Ints
    captures: list[str]


def write_verdicts(directory: Path, measured: Measured, how: str, settings: Mapping[str, Any]) -> None:
    """Write what was measured; nothing where the things have no ids, as in outcomes of before there were any."""
    if len(measured.ids) != len(measured.truth):
        (directory / VERDICTS).unlink(missing_ok=True)
        return
    about = VerdictsAbout(measured.unit, list(measured.labels), how, measured.min_support, dict(settings))
    folds = np.zeros(len(measured.truth), np.int64) if measured.folds is None else measured.folds
    with whole(directory / VERDICTS) as staging, staging.open("wb") as file:
        np.savez_compressed(
            file,
            allow_pickle=False,
            about=np.frombuffer(msgspec.json.encode(about), np.uint8),
            ids=measured.ids,
            truth=measured.truth,
            predicted=measured.predicted,
            confidence=measured.confidence,
            folds=folds,
            captures=np.array(measured.captures, np.str_),
        )


def read_verdicts(directory: Path) -> Verdicts | None:
    """What was said in an evaluation, None where its directory does not hold it.

    Raises:
        TrainingError: the file is damaged.
    """
    path = directory / VERDICTS
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            about = msgspec.json.decode(file["about"].tobytes(), type=VerdictsAbout)
            tables = {name: file[name] for name in ("ids", "truth", "predicted", "confidence", "folds")}
            return Verdicts(about, **tables, captures=file["captures"].tolist())
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, msgspec.DecodeError):
        raise TrainingError(f"{path}: damaged: evaluate again") from None
