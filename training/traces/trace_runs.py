"""The training commands for traces: from feature directories to run directories. Files are written whole or not at all.

Flows with packet heads are held in memory, about two kilobytes each.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
import torch
from torch import Tensor

from tapline.models.checkpoint import Mm4flowNetwork
from tapline.models.encode import Mm4flowFeatures
from tapline.models.trace import TraceSettings, is_instance
from tapline.models.tracegram import TraceNetwork
from tapline.training.data.batches import draw_weights
from tapline.training.data.labelled_traces import LabelledTrace, TraceCorpus, make_trace_corpus
from tapline.training.data.samples import read_samples
from tapline.training.loop.config import TrainingConfig, TrainingError
from tapline.training.loop.plan import Plan, expected_tokens, joined, run_notes
from tapline.training.loop.processes import ALONE, Group, join_group, world_size
from tapline.training.loop.run_files import (
    MODEL,
    RUN,
    command_of,
    encoders_of,
    features_of,
    fingerprint,
    load_weights,
    read_encoders,
    read_run,
    save_weights,
    write_json,
)
from tapline.training.loop.run_log import clear_logs
from tapline.training.loop.run_state import drop_state, load_state
from tapline.training.loop.trainer import Report, RunFiles, Stage, Trainer, run_stage
from tapline.training.traces.aggregate import fit_traces
from tapline.training.traces.background import make_background
from tapline.training.traces.flow_embeddings import encode_traces
from tapline.training.traces.joint import encoder_weights, fit_jointly, network_with
from tapline.training.traces.packet_encoder import (
    FlowLearner,
    FlowSet,
    flow_set,
    new_learner,
    pretrain_stage,
    tune_stage,
)
from tapline.training.traces.trace_config import Phase, TraceTrainingConfig, decisive, joint_config

_PACKAGES = ("numpy", "scikit-learn", "torch")


class TraceRun(msgspec.Struct, frozen=True):
    """What a run was: settings, data by the hash of their manifest, the run it started from, on what and how long.

    `not_learned` are labels of a single capture; `by_address` counts the traces that bear an address in place of a MAC.
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


@dataclass(frozen=True)
class TraceJob:
    """What every command is told: data, where to write, settings, the run whose encoder it starts from.

    `dry_run` only says what would be done. `encoders` are runs of pretrain that an encoder of MM4flow starts from,
    `background` features of anything but the labels, which train-traces learns with it.
    """

    features: Sequence[Path]
    directory: Path
    config: TraceTrainingConfig
    start: Path | None = None
    restart: bool = False
    dry_run: bool = False
    encoders: Sequence[Path] = ()
    background: Sequence[Path] = ()


def pretrain_packets_run(job: TraceJob, report: Report = lambda _: None) -> TraceRun | Plan:
    """Phase 0 on every flow with packet heads, labels unread.

    Raises:
        TrainingError: there is no such flow, the loss is not finite, or the state cannot be saved or read.
        SampleError: the features cannot be read.
    """
    samples = [sample for path in job.features for sample in read_samples(path) if is_instance(sample.flow)]
    if not samples:
        raise TrainingError("no flow with packet heads: extract with --heads header or --heads full")
    captures = np.unique([f"{sample.corpus}/{sample.capture}" for sample in samples], return_inverse=True)[1]
    one_class = np.zeros(len(samples), np.int64)
    weights = draw_weights(one_class, captures, 0.0, job.config.capture_power)
    data = FlowSet([sample.flow for sample in samples], one_class, weights)
    learner = new_learner(job.config.network, 0, job.config.seed)
    return _run_phase(job, "pretrain-packets", job.config.pretrain, learner, data, [], 0, report)


def tune_flows_run(job: TraceJob, report: Report = lambda _: None) -> TraceRun | Plan:
    """Phase 0.5 on the flows of all traces; a flow takes its trace's label.

    Raises:
        TrainingError: the encoder of `job.start` does not fit, the loss is not finite, or the state cannot be saved.
        TraceDataError: there are no traces of two labels.
        SampleError: the features cannot be read.
    """
    corpus = read_corpus(job)
    data = flow_set(corpus, np.arange(len(corpus.traces)), job.config)
    start = load_weights(job.start / MODEL) if job.start else None
    learner = new_learner(job.config.network, len(corpus.labels), job.config.seed, start)
    phase = job.config.tune
    return _run_phase(job, "tune-flows", phase, learner, data, corpus.labels, len(corpus.traces), report)


