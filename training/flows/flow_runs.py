"""The training commands: from feature directories to run directories. Each file is written whole or not at all."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import msgspec
import torch
from torch import nn

from tapline.models.checkpoint import Mm4flowNetwork
from tapline.models.mm4flow import Mm4flow
from tapline.training.data.corpus import Corpus, make_corpus, make_training_set
from tapline.training.data.partition import Partition, read_partition
from tapline.training.data.split import halve_labels
from tapline.training.data.store import StoredSamples
from tapline.training.flows.finetune import finetune_stage, fit, new_model, predict
from tapline.training.flows.pretrain import BOTH, Modality, distinct, pretrain, pretrain_stage
from tapline.training.loop.config import TrainingConfig, TrainingError, network_sizes, steps_of
from tapline.training.loop.plan import Plan, expected_tokens, joined, run_notes, too_few
from tapline.training.loop.processes import Group, join_group
from tapline.training.loop.run_files import (
    ENCODERS,
    EVALUATION,
    MODEL,
    OUTCOMES,
    RUN,
    encoders_of,
    features_of,
    fingerprint,
    open_samples,
    read_encoders,
    read_run,
    save_weights,
    scratch_folder,
    write_json,
)
from tapline.training.loop.run_log import clear_logs
from tapline.training.loop.run_record import Run
from tapline.training.loop.run_state import drop_state, load_state
from tapline.training.loop.scores import macro_f1
from tapline.training.loop.trainer import Report, RunFiles, Stage

_PACKAGES = ("numpy", "scikit-learn", "torch")


@dataclass(frozen=True)
class Job:
    """What every training command is told: data, where to write, settings; `dry_run` only says what would be done.

    `announce` is told what is about to be done.
    """

    features: Sequence[Path]
    directory: Path
    config: TrainingConfig
    restart: bool = False
    dry_run: bool = False
    announce: Callable[[Plan], None] = lambda _: None


def pretrain_run(
    job: Job, report: Report, modalities: tuple[Modality, ...] = BOTH, split: Path | None = None
) -> Run | Plan:
    """Pre-train encoders on every flow of the features, labels unread, and write them to a run directory.

    With a split, what it keeps for validation and the test is left out. A dry run gives the plan.

    Raises:
        TrainingError: there is no flow, the loss is not finite, or the state cannot be saved or read.
        SampleError: the features cannot be read.
    """
    torch.set_num_threads(job.config.threads)
    started = time.monotonic()
    config = job.config
    partition = read_partition(split) if split else None
    files = _files(job, "pretrain", modalities, features_of(job.features), partition)
    network = network_sizes(config, 1)
    with join_group(config.device) as group:
        samples = open_samples(job.features, _scratch(job))
        if partition:
            samples = samples.take(~partition.held_out(samples))
        starting = new_model(network, config.seed)
        kinds = distinct(samples, config)
        plan = _plan(job, files, "pretrain", kinds, starting, 0, group)
        if job.dry_run:
            return _with_tokens(plan, pretrain_stage(starting, samples, config, modalities, group), config)
        job.announce(plan)
        _begin(job, files, group)
        model = pretrain(samples, config, modalities, report, files, group)
        if group.rank == 0:
            starts = tuple(f"{modality}_encoder." for modality in modalities)
            weights = {name: value for name, value in model.state_dict().items() if name.startswith(starts)}
            save_weights(weights, job.directory / ENCODERS)
        run = _record(job, "pretrain", network, group, started, len(kinds), split=split)
        _finish(job, run, group)
    return run


def finetune_run(
    job: Job, report: Report, min_captures: int, encoders: Sequence[Path] = (), split: Path | None = None
) -> Run | Plan:
    """Train on labelled flows, rare labels as background, and write weights to a run directory.

    With a split, only on its part for training; half of the rare labels are then left to measure *unknown* with. A dry
    run gives the plan.

    Raises:
        TrainingError: fewer than two labels can be learned, the encoders are of other sizes, the loss is not finite, or
            the state cannot be saved.
        SampleError: the features cannot be read.
        SplitError: the split is not one of these features.
    """
    torch.set_num_threads(job.config.threads)
    started = time.monotonic()
    partition = read_partition(split) if split else None
    starting = encoders_of(encoders)
    files = _files(job, "finetune", features_of(job.features), starting, min_captures, partition)
    with join_group(job.config.device) as group:
        corpus = make_corpus(open_samples(job.features, _scratch(job)), min_captures)
        parts = partition.parts(corpus.samples) if partition else None
        background = halve_labels(corpus.rare, 0)[0] if partition else set(corpus.rare)
        train = corpus.samples if parts is None else corpus.samples.take(parts == 0)
        data = make_training_set(corpus, train, background, job.config)
        network = network_sizes(job.config, len(corpus.labels) + bool(background))
        _check_sizes(encoders, network)
        model = new_model(network, job.config.seed, read_encoders(encoders))
        plan = _plan(job, files, "finetune", train, model, len(corpus.labels), group)
        plan.notes.extend(too_few(((count.label, count.captures) for count in corpus.all_counts), min_captures))
        if job.dry_run:
            return _with_tokens(plan, finetune_stage("", model, data, job.config, group), job.config)
        job.announce(plan)
        _begin(job, files, group)
        evaluate = _validation(corpus, job.config, partition)
        trained = fit(model, data, job.config, report, files, group, evaluate)
        if group.rank == 0:
            save_weights(trained.state_dict(), job.directory / MODEL)
            for measured in (EVALUATION, OUTCOMES):  # of the run before
                (job.directory / measured).unlink(missing_ok=True)
        flows = len(data.flows)
        run = _record(job, "finetune", network, group, started, flows, corpus, min_captures, starting, split)
        _finish(job, run, group)
    return run


def _check_sizes(encoders: Sequence[Path], network: Mm4flowNetwork) -> None:
    """Refuse encoders of other sizes: other heads would load without a word and read something else."""
    for directory in encoders:
        found = read_run(directory, "pretrain").network
        if msgspec.structs.replace(found, n_class=network.n_class) != network:
            raise TrainingError(
                f"{directory}: the encoders do not fit: give their sizes, "
                f"-d {found.d_model} -nh {found.n_head} -l {found.n_layer} -f {found.dim_ff}"
            )


def _validation(
    corpus: Corpus, config: TrainingConfig, partition: Partition | None
) -> Callable[[Mm4flow], dict[str, float]] | None:
    """What measures macro-F1 on the part for validation, None without one."""
    if partition is None:
        return None
    known = corpus.known()
    held = known.take(partition.parts(known) == 1)
    if not len(held):
        return None
    truth = corpus.truth(held)

    def measure(model: Mm4flow) -> dict[str, float]:
        said = predict(model, held.flows, config.features)[:, : len(corpus.labels)].argmax(1)
        return {"macro_f1": macro_f1(truth, said, len(corpus.labels), 1), "accuracy": float((said == truth).mean())}

    return measure


def _files(job: Job, *parts: object) -> RunFiles:
    """Where a run keeps its state: to be taken up with as many threads, on whatever device, as there are by then."""
    what = msgspec.structs.replace(job.config, threads=1, device="auto", saves=1, evaluations=1)
    return RunFiles(job.directory, fingerprint(what, *parts))


def _scratch(job: Job) -> Path:
    """Where the corpus is kept while the run lasts: beside its results, which are on a real disk."""
    if job.dry_run:
        return scratch_folder()
    return next(path for path in (job.directory, *job.directory.absolute().parents) if path.is_dir())


def _begin(job: Job, files: RunFiles, group: Group) -> None:
    if group.rank == 0:
        job.directory.mkdir(parents=True, exist_ok=True)
        if job.restart:
            drop_state(job.directory)
        if load_state(job.directory, files.fingerprint) is None:
            clear_logs(job.directory)
    group.wait()


def _plan(
    job: Job, files: RunFiles, command: str, samples: StoredSamples, model: nn.Module, labels: int, group: Group
) -> Plan:
    notes = run_notes(job.directory, command)
    saved = None if job.restart else load_state(job.directory, files.fingerprint)
    goes_on = f", from step {saved.step} of an interrupted run" if saved else ""
    facts = [
        f"{len(samples)} flows of {len(set(samples.captures.tolist()))} captures",
        f"{labels} labels" if labels else None,
        f"{sum(p.numel() for p in model.parameters()):,} parameters",
        f"{steps_of(job.config)} steps on {group.size} process(es) of {group.device}{goes_on}",
    ]
    return Plan("train", joined(facts), [job.directory], notes)


def _with_tokens(plan: Plan, stage: Stage, config: TrainingConfig) -> Plan:
    plan.facts.append(expected_tokens(stage, steps_of(config)))
    return plan


def _finish(job: Job, run: Run, group: Group) -> None:
    if group.rank == 0:
        write_json(job.directory / RUN, run)
        drop_state(job.directory)


def _record(
    job: Job,
    command: str,
    network: Mm4flowNetwork,
    group: Group,
    started: float,
    flows: int,
    corpus: Corpus | None = None,
    min_captures: int = 0,
    encoders: str = "",
    split: Path | None = None,
) -> Run:
    rare = set(corpus.rare) if corpus else set()
    threads = f"{job.config.threads} CPU thread(s)"
    place = threads if group.device.type == "cpu" else torch.cuda.get_device_name(group.device)
    return Run(
        command=command,
        config=job.config,
        min_captures=min_captures,
        features=features_of(job.features),
        encoders=encoders,
        network=network,
        labels=corpus.counts if corpus else [],
        background=[count for count in corpus.all_counts if count.label in rare] if corpus else [],
        versions={"python": platform.python_version(), **{name: metadata.version(name) for name in _PACKAGES}},
        hardware=f"{platform.machine()}, {group.size} process(es) of {place}"
        if group.size > 1
        else f"{platform.machine()}, {place}",
        seconds=round(time.monotonic() - started, 1),
        split=file_name(split),
        flows=flows,
    )


def file_name(path: Path | None) -> str:
    """The name of a file, "" for none."""
    return os.fspath(path.name) if path else ""
