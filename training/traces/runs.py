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

import msgspec
import numpy as np
import torch
from torch import Tensor

from models.checkpoint import Mm4flowNetwork
from models.encode import Mm4flowFeatures
from models.trace import TraceSettings, is_instance
from models.tracegram import TraceNetwork
from training.batches import draw_weights
from training.config import TrainingConfig, TrainingError
from training.files import (
    MODEL,
    RUN,
    encoders_of,
    features_of,
    fingerprint,
    load_weights,
    read_encoders,
    read_run,
    save_weights,
    write_json,
)
from training.loop import RunFiles, Trainer, run_stage
from training.runlog import clear_logs
from training.samples import read_samples
from training.state import drop_state, load_state
from training.traces.aggregate import fit_traces
from training.traces.config import Phase, TraceTrainingConfig, joint_config
from training.traces.crossval import Report, encode_traces, flow_set
from training.traces.data import TraceCorpus, make_trace_corpus
from training.traces.flows import FlowSet, new_learner, pretrain_stage, tune_stage
from training.traces.joint import encoder_weights, fit_jointly

_PACKAGES = ("numpy", "scikit-learn", "torch")


class TraceRun(msgspec.Struct, frozen=True):
    """What a run was: settings, data by the hash of their manifest, the run it started from, on what and how long."""

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


@dataclass(frozen=True)
class TraceJob:
    """What every command is told: data, where to write, settings, and the run whose encoder it starts from.

    `encoders` are runs of pretrain that an encoder of MM4flow starts from.
    """

    features: Sequence[Path]
    directory: Path
    config: TraceTrainingConfig
    start: Path | None = None
    restart: bool = False
    encoders: Sequence[Path] = ()


def pretrain_packets_run(job: TraceJob, report: Report = lambda _: None) -> TraceRun:
    """Phase 0 on every flow with packet heads, labels unread.

    Raises:
        TrainingError: there is no such flow, the loss is not finite, or the state cannot be saved or read.
        SampleError: the features cannot be read.
    """
    started = _begin(job, "pretrain-packets")
    samples = [sample for path in job.features for sample in read_samples(path) if is_instance(sample.flow)]
    if not samples:
        raise TrainingError("no flow with packet heads: extract with --heads header or --heads full")
    captures = np.unique([f"{sample.corpus}/{sample.capture}" for sample in samples], return_inverse=True)[1]
    one_class = np.zeros(len(samples), np.int64)
    weights = draw_weights(one_class, captures, 0.0, job.config.capture_power)
    data = FlowSet([sample.flow for sample in samples], one_class, weights)
    learner = new_learner(job.config.network, 0, job.config.seed)
    stage = pretrain_stage(learner, data, job.config)
    phase = job.config.pretrain
    trained = run_stage(
        Trainer(learner, job.config.loop(phase), _steps(phase)),
        stage, job.config.loop(phase), phase.epochs, _files(job, "pretrain-packets"), report,
    )  # fmt: skip
    return _finish(job, "pretrain-packets", trained.state_dict(), [], 0, len(samples), started)


def tune_flows_run(job: TraceJob, report: Report = lambda _: None) -> TraceRun:
    """Phase 0.5 on the flows of all traces; a flow takes its trace's label.

    Raises:
        TrainingError: the encoder of `job.start` does not fit, the loss is not finite, or the state cannot be saved.
        TraceDataError: there are no traces of two labels.
        SampleError: the features cannot be read.
    """
    started = _begin(job, "tune-flows")
    corpus = read_corpus(job)
    data = flow_set(corpus, np.arange(len(corpus.traces)), job.config)
    start = load_weights(job.start / MODEL) if job.start else None
    learner = new_learner(job.config.network, len(corpus.labels), job.config.seed, start)
    stage = tune_stage(learner, data, job.config)
    phase = job.config.tune
    trained = run_stage(
        Trainer(learner, job.config.loop(phase), _steps(phase)),
        stage, job.config.loop(phase), phase.epochs, _files(job, "tune-flows"), report,
    )  # fmt: skip
    weights = trained.state_dict()
    return _finish(job, "tune-flows", weights, corpus.labels, len(corpus.traces), len(data.flows), started)


