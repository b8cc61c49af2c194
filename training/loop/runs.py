"""The life of a training run, whatever it trains: its plan, its beginning, its record and end.

What differs from one command to another stands in `Training`, made once the input is read and checked. Each file of a
run directory is written whole or not at all.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from tapline.training.loop.config import TrainingError
from tapline.training.loop.plan import Plan, joined
from tapline.training.loop.processes import Group
from tapline.training.loop.run_files import MODEL, RUN, command_of, save_weights, write_json
from tapline.training.loop.run_log import EVENTS, LOSSES, clear_logs
from tapline.training.loop.run_state import STATE, drop_state, load_state
from tapline.training.loop.trainer import RunFiles, Stage

LOOKED_AT = 16
"""Batches that the number of tokens is estimated from."""
_PACKAGES = ("numpy", "scikit-learn", "torch")

_Config = TypeVar("_Config")
_Record = TypeVar("_Record")


@dataclass(frozen=True)
class Job(Generic[_Config]):
    """What every training command is told: data, where to write, settings, the run whose encoder it starts from.

    `dry_run` only says what would be done, `announce` is told what is about to be done. `encoders` are runs of pretrain
    that an encoder of MM4flow starts from, `background` features of anything but the labels, learned with them, `split`
    is a file written by `split`.
    """

    features: Sequence[Path]
    directory: Path
    config: _Config
    start: Path | None = None
    restart: bool = False
    dry_run: bool = False
    encoders: Sequence[Path] = ()
    background: Sequence[Path] = ()
    split: Path | None = None
    announce: Callable[[Plan], None] = lambda _: None


@dataclass(frozen=True)
class Training(Generic[_Record]):
    """One run, ready to be carried out.

    * `files`: where it keeps its state, with the hash of all that decides it; `outdated`: files of the run before.
    * `facts`, `notes`: what it learns from, in words; `model`: whose parameters are counted; `stage`: whose tokens are
      estimated, if any; `place`: where it trains, if not wherever its group does.
    * `fit` trains and gives the weights, to be written as `weights`; `record` makes the record of `versions`,
      `hardware` and `seconds`, which count from `started` (`time.monotonic`; None: from when it is carried out).
    """

    command: str
    files: RunFiles
    facts: Sequence[str | None]
    model: nn.Module
    steps: int
    fit: Callable[[], Mapping[str, Tensor]]
    record: Callable[..., _Record]
    stage: Callable[[], Stage] | None = None
    weights: str = MODEL
    place: str = ""
    notes: Sequence[str] = ()
    outdated: Sequence[str] = ()
    started: float | None = None


def carry_out(job: Job[_Config], training: Training[_Record], group: Group) -> _Record | Plan:
    """Train, by all processes of the group, and write the run; a dry run gives the plan.

    Raises:
        TrainingError: the directory holds something else, the loss is not finite, or the state cannot be saved or read.
    """
    started = time.monotonic() if training.started is None else training.started
    plan = _plan(job, training, group)
    if job.dry_run:
        return plan
    job.announce(plan)
    if group.rank == 0:
        job.directory.mkdir(parents=True, exist_ok=True)
        if job.restart:
            drop_state(job.directory)
        if load_state(job.directory, training.files.fingerprint) is None:
            clear_logs(job.directory)
    group.wait()
    weights = training.fit()
    record = training.record(
        versions={"python": platform.python_version(), **{name: metadata.version(name) for name in _PACKAGES}},
        hardware=_hardware(group),
        seconds=round(time.monotonic() - started, 1),
    )
    if group.rank == 0:
        save_weights(weights, job.directory / training.weights)
        for name in training.outdated:
            (job.directory / name).unlink(missing_ok=True)
        write_json(job.directory / RUN, record)
        drop_state(job.directory)
    return record


def _plan(job: Job[_Config], training: Training[_Record], group: Group) -> Plan:
    notes = run_notes(job.directory, training.command)
    saved = None if job.restart else load_state(job.directory, training.files.fingerprint)
    goes_on = f", from step {saved.step} of an interrupted run" if saved else ""
    place = training.place or f"on {group.size} process(es) of {group.device}"
    facts = [
        *training.facts,
        f"{sum(p.numel() for p in training.model.parameters()):,} parameters",
        f"{training.steps} steps {place}{goes_on}",
        expected_tokens(training.stage(), training.steps) if job.dry_run and training.stage else None,
    ]
    return Plan("train", joined(facts), [job.directory], [*notes, *training.notes])


def run_notes(directory: Path, command: str) -> list[str]:
    """What a run of this command would replace in a directory.

    Raises:
        TrainingError: the directory holds a run of another command, or something else than a run.
    """
    path = directory / RUN
    if path.is_file():
        if not (found := command_of(directory)):
            raise TrainingError(f"{path}: not the record of a run: give another directory")
        if found != command:
            raise TrainingError(f"{directory}: holds a run of {found}: give another directory")
        return [f"the finished run in {directory} is replaced when the new one is finished"]
    mine = any((directory / name).exists() for name in (STATE, LOSSES, EVENTS))
    if not mine and directory.is_dir() and any(not path.name.startswith(".") for path in directory.iterdir()):
        raise TrainingError(f"{directory}: exists and holds no run: give another directory")
    return []


def expected_tokens(stage: Stage, steps: int) -> str:
    """How many tokens so many steps of a stage read, and how much of what is computed is padding: from the first
    batches."""
    works = list(islice(stage.works(0), LOOKED_AT))
    tokens, computed = sum(work.tokens for work in works), sum(work.computed for work in works)
    return (
        f"about {steps * tokens / len(works):,.0f} tokens ({1 - tokens / computed:.0%} of what is computed is padding)"
    )


def _hardware(group: Group) -> str:
    on_cpu = group.device.type == "cpu"
    place = f"{torch.get_num_threads()} CPU thread(s)" if on_cpu else torch.cuda.get_device_name(group.device)
    processes = f"{group.size} process(es) of " if group.size > 1 else ""
    return f"{platform.machine()}, {processes}{place}"