def _run_phase(
    job: TraceJob,
    command: Literal["pretrain-packets", "tune-flows"],
    phase: Phase,
    learner: FlowLearner,
    data: FlowSet,
    labels: list[str],
    traces: int,
    report: Report,
) -> TraceRun | Plan:
    """Train the flow encoder, by as many processes as `torchrun` started, and write the run."""
    loop = job.config.loop(phase)
    stage_of = pretrain_stage if command == "pretrain-packets" else tune_stage
    with join_group(job.config.device) as group:
        stage = stage_of(learner, data, job.config, group)
        if job.dry_run:
            return _plan(job, command, phase, learner, stage, len(data.flows), labels, traces, group)
        started = _begin(job, command, group)
        trainer = Trainer(learner, loop, _steps(phase), group)
        trained = run_stage(trainer, stage, loop, phase.epochs, _files(job, command), report, group)
        return _finish(job, command, trained.state_dict(), labels, traces, len(data.flows), started, group)


def train_traces_run(job: TraceJob, report: Report = lambda _: None) -> TraceRun | Plan:
    """Phase 1 on all traces, in one process: with the frozen encoder of `job.start`, or one of MM4flow that learns too.

    The weights written are those of `models.tracegram.Tracegram`: the encoder's and the trace network's.

    Raises:
        TrainingError: `job.start` is no run of tune-flows on these labels, `job.encoders` do not fit, or the loss is
            not finite.
        TraceDataError: there are no traces of two labels, or the background is not one (`make_background`).
        SampleError: the features cannot be read.
    """
    if world_size() > 1:
        raise TrainingError("train-traces runs in one process (it normalises by the batch): start it without torchrun")
    corpus = read_corpus(job)
    starting = _starting(job, corpus)
    background = read_background(job, corpus)
    if job.dry_run:
        return _traces_plan(job, corpus, background)
    started = _begin(job, "train-traces")
    config, files = classes_of(job.config, corpus), _files(job, "train-traces")
    if isinstance(starting, FlowLearner):
        features = encode_traces(corpus, starting, config)
        network = fit_traces(features, corpus.truth, config, files, report)
        weights = _weights(starting.encoder.state_dict(), network)
    else:
        everything = np.arange(len(corpus.traces))
        fitted = fit_jointly(corpus.traces, corpus.truth, everything, config, starting, files, report, background)
        weights = _weights(encoder_weights(fitted.encoder), fitted.trace)
    flows = sum(len(trace.trace.flows) for trace in corpus.traces)
    learned = _Learned(corpus, len(background))
    return _finish(job, "train-traces", weights, corpus.labels, len(corpus.traces), flows, started, learned=learned)


def _starting(job: TraceJob, corpus: TraceCorpus) -> FlowLearner | dict[str, Tensor] | None:
    """The tuned encoder that stays frozen, or the pre-trained weights of one that learns, None for none."""
    if job.config.mm4flow is not None:
        return read_encoders(job.encoders)
    if job.background:
        raise TrainingError("--background is learned with an encoder of MM4flow: train without --start")
    if job.start is None or read_trace_run(job.start).command != "tune-flows":
        raise TrainingError("train-traces starts from a run of tune-flows (--start) or of pretrain (--encoders)")
    if read_trace_run(job.start).labels != corpus.labels:
        raise TrainingError(f"{job.start}: learned other labels than these features have")
    learner = new_learner(job.config.network, len(corpus.labels), job.config.seed)
    learner.load_state_dict(load_weights(job.start / MODEL))
    return learner


def _weights(encoder: Mapping[str, Tensor], trace: TraceNetwork) -> dict[str, Tensor]:
    weights = {f"encoder.{name}": value for name, value in encoder.items()}
    return weights | {f"trace.{name}": value for name, value in trace.state_dict().items()}


def joint_of(encoders: Sequence[Path], features: Mm4flowFeatures, trace: TraceSettings) -> TraceTrainingConfig:
    """The settings of training with an MM4flow encoder of the size of pre-trained ones, or of the default size.

    Raises:
        TrainingError: a run of `encoders` cannot be read.
    """
    default = TrainingConfig()
    network = Mm4flowNetwork(default.d_model, default.n_layer, default.n_head, default.dim_ff, 1)
    for directory in encoders:
        network = read_run(directory, "pretrain").network
    return msgspec.structs.replace(joint_config(network, features), trace=trace)


def read_corpus(job: TraceJob) -> TraceCorpus:
    """The labelled traces of the features of a job."""
    samples = (sample for path in job.features for sample in read_samples(path))
    return make_trace_corpus(samples, job.config.trace)


def read_background(job: TraceJob, corpus: TraceCorpus) -> list[LabelledTrace]:
    """The traces of the background of a job, none where it has none.

    Raises:
        TraceDataError: as `training.traces.background.make_background`.
    """
    if not job.background:
        return []
    samples = (sample for path in job.background for sample in read_samples(path))
    return make_background(samples, job.config.trace, {trace.capture for trace in corpus.traces})


def classes_of(config: TraceTrainingConfig, corpus: TraceCorpus) -> TraceTrainingConfig:
    """The settings with the number of classes of the corpus."""
    return msgspec.structs.replace(config, network=msgspec.structs.replace(config.network, n_class=len(corpus.labels)))


