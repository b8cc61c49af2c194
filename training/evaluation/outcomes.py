"""Fold outcomes on disk (numpy's archive, never pickled), so that calibration and reports need no training again."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tapline.training.evaluation.flow_cross_validation import FoldOutcome
from tapline.training.loop.config import TrainingError
from tapline.training.loop.run_files import OUTCOMES

_CURVES = {"prefixes", "contents"}
_NAMES = {"captures", "unknown_captures"}
_NUMBERS = {"fold", "majority"}


def write_outcomes(directory: Path, outcomes: Sequence[FoldOutcome]) -> None:
    """Write the outcomes of an evaluation into its run directory."""
    arrays: dict[str, NDArray[Any]] = {}
    for place, outcome in enumerate(outcomes):
        for field in fields(outcome):
            value = getattr(outcome, field.name)
            if field.name in _CURVES:
                arrays |= {f"{place}/{field.name}/{point}": logits for point, logits in value.items()}
            else:
                arrays[f"{place}/{field.name}"] = np.asarray(value, np.str_ if field.name in _NAMES else None)
    staging = directory / f".{os.getpid()}.{OUTCOMES}"
    try:
        np.savez_compressed(staging, allow_pickle=False, **arrays)
        staging.replace(directory / OUTCOMES)
    finally:
        staging.unlink(missing_ok=True)


def read_outcomes(directory: Path) -> list[FoldOutcome]:
    """The outcomes of the evaluation of a run.

    Raises:
        TrainingError: the run was not evaluated, or the file is damaged.
    """
    path = directory / OUTCOMES
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        places = sorted({int(name.partition("/")[0]) for name in arrays})
        return [_outcome(arrays, place) for place in places]
    except FileNotFoundError:
        raise TrainingError(f"{directory}: no {OUTCOMES}: run `evaluate` first") from None
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        raise TrainingError(f"{path}: damaged: run `evaluate` again") from None


def _outcome(arrays: dict[str, NDArray[Any]], place: int) -> FoldOutcome:
    values: dict[str, Any] = {}
    for field in fields(FoldOutcome):
        if field.name in _CURVES:
            start = f"{place}/{field.name}/"
            values[field.name] = {int(n[len(start) :]): a for n, a in arrays.items() if n.startswith(start)}
            continue
        if field.name == "int8" and f"{place}/int8" not in arrays:  # of evaluations that did not know it
            values["int8"] = np.zeros(0, np.int64)
            continue
        value = arrays[f"{place}/{field.name}"]
        if field.name in _NAMES:
            values[field.name] = value.tolist()
        else:
            values[field.name] = int(value) if field.name in _NUMBERS else value
    return FoldOutcome(**values)
