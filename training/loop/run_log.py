"""What a run says while it runs: JSON lines and TensorBoard events, cut back to the saved step when it resumes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import msgspec
from tensorboardX import SummaryWriter

from tapline.training.loop.run_files import whole

LOSSES = "metrics.jsonl"
EVENTS = "tensorboard"


class RunLog:
    """Appends to `metrics.jsonl` and `tensorboard/` of a run directory.

    Every line has `stage` and `kind`: `start` (the settings), `step`, `evaluation`, `epoch`. Lines of a stage after the
    step that it resumes from are taken back, so that a broken run leaves the file of an unbroken one.
    """

    def __init__(self, directory: Path, stage: str, resumed_at: int) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._path = directory / LOSSES
        self._stage = stage
        self._take_back(resumed_at)
        self._events = SummaryWriter(str(directory / EVENTS / stage), purge_step=resumed_at)

    def write(self, kind: str, **fields: Any) -> None:
        """Write one line; numbers of a line with a `step` go to TensorBoard too."""
        with self._path.open("ab") as file:
            file.write(msgspec.json.encode({"stage": self._stage, "kind": kind, **fields}) + b"\n")
        if "step" in fields:
            for name, value in fields.items():
                if isinstance(value, float):
                    self._events.add_scalar(f"{kind}/{name}", value, fields["step"])

    def close(self) -> None:
        """Flush and close the events."""
        self._events.close()

    def _take_back(self, step: int) -> None:
        if not self._path.exists():
            return
        with whole(self._path) as staging, self._path.open("rb") as lines, staging.open("wb") as kept:
            for line in lines:
                try:
                    read = msgspec.json.decode(line, type=dict[str, Any])
                except msgspec.DecodeError:  # cut by the kill
                    continue
                if read.get("stage") != self._stage or (step and read.get("step", 0) <= step):
                    kept.write(line)


def clear_logs(directory: Path) -> None:
    """Remove the logs of an earlier run in the same directory."""
    (directory / LOSSES).unlink(missing_ok=True)
    shutil.rmtree(directory / EVENTS, ignore_errors=True)