def read_trace_run(directory: Path) -> TraceRun:
    """The record of a run.

    Raises:
        TrainingError: the directory holds none.
    """
    try:
        return msgspec.json.decode((directory / RUN).read_bytes(), type=TraceRun)
    except OSError as error:
        raise TrainingError(f"{directory}: no readable {RUN} ({error.strerror}): expected a finished run") from None
    except msgspec.DecodeError as error:
        if (found := command_of(directory)) in ("pretrain", "finetune"):
            raise TrainingError(f"{directory}: a run of {found}, expected one of trace training") from None
        raise TrainingError(f"{directory / RUN}: not a run of trace training: {error}") from None


def _steps(phase: Phase) -> int:
    return phase.epochs * -(-phase.draws // phase.batch)


def _start_of(job: TraceJob) -> str:
    if job.encoders:
        return encoders_of(job.encoders)
    if job.start is None:
        return ""
    return fingerprint(msgspec.to_builtins(read_trace_run(job.start)))


def _files(job: TraceJob, command: str) -> RunFiles:
    """Where a run keeps its state: to be taken up with as many threads, on whatever device, as there are by then."""
    what = decisive(job.config, background=bool(job.background))
    strange = [features_of(job.background)] if job.background else []
    decided = fingerprint(what, command, features_of(job.features), _start_of(job), *strange)
    return RunFiles(job.directory, decided)


def _goes_on(job: TraceJob, command: str) -> str:
    saved = None if job.restart else load_state(job.directory, _files(job, command).fingerprint)
    return f", from step {saved.step} of an interrupted run" if saved else ""


def _plan(
    job: TraceJob,
    command: str,
    phase: Phase,
    learner: FlowLearner,
    stage: Stage,
    flows: int,
    labels: list[str],
    traces: int,
    group: Group,
) -> Plan:
    facts = [
        f"{flows} flows",
        f"of {traces} traces of {len(labels)} labels" if labels else None,
        f"{sum(p.numel() for p in learner.parameters()):,} parameters",
        f"{_steps(phase)} steps on {group.size} process(es) of {group.device}{_goes_on(job, command)}",
        expected_tokens(stage, _steps(phase)),
    ]
    return Plan("train", joined(facts), [job.directory], run_notes(job.directory, command))


def _traces_plan(job: TraceJob, corpus: TraceCorpus, background: Sequence[LabelledTrace]) -> Plan:
    network = TraceNetwork(network_with(classes_of(job.config, corpus).network, background=bool(background)))
    facts = [
        f"{len(corpus.traces)} traces of {len(corpus.labels)} labels",
        *([f"{len(background)} background traces"] if background else []),
        f"{sum(len(trace.trace.flows) for trace in corpus.traces)} flows",
        f"{sum(p.numel() for p in network.parameters()):,} parameters",
        f"{_steps(job.config.traces)} steps in one process{_goes_on(job, 'train-traces')}",
    ]
    notes = run_notes(job.directory, "train-traces")
    lone = corpus.left_out.labels
    notes += [f"one capture only, so that it cannot be measured, not learned: {', '.join(lone)}"] if lone else []
    return Plan("train", facts, [job.directory], notes)


@dataclass(frozen=True)
class _Learned:
    """What a run of train-traces learned from: labelled traces, and so many of the background."""

    corpus: TraceCorpus
    background: int


def _begin(job: TraceJob, command: str, group: Group = ALONE) -> float:
    torch.set_num_threads(job.config.threads)
    if group.rank == 0:
        run_notes(job.directory, command)
        job.directory.mkdir(parents=True, exist_ok=True)
        if job.restart:
            drop_state(job.directory)
        if load_state(job.directory, _files(job, command).fingerprint) is None:
            clear_logs(job.directory)
    group.wait()
    return time.monotonic()


def _finish(
    job: TraceJob,
    command: str,
    weights: dict[str, Tensor],
    labels: list[str],
    traces: int,
    flows: int,
    started: float,
    group: Group = ALONE,
    learned: _Learned | None = None,
) -> TraceRun:
    threads = f"{job.config.threads} CPU thread(s)"
    place = threads if group.device.type == "cpu" else torch.cuda.get_device_name(group.device)
    run = TraceRun(
        command=command,
        config=job.config,
        features=features_of(job.features),
        start=_start_of(job),
        labels=labels,
        traces=traces,
        flows=flows,
        versions={"python": platform.python_version(), **{name: metadata.version(name) for name in _PACKAGES}},
        hardware=f"{platform.machine()}, {group.size} process(es) of {place}"
        if group.size > 1
        else f"{platform.machine()}, {place}",
        seconds=round(time.monotonic() - started, 1),
        not_learned=learned.corpus.left_out.labels if learned else [],
        by_address=learned.corpus.by_address(job.config.trace) if learned else 0,
        background=features_of(job.background),
        background_traces=learned.background if learned else 0,
    )
    if group.rank == 0:
        save_weights(weights, job.directory / MODEL)
        write_json(job.directory / RUN, run)
        drop_state(job.directory)
    return run
