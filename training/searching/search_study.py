"""The trials of a search by Optuna: each an ordinary run of finetune, judged by the part of the split for validation.

The part for the test is never read. Everything is in the search's directory: `study.db`, which Optuna keeps, a folder
for each trial, and what was asked for; after an end by whatever, the same call goes on where it was.
"""

from __future__ import annotations

import fcntl
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from tapline.installation import install_command
from tapline.models.checkpoint import file_sha256
from tapline.training.data.partition import read_partition
from tapline.training.data.samples import features_of
from tapline.training.flows.flow_runs import finetune_run
from tapline.training.loop.config import TrainingConfig, TrainingError
from tapline.training.loop.plan import Plan
from tapline.training.loop.run_files import encoders_of, fingerprint, write_json
from tapline.training.loop.run_log import LOSSES
from tapline.training.loop.runs import Job
from tapline.training.loop.trainer import Report, StepReport
from tapline.training.searching.search_space import Range, Settings, Space, Value

if TYPE_CHECKING:
    import optuna

SEARCH, BEST, STUDY, TRIALS = "search.json", "best.json", "study.db", "trials"
_LOCK = ".lock"
_DIRECTORY, _FAULT = "directory", "fault"


@dataclass(frozen=True)
class SearchJob:
    """What is searched, on which data; `split` must have a part for validation. `timeout_seconds`, None without: then
    no more steps are taken, and the trial that is at work goes on in the next call."""

    features: Sequence[Path]
    split: Path
    directory: Path
    space: Space
    base: TrainingConfig
    trials: int = 20
    timeout_seconds: float | None = None
    encoders: Sequence[Path] = ()
    min_captures: int = 3
    min_flows: int = 1


class TrialResult(msgspec.Struct, frozen=True):
    """A trial: macro-F1 on validation, None where training failed, by a `fault`; its settings; its run."""

    run: str
    macro_f1: float | None
    settings: dict[str, Value]
    fault: str = ""


class _Asked(msgspec.Struct, frozen=True):
    """What a search was asked for: another one has another directory."""

    fingerprint: str
    space: Space
    seed: int


class _TimeOverError(Exception):
    """The time of the search is over."""


def search(job: SearchJob, after_trial: Callable[[TrialResult], None] = lambda _: None, report: Report = lambda _: None
           ) -> list[TrialResult]:  # fmt: skip
    """Carry out trials until there are so many, or time is over; gives all, the best first.

    Raises:
        TrainingError: Optuna is missing, another search is at work in the directory or was carried out there, the split
            has no part for validation, or the data cannot be learned from.
    """
    tool = _optuna()
    _check(job)
    job.directory.mkdir(parents=True, exist_ok=True)
    with _alone(job.directory):
        _take_up(job)
        storage = tool.storages.RDBStorage(f"sqlite:///{(job.directory / STUDY).resolve()}")
        try:
            study = tool.create_study(storage=storage, study_name="search", direction="maximize", load_if_exists=True)
            _again(study)
            _carry_out(job, study, after_trial, report)
            return _results(job, study)
        finally:
            storage.remove_session()
            storage.engine.dispose()


def plan_search(job: SearchJob) -> Plan:
    """What `search` would do, everything checked that can fail before training.

    Raises:
        TrainingError: as there.
    """
    _optuna()
    done = 0
    plan = _check(job)
    if (job.directory / SEARCH).is_file():
        _compare(job, job.directory)
        done = sum(1 for _ in (job.directory / TRIALS).glob("*/run.json"))
    searched = ", ".join(job.space.searched)
    facts = [f"{job.trials} trials of finetune over {searched}, {done} done", *plan.facts]
    return Plan("search", facts, [job.directory])


