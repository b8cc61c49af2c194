"""The record of the evaluation of a run of finetune, as the run directory holds it."""

from __future__ import annotations

from pathlib import Path

import msgspec

from tapline.training.evaluation.flow_cross_validation import EvaluationSettings
from tapline.training.evaluation.flow_figures import Evaluation
from tapline.training.loop.config import TrainingError
from tapline.training.loop.run_files import EVALUATION


class EvaluationRecord(msgspec.Struct, frozen=True):
    """An evaluation with its settings and cost; `split` is the name of the split it was measured on, if on one."""

    settings: EvaluationSettings
    figures: Evaluation
    seconds: float
    split: str = ""


def read_evaluation(directory: Path) -> EvaluationRecord | None:
    """The evaluation of a run, None where there is none.

    Raises:
        TrainingError: it is damaged, or of another version.
    """
    path = directory / EVALUATION
    if not path.is_file():
        return None
    try:
        return msgspec.json.decode(path.read_bytes(), type=EvaluationRecord)
    except msgspec.DecodeError as error:
        raise TrainingError(f"{path}: {error}: run `evaluate` again") from None
