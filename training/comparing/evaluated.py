"""What can be compared, read from its directory: settings, figures, what was said of each thing, as far as there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from tapline.models.checkpoint import MANIFEST, TracegramCheckpoint, read_any_checkpoint
from tapline.training.evaluation.evaluation_record import EvaluationRecord, TraceEvaluation
from tapline.training.evaluation.flow_measured import MIN_FLOWS, MIN_POOLED_FLOWS, is_pooled
from tapline.training.evaluation.measured import Figures
from tapline.training.evaluation.page import REPORTS
from tapline.training.evaluation.verdict_file import Verdicts, read_verdicts
from tapline.training.loop.config import TrainingError
from tapline.training.loop.run_files import RUN, command_of
from tapline.training.loop.scores import Interval

_NO_SETTINGS = frozenset(
    {"versions", "hardware", "seconds", "context", "metrics", "provenance", "files", "format_version"}
)
"""What records hold beside settings: cost, and what came out."""
_HASH_DIGITS = 12


class FigureRow(msgspec.Struct, frozen=True):
    """The figures of one side: macro-F1 with its interval over captures, the share that is right, calibration error,
    AUROC of *unknown*, and what is called so wrongly and rightly; None where it was not measured. Macro-F1 counts the
    labels with `least` things."""

    things: int
    macro_f1: float
    interval: Interval
    accuracy: float | None
    calibration_error: float
    unknown_auroc: float | None
    known_rejected: float | None
    unknown_rejected: float | None
    least: int


@dataclass(frozen=True)
class Evaluated:
    """A run, an evaluation or a checkpoint: what it is in words, `how` it was measured, its settings by name."""

    name: str
    kind: str
    how: str
    settings: dict[str, str]
    figures: FigureRow | None
    verdicts: Verdicts | None


def read_evaluated(directory: Path) -> Evaluated:
    """Read a run of finetune or train-traces, an evaluation of traces or of a checkpoint, or a checkpoint.

    Raises:
        TrainingError: the directory holds none of them, or a file is damaged.
        CheckpointError: the checkpoint is damaged.
    """
    verdicts = read_verdicts(directory)
    name = directory.resolve().name
    if verdicts is not None:
        about, command = verdicts.about, command_of(directory)
        kind = f"run of {command}" if command else "evaluation"
        return Evaluated(
            name, kind, about.how, _flat(about.settings), _reported(directory, about.min_support), verdicts
        )
    if (directory / RUN).is_file():
        command = command_of(directory)
        if not command:
            raise TrainingError(f"{directory / RUN}: not the record of a run")
        return Evaluated(name, f"run of {command}", "", _flat(_record(directory / RUN)), None, None)
    if (directory / MANIFEST).is_file():
        return _checkpoint(directory)
    raise TrainingError(
        f"{directory}: nothing to compare: expected a run, what evaluate or evaluate-traces wrote, or a checkpoint"
    )


def _record(path: Path) -> dict[str, Any]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.DecodeError) as error:
        raise TrainingError(f"{path}: unreadable: {error}") from None


def _reported(directory: Path, least: int) -> FigureRow:
    try:
        found = msgspec.json.decode((directory / REPORTS[0]).read_bytes(), type=Figures)
    except (OSError, msgspec.DecodeError) as error:
        raise TrainingError(f"{directory / REPORTS[0]}: unreadable: {error}: evaluate again") from None
    own = found.models[0]
    return FigureRow(
        found.measured, own.macro_f1, own.interval, found.accuracy, found.calibration_error, found.unknown_auroc,
        found.known_rejected, found.unknown_rejected, least,
    )  # fmt: skip


def _checkpoint(directory: Path) -> Evaluated:
    """What a checkpoint says of itself."""
    checkpoint = read_any_checkpoint(directory)
    metrics = checkpoint.metrics.get("cross_validation") or checkpoint.metrics.get("split")
    figures = None
    if metrics and isinstance(checkpoint, TracegramCheckpoint):
        figures = _of_traces(msgspec.convert(metrics, TraceEvaluation))
    elif metrics:
        figures = _of_flows(msgspec.convert(metrics, EvaluationRecord))
    name = f"{checkpoint.name} {checkpoint.version}"
    settings = _flat(msgspec.to_builtins(checkpoint))
    return Evaluated(name, "checkpoint", "as its card says" if figures else "", settings, figures, None)


def _of_flows(record: EvaluationRecord) -> FigureRow:
    figures = record.figures
    return FigureRow(
        sum(row.support for row in figures.classes), figures.macro_f1, figures.macro_f1_interval, figures.accuracy,
        figures.calibration_error, figures.unknown_auroc, figures.known_rejected, figures.unknown_rejected,
        MIN_POOLED_FLOWS if is_pooled(record.settings) else MIN_FLOWS,
    )  # fmt: skip


def _of_traces(figures: TraceEvaluation) -> FigureRow:
    main = next(row for row in figures.variants if row.name == figures.main)
    unknown = figures.unknown
    return FigureRow(
        figures.traces, main.all_classes.macro_f1, main.all_classes.interval, main.accuracy,
        figures.calibration_error, unknown.auroc if unknown else None, figures.known_rejected,
        unknown.rejected if unknown else None, 1,
    )  # fmt: skip


def _flat(record: Mapping[str, Any], above: str = "") -> dict[str, str]:
    """Settings by their dotted names, without `config.` and what is none; labels by their number."""
    flat: dict[str, str] = {}
    for key, value in record.items():
        if not above and key in _NO_SETTINGS:
            continue
        name = key if above in ("", "config") else f"{above}.{key}"
        if not above and key in ("features", "background") and all(_is_hash(each) for each in _values(value)):
            flat[name] = ", ".join(f"{path} {digest[:_HASH_DIGITS]}" for path, digest in value.items()) or "none"
        elif isinstance(value, Mapping) and value:
            flat |= _flat(value, name)
        elif key in ("labels", "background", "not_learned") and isinstance(value, list):
            flat[name] = str(len(value))
        else:
            flat[name] = _text(value)
    return flat


def _values(value: object) -> list[object]:
    return list(value.values()) if isinstance(value, Mapping) else [None]


def _is_hash(value: object) -> bool:
    return isinstance(value, str) and len(value) == 64


def _text(value: object) -> str:
    if _is_hash(value):
        return str(value)[:_HASH_DIGITS]
    if isinstance(value, bool) or value is None or value in ("", [], {}):
        return {True: "yes", False: "no"}[value] if isinstance(value, bool) else "none"
    if isinstance(value, float):
        return f"{value:g}"
    return ", ".join(map(_text, value)) if isinstance(value, list) else str(value)