def train_traces_run(job: TraceJob, report: Report = lambda _: None) -> TraceRun:
    """Phase 1 on all traces: with the frozen encoder of `job.start`, or with an encoder of MM4flow that learns too.

    The weights written are those of `models.tracegram.Tracegram`: the encoder's and the trace network's.

    Raises:
        TrainingError: `job.start` is no run of tune-flows on these labels, `job.encoders` do not fit, or the loss is
            not finite.
        TraceDataError: there are no traces of two labels.
        SampleError: the features cannot be read.
    """
    started = _begin(job, "train-traces")
    corpus = read_corpus(job)
    if job.config.mm4flow is not None:
        weights = _train_jointly(job, corpus, report)
    else:
        weights = _train_on_frozen(job, corpus, report)
    flows = sum(len(trace.trace.flows) for trace in corpus.traces)
    return _finish(job, "train-traces", weights, corpus.labels, len(corpus.traces), flows, started)


def _train_jointly(job: TraceJob, corpus: TraceCorpus, report: Report) -> dict[str, Tensor]:
    config, everything = classes_of(job.config, corpus), np.arange(len(corpus.traces))
    start, files = read_encoders(job.encoders), _files(job, "train-traces")
    fitted = fit_jointly(corpus.traces, corpus.truth, everything, config, start, files, report)
    return _weights(encoder_weights(fitted.encoder), fitted.trace)


def _train_on_frozen(job: TraceJob, corpus: TraceCorpus, report: Report) -> dict[str, Tensor]:
    if job.start is None or read_trace_run(job.start).command != "tune-flows":
        raise TrainingError("train-traces starts from a run of tune-flows (--start) or of pretrain (--encoders)")
    if read_trace_run(job.start).labels != corpus.labels:
        raise TrainingError(f"{job.start}: learned other labels than these features have")
    learner = new_learner(job.config.network, len(corpus.labels), job.config.seed)
    learner.load_state_dict(load_weights(job.start / MODEL))
    features = encode_traces(corpus, learner, job.config)
    config, files = classes_of(job.config, corpus), _files(job, "train-traces")
    return _weights(learner.encoder.state_dict(), fit_traces(features, corpus.truth, config, files, report))


def _weights(encoder: Mapping[str, Tensor], trace: TraceNetwork) -> dict[str, Tensor]:
    weights = {f"encoder.{name}": value for name, value in encoder.items()}
    return weights | {f"trace.{name}": value for name, value in trace.state_dict().items()}


def joint_of(encoders: Sequence[Path], lengths: int, trace: TraceSettings) -> TraceTrainingConfig:
    """The settings of training with an MM4flow encoder of the size of pre-trained ones, or of the default size.

    Raises:
        TrainingError: a run of `encoders` cannot be read.
    """
    default = TrainingConfig()
    network = Mm4flowNetwork(default.d_model, default.n_layer, default.n_head, default.dim_ff, 1)
    for directory in encoders:
        network = read_run(directory, "pretrain").network
    return msgspec.structs.replace(joint_config(network, Mm4flowFeatures(lengths, 0)), trace=trace)


def read_corpus(job: TraceJob) -> TraceCorpus:
    """The labelled traces of the features of a job."""
    samples = (sample for path in job.features for sample in read_samples(path))
    return make_trace_corpus(samples, job.config.trace)


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
    return RunFiles(job.directory, fingerprint(job.config, command, features_of(job.features), _start_of(job)))


def _begin(job: TraceJob, command: str) -> float:
    torch.set_num_threads(job.config.threads)
    job.directory.mkdir(parents=True, exist_ok=True)
    if job.restart:
        drop_state(job.directory)
    if load_state(job.directory, _files(job, command).fingerprint) is None:
        clear_logs(job.directory)
    return time.monotonic()


def _finish(
    job: TraceJob,
    command: str,
    weights: dict[str, Tensor],
    labels: list[str],
    traces: int,
    flows: int,
    started: float,
) -> TraceRun:
    save_weights(weights, job.directory / MODEL)
    run = TraceRun(
        command=command,
        config=job.config,
        features=features_of(job.features),
        start=_start_of(job),
        labels=labels,
        traces=traces,
        flows=flows,
        versions={"python": platform.python_version(), **{name: metadata.version(name) for name in _PACKAGES}},
        hardware=f"{platform.machine()}, {job.config.threads} CPU thread(s)",
        seconds=round(time.monotonic() - started, 1),
    )
    write_json(job.directory / RUN, run)
    drop_state(job.directory)
    return run