def _optuna() -> Any:
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise TrainingError(
            f"a search needs {error.name}: install the extra `search` ({install_command('search')})"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _check(job: SearchJob) -> Plan:
    """Refuse what every trial would fail at; gives the plan of one."""
    if not read_partition(job.split).validation:
        raise TrainingError(f"{job.split}: no part for validation, by which trials are judged: split again with one")
    first = next(job.space.corners())
    config = job.space.config(first, job.base)
    run = Job(job.features, job.directory / TRIALS / "plan", config, None, dry_run=True, encoders=job.encoders,
              split=job.split)  # fmt: skip
    plan = finetune_run(run, lambda _: None, job.min_captures, job.min_flows)
    assert isinstance(plan, Plan)
    return plan


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """No other process searches in a directory meanwhile; the lock ends with the process, however that ends."""
    with (directory / _LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise TrainingError(
                f"{directory}: another search is at work here: wait for it, or give another --out"
            ) from None
        yield


def _asked(job: SearchJob) -> _Asked:
    base = msgspec.structs.replace(job.base, threads=1, device="auto")
    parts = (
        features_of(job.features), file_sha256(job.split), encoders_of(job.encoders), job.min_captures, job.min_flows,
        base,
    )  # fmt: skip
    return _Asked(fingerprint(*parts), job.space, job.base.seed)


def _compare(job: SearchJob, directory: Path) -> None:
    try:
        before = msgspec.json.decode((directory / SEARCH).read_bytes(), type=_Asked)
    except msgspec.DecodeError as error:
        raise TrainingError(f"{directory / SEARCH}: not the record of a search: {error}") from None
    if before != _asked(job):
        raise TrainingError(
            f"{directory}: holds a search of other data, split, settings, space or seed: give another --out"
        )


def _take_up(job: SearchJob) -> None:
    """Go on with a search that was asked for so, or begin one."""
    if (job.directory / SEARCH).is_file():
        _compare(job, job.directory)
    elif any(path.name != _LOCK for path in job.directory.iterdir()):
        raise TrainingError(f"{job.directory}: exists and holds no search: give another directory")
    else:
        write_json(job.directory / SEARCH, _asked(job))


def _again(study: optuna.Study) -> None:
    """Trials that were at work when the process ended are tried again, in their folders, which hold their state."""
    from optuna.trial import TrialState

    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
        attributes = {_DIRECTORY: trial.user_attrs.get(_DIRECTORY, _folder(trial.number))}
        study.enqueue_trial(trial.params, user_attrs=attributes)


def _folder(number: int) -> str:
    return f"{number + 1:04d}"


def _finished(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """Trials with an end of their own: a value, or a fault of training."""
    return [trial for trial in study.trials if trial.value is not None or _FAULT in trial.user_attrs]


def _carry_out(job: SearchJob, study: optuna.Study, after_trial: Callable[[TrialResult], None], report: Report) -> None:
    from optuna.samplers import TPESampler
    from optuna.trial import TrialState

    started = time.monotonic()

    def step(done: StepReport) -> None:
        report(done)
        if job.timeout_seconds is not None and time.monotonic() - started > job.timeout_seconds:
            raise _TimeOverError

    while (done := len(_finished(study))) < job.trials:
        # of a sampler of its own for each: what is drawn depends on what is finished, and not on interruptions
        study.sampler = TPESampler(seed=job.base.seed + done)
        trial = study.ask()
        folder = trial.user_attrs.get(_DIRECTORY, _folder(trial.number))
        trial.set_user_attr(_DIRECTORY, folder)
        chosen = {name: _suggest(trial, name, values) for name, values in job.space.searched.items()}
        try:
            value = _trained(job, folder, chosen, step)
        except _TimeOverError:
            return
        except TrainingError as error:
            trial.set_user_attr(_FAULT, str(error))
            study.tell(trial, state=TrialState.FAIL)
            after_trial(TrialResult(f"{TRIALS}/{folder}", None, chosen, str(error)))
            continue
        study.tell(trial, value)
        after_trial(TrialResult(f"{TRIALS}/{folder}", value, chosen))
        if job.timeout_seconds is not None and time.monotonic() - started > job.timeout_seconds:
            return


def _suggest(trial: optuna.Trial, name: str, values: Range | list[Value]) -> Value:
    if not isinstance(values, Range):
        chosen: Value = trial.suggest_categorical(name, values)
        return chosen
    if isinstance(values.low, int) and isinstance(values.high, int):
        return trial.suggest_int(name, values.low, values.high, log=values.log)
    return trial.suggest_float(name, values.low, values.high, log=values.log)


def _trained(job: SearchJob, folder: str, chosen: Settings, report: Report) -> float:
    """Macro-F1 of a trial's run on validation, at its end."""
    directory = job.directory / TRIALS / folder
    config = job.space.config(chosen, job.base)
    run = Job(job.features, directory, config, None, encoders=job.encoders, split=job.split)
    finetune_run(run, report, job.min_captures, job.min_flows)
    return validation_macro_f1(directory)


def validation_macro_f1(run: Path) -> float:
    """Macro-F1 on the part for validation of the weights that a run ended with, as its log has it.

    Raises:
        TrainingError: it was not measured: no flow of a known label is there.
    """
    found: float | None = None
    for line in (run / LOSSES).read_bytes().splitlines():
        read = msgspec.json.decode(line, type=dict[str, Any])
        if read.get("kind") == "evaluation":
            found = read["macro_f1"]
    if found is None:
        raise TrainingError("the part for validation has no flow of a label that is learned: split again")
    return found


def _results(job: SearchJob, study: optuna.Study) -> list[TrialResult]:
    """All trials, the best first, which is also written to `best.json`."""
    found = [
        TrialResult(
            f"{TRIALS}/{trial.user_attrs[_DIRECTORY]}",
            trial.value,
            dict(trial.params),
            trial.user_attrs.get(_FAULT, ""),
        )
        for trial in _finished(study)
    ]
    found.sort(key=lambda result: -1.0 if result.macro_f1 is None else result.macro_f1, reverse=True)
    if found and found[0].macro_f1 is not None:
        write_json(job.directory / BEST, found[0])
    return found
