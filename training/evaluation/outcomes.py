"""What folds said of what was held out, and its files, so that figures and reports need no training again.

Those of flows are one numpy archive of an evaluation (never pickled); each of traces is a file that says what it was
measured on.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from tapline.training.data.store import Ids, no_ids
from tapline.training.loop.config import TrainingError
from tapline.training.loop.run_files import OUTCOMES, whole
from tapline.training.loop.scores import Floats, Ints

FINGERPRINT = "fingerprint"
POINTS = "points"
"""Of a field with a table for each point: how the names of its tables begin."""

Logits = NDArray[np.float32]
Tables = Mapping[str, NDArray[Any]]


def _no_logits() -> Logits:
    return np.zeros((0, 0), np.float32)


def _no_classes() -> Ints:
    return np.zeros(0, np.int64)


@dataclass(frozen=True)
class FlowOutcome:
    """What one fold yields: n known flows of captures, and m flows of protocols, that were kept from training.

    * `logits` float32 [n, classes], with context; `prefixes` and `contents` the same after so many packets and with so
      many content bytes; `unknown_logits` float32 [m, classes]. `without_ports` and `unknown_without_ports` are those
      of transports alone, `random_ports` and `forged_ports` those of the known flows with ports of `other_ports`; all
      four are empty where ports are not read.
    * Of the trees the predicted class, the confidence in it, and the confidence on the unknown flows; of the forest the
      predicted class; `majority` is the most frequent class. `int8` is the class that the quantised model predicts;
      `ports` that of the port table, and `zeek` that of Zeek's service, one more than the last label where it says
      nothing, and two more where Zeek's logs lack the flow; `context_trees` that of the trees that read context too.
      What was not measured is empty.
    * `corpus` is what was left out, "" for captures of any. `ids` uint64 [n] name the flows (`data.store.id_of`).
    """

    fold: int
    captures: list[str]
    truth: Ints
    logits: Logits
    prefixes: dict[int, Logits] = field(metadata={POINTS: "prefixes/"})
    contents: dict[int, Logits] = field(metadata={POINTS: "contents/"})
    unknown_captures: list[str]
    unknown_logits: Logits
    trees: Ints
    trees_confidence: Floats
    trees_unknown_confidence: Floats
    forest: Ints
    majority: int
    int8: Ints = field(default_factory=_no_classes)
    ports: Ints = field(default_factory=_no_classes)
    corpus: str = ""
    without_ports: Logits = field(default_factory=_no_logits)
    random_ports: Logits = field(default_factory=_no_logits)
    forged_ports: Logits = field(default_factory=_no_logits)
    unknown_without_ports: Logits = field(default_factory=_no_logits)
    unknown_labels: list[str] = field(default_factory=list)
    ports_random: Ints = field(default_factory=_no_classes)
    ports_forged: Ints = field(default_factory=_no_classes)
    context_trees: Ints = field(default_factory=_no_classes)
    context_trees_random: Ints = field(default_factory=_no_classes)
    context_trees_forged: Ints = field(default_factory=_no_classes)
    zeek: Ints = field(default_factory=_no_classes)
    ids: Ids = field(default_factory=no_ids)


@dataclass(frozen=True)
class TraceOutcome:
    """What one fold said of traces it did not learn from: `rows` int64 [m] of the corpus, `logits` float32 [m, C], of
    C + 1 where it learned background.

    `prefixes` int64-named: the same after so many flows. `removal_rows` int64 [r] of the corpus, `top` and `random`
    float64 [r]: fall of the confidence without flows (`attribution`). `background` float32 [b, C + 1]
    are the logits of the half of the background that it did not learn, `background_flows` int64 [b] their flows.
    """

    rows: Ints
    logits: Logits
    prefixes: dict[int, Logits] = field(metadata={POINTS: "prefix-"})
    removal_rows: Ints
    top: Floats
    random: Floats
    background: Logits = field(default_factory=_no_logits)
    background_flows: Ints = field(default_factory=_no_classes)


Outcome = TypeVar("Outcome", FlowOutcome, TraceOutcome)


def _tables(outcome: Outcome) -> dict[str, NDArray[Any]]:
    """The tables of an outcome by name."""
    tables: dict[str, NDArray[Any]] = {}
    for each in fields(outcome):
        value = getattr(outcome, each.name)
        if start := each.metadata.get(POINTS):
            tables |= {f"{start}{point}": table for point, table in value.items()}
        else:
            tables[each.name] = np.asarray(value, np.str_ if isinstance(value, list) else None)
    return tables


def _outcome(kind: type[Outcome], tables: Tables) -> Outcome:
    """The outcome of its tables; those of before a field was measured lack it.

    Raises:
        TypeError: it lacks another one.
    """
    values: dict[str, Any] = {}
    for each in fields(kind):
        if start := each.metadata.get(POINTS):
            values[each.name] = {int(n.removeprefix(start)): t for n, t in tables.items() if n.startswith(start)}
        elif each.name in tables:
            table = tables[each.name]
            values[each.name] = table.tolist() if table.ndim == 0 or table.dtype.kind == "U" else table
    return kind(**values)


def write_outcomes(directory: Path, outcomes: Sequence[FlowOutcome]) -> None:
    """Write the outcomes of an evaluation of flows into its run directory."""
    tables = {f"{place}/{name}": t for place, each in enumerate(outcomes) for name, t in _tables(each).items()}
    with whole(directory / OUTCOMES) as staging, staging.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **tables)


def read_outcomes(directory: Path) -> list[FlowOutcome]:
    """The outcomes of the evaluation of a run of flows.

    Raises:
        TrainingError: the run was not evaluated, or the file is damaged.
    """
    path = directory / OUTCOMES
    by_place: dict[int, dict[str, NDArray[Any]]] = {}
    try:
        with np.load(path, allow_pickle=False) as file:
            for name in file.files:
                place, _, table = name.partition("/")
                by_place.setdefault(int(place), {})[table] = file[name]
        return [_outcome(FlowOutcome, tables) for _, tables in sorted(by_place.items())]
    except FileNotFoundError:
        raise TrainingError(f"{directory}: no {OUTCOMES}: run `evaluate` first") from None
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
        raise TrainingError(f"{path}: damaged: run `evaluate` again") from None


def write_outcome(path: Path, outcome: TraceOutcome, measured_on: str) -> None:
    """Write an outcome with the fingerprint of what it was measured on, whole or not at all.

    Raises:
        TrainingError: it could not be written.
    """
    tables = _tables(outcome)
    if not len(outcome.background):
        del tables["background"], tables["background_flows"]
    try:
        with whole(path) as staging:
            save_file({n: np.ascontiguousarray(t) for n, t in tables.items()}, staging, {FINGERPRINT: measured_on})
    except (OSError, SafetensorError) as error:
        raise TrainingError(f"{path}: cannot write the fold ({error}): make room and run it again") from None


def read_outcome(path: Path) -> TraceOutcome:
    """Read an outcome that `write_outcome` wrote.

    Raises:
        TrainingError: it is damaged.
    """
    try:
        return _outcome(TraceOutcome, load_file(path))
    except (OSError, SafetensorError, TypeError):
        raise _damaged(path) from None


def measured_on(path: Path) -> str:
    """What an outcome was measured on, "" where it does not say so.

    Raises:
        TrainingError: it is damaged.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            return str((file.metadata() or {}).get(FINGERPRINT, ""))
    except (OSError, SafetensorError):
        raise _damaged(path) from None


def _damaged(path: Path) -> TrainingError:
    return TrainingError(f"{path}: damaged: delete it, and evaluate again to measure that fold")
