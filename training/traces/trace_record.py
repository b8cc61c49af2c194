"""The record of a run of trace training, as its directory holds it."""

from __future__ import annotations

from pathlib import Path

import msgspec

from tapline.training.loop.config import TrainingError
from tapline.training.loop.run_files import read_record
from tapline.training.traces.trace_config import TraceTrainingConfig

COMMANDS = ("pretrain-packets", "tune-flows", "train-traces")


class TraceRun(msgspec.Struct, frozen=True):
    """What a run was: settings, data by the hash of their manifest, the run it started from, on what and how long.

    `not_learned` are labels of too few captures; `by_address` counts the traces that bear an address in place of a MAC.
    `background` are the features of the class after the labels, as `features`, with so many traces; {} without.
    """

    command: str
    config: TraceTrainingConfig
    features: dict[str, str]
    start: str
    labels: list[str]
    traces: int
    flows: int
    versions: dict[str, str]
    hardware: str
    seconds: float
    not_learned: list[str] = []
    by_address: int = 0
    background: dict[str, str] = {}
    background_traces: int = 0


def read_trace_run(directory: Path, command: str = "") -> TraceRun:
    """The record of a run, of any command of trace training or of this one.

    Raises:
        TrainingError: the directory holds none.
    """
    record = read_record(
        directory, TraceRun, COMMANDS, "trace training", "a finished run", "not a run of trace training: "
    )
    if command and record.command != command:
        raise TrainingError(f"{directory}: a run of {record.command}, expected one of {command}")
    return record
