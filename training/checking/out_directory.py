"""Into which directories the evaluation of a checkpoint may be written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from tapline.models.checkpoint import MANIFEST
from tapline.training.loop.config import TrainingError
from tapline.training.loop.run_files import EVALUATION, RUN


class _Earlier(msgspec.Struct):
    """What only the record of an evaluation of a checkpoint has."""

    checkpoint: str
    joined: dict[str, Any]


def out_notes(out: Path) -> list[str]:
    """What an evaluation would replace in a directory.

    Raises:
        TrainingError: the directory holds something else than an evaluation of a checkpoint.
    """
    for name, what in ((RUN, "a run"), (MANIFEST, "a checkpoint")):
        if (out / name).exists():
            raise TrainingError(f"{out}: holds {what}: give another --out")
    if out.exists() and not out.is_dir():
        raise TrainingError(f"{out}: is a file: give another --out")
    if not out.is_dir() or all(path.name.startswith(".") for path in out.iterdir()):
        return []
    try:
        earlier = msgspec.json.decode((out / EVALUATION).read_bytes(), type=_Earlier)
    except (OSError, msgspec.DecodeError):
        raise TrainingError(f"{out}: exists and holds no evaluation of a checkpoint: give another --out") from None
    return [f"the evaluation of {earlier.checkpoint} in {out} is replaced"]
