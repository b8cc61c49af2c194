"""The runs of trace training: what each phase learns from, what it writes, and what its record holds.

Flows with packet heads are held in memory, about two kilobytes each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import torch
from torch import Tensor

from tapline.models.checkpoint import Mm4flowNetwork
from tapline.models.encode import Mm4flowFeatures
from tapline.models.trace import TraceSettings, is_instance
from tapline.models.tracegram import TraceNetwork
from tapline.training.data.batches import TrainingSet, draw_weights
from tapline.training.data.labelled_traces import LabelledTrace, TraceCorpus, flows_of, make_trace_corpus
from tapline.training.data.samples import features_of, samples_of
from tapline.training.loop.config import TrainingConfig, TrainingError, steps_of
from tapline.training.loop.plan import Plan
from tapline.training.loop.processes import ALONE, Group, join_group, world_size
from tapline.training.loop.run_files import MODEL, encoder_sizes, encoders_of, fingerprint, load_weights, read_encoders
from tapline.training.loop.runs import Job, Training, carry_out
from tapline.training.loop.scores import Ints
from tapline.training.loop.trainer import Report, RunFiles, Stage, train_stage
from tapline.training.traces.aggregate import fit_traces
from tapline.training.traces.background import learned_with, make_background, network_with
from tapline.training.traces.features import context_features
from tapline.training.traces.flow_embeddings import encode_traces
from tapline.training.traces.joint import encoder_weights, fit_jointly
from tapline.training.traces.packet_encoder import FlowLearner, flow_set, new_learner, pretrain_stage, tune_stage
from tapline.training.traces.trace_config import Phase, TraceTrainingConfig, decisive, joint_config
from tapline.training.traces.trace_record import TraceRun, read_trace_run

_Job = Job[TraceTrainingConfig]


def pretrain_packets_run(job: _Job, report: Report = lambda _: None) -> TraceRun | Plan:
    """Phase 0 on every flow with packet heads, labels unread.

    Raises:
        TrainingError: there is no such flow, the loss is not finite, or the state cannot be saved or read.
        SampleError: the features cannot be read.
    """
    samples = [sample for sample in samples_of(job.features) if is_instance(sample.flow)]
    if not samples:
        raise TrainingError("no flow with packet heads: extract with --heads header or --heads full")
    captures = np.unique([f"{sample.corpus}/{sample.capture}" for sample in samples], return_inverse=True)[1]
    one_class = np.zeros(len(samples), np.int64)
    weights = draw_weights(one_class, captures, 0.0, job.config.capture_power)
    data = TrainingSet([sample.flow for sample in samples], one_class, weights)
    learner = new_learner(job.config.network, 0, job.config.seed)
    return _encoder_run(job, "pretrain-packets", job.config.pretrain, pretrain_stage, learner, data, [], 0, report)


def tune_flows_run(job: _Job, report: Report = lambda _: None) -> TraceRun | Plan:
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
    phase, traces = job.config.tune, len(corpus.traces)
    return _encoder_run(job, "tune-flows", phase, tune_stage, learner, data, corpus.labels, traces, report)


def _encoder_run(
    job: _Job,
    command: str,
    phase: Phase,
    stage_of: Callable[[FlowLearner, TrainingSet, TraceTrainingConfig, Group], Stage],
    learner: FlowLearner,
    data: TrainingSet,
    labels: list[str],
    traces: int,
    report: Report,
) -> TraceRun | Plan:
    """Train the flow encoder, by as many processes as `torchrun` started, and write the run."""
    loop, files, flows = job.config.loop(phase), _files(job, command), len(data.flows)
    facts = [f"{flows} flows", f"of {traces} traces of {len(labels)} labels" if labels else None]
    with join_group(job.config.device, job.config.threads) as group:
        stage = stage_of(learner, data, job.config, group)
        training = Training(
            command,
            files,
            facts,
            learner,
            steps_of(loop),
            lambda: train_stage(learner, stage, loop, files, report, group).state_dict(),
            _record(job, command, labels, traces, flows),
            lambda: stage,
        )
        return carry_out(job, training, group)


def train_traces_run(job: _Job, report: Report = lambda _: None) -> TraceRun | Plan:
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
    torch.set_num_threads(job.config.threads)
    corpus = read_corpus(job)
    starting = _starting(job, corpus)
    background = read_background(job, corpus)
    config, files = classes_of(job.config, corpus), _files(job, "train-traces")

    traces, flows, lone = len(corpus.traces), len(flows_of(corpus.traces)), corpus.left_out.labels
    training = Training(
        "train-traces",
        files,
        [
            f"{traces} traces of {len(corpus.labels)} labels",
            f"{len(background)} background traces" if background else None,
            f"{flows} flows",
        ],
        TraceNetwork(network_with(config.network, background=bool(background))),
        steps_of(config.loop(config.traces)),
        lambda: _fit_traces(corpus, config, starting, background, files, report),
        partial(
            _record(job, "train-traces", corpus.labels, traces, flows),
            not_learned=lone,
            by_address=corpus.by_address(config.trace),
            background_traces=len(background),
        ),
        place="in one process",
        notes=[f"too few captures, not learned: {', '.join(lone)}"] if lone else [],
    )
    return carry_out(job, training, ALONE)


def _fit_traces(
    corpus: TraceCorpus,
    config: TraceTrainingConfig,
    starting: FlowLearner | dict[str, Tensor] | None,
    background: Sequence[LabelledTrace],
    files: RunFiles,
    report: Report,
) -> dict[str, Tensor]:
    """The weights of encoder and trace network, the former frozen or learned too."""
    everything = np.arange(len(corpus.traces))
    if config.network.encoder == "context":
        return _weights({}, fit_context(corpus.traces, corpus.truth, everything, config, files, report, background))
    if isinstance(starting, FlowLearner):
        features = encode_traces(corpus, starting, config)
        return _weights(starting.encoder.state_dict(), fit_traces(features, corpus.truth, config, files, report))
    fitted = fit_jointly(corpus.traces, corpus.truth, everything, config, starting, files, report, background)
    return _weights(encoder_weights(fitted.encoder), fitted.trace)


def _record(job: _Job, command: str, labels: list[str], traces: int, flows: int) -> partial[TraceRun]:
    """What the record of a run holds before it is trained."""
    return partial(
        TraceRun, command=command, config=job.config, features=features_of(job.features), start=_start_of(job),
        labels=labels, traces=traces, flows=flows, background=features_of(job.background),
    )  # fmt: skip


def _starting(job: _Job, corpus: TraceCorpus) -> FlowLearner | dict[str, Tensor] | None:
    """The tuned encoder that stays frozen, or the pre-trained weights of one that learns, None for none."""
    if job.config.network.encoder == "context":
        return None
    if job.config.mm4flow is not None:
        return read_encoders(job.encoders)
    if job.background:
        raise TrainingError(
            "--background is learned by what learns with the rest, and --start is frozen: leave one out"
        )
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


def fit_context(
    traces: Sequence[LabelledTrace],
    truth: Ints,
    train: Ints,
    config: TraceTrainingConfig,
    files: RunFiles | None = None,
    report: Report = lambda _: None,
    background: Sequence[LabelledTrace] = (),
) -> TraceNetwork:
    """Phase 1 of a network that reads the context of flows alone, from the traces `train` and the background.

    Raises:
        TrainingError: the loss is not finite, or the state cannot be saved or read.
    """
    learned = learned_with(truth, train, background, config)
    everything = [*traces, *background]
    features = context_features([everything[row] for row in learned.rows], config.network.context)
    network = network_with(config.network, background=bool(background))
    whole = msgspec.structs.replace(config, network=network)
    return fit_traces(features, learned.truth[learned.rows], whole, files, report, learned.weights)


def joint_of(encoders: Sequence[Path], features: Mm4flowFeatures, trace: TraceSettings) -> TraceTrainingConfig:
    """The settings of training with an MM4flow encoder of the size of pre-trained ones, or of the default size.

    Raises:
        TrainingError: a run of `encoders` cannot be read.
    """
    default = TrainingConfig()
    network = Mm4flowNetwork(default.d_model, default.n_layer, default.n_head, default.dim_ff, 1)
    for directory in encoders:
        network = encoder_sizes(directory)
    return msgspec.structs.replace(joint_config(network, features), trace=trace)


def read_corpus(job: _Job) -> TraceCorpus:
    """The labelled traces of the features of a job."""
    return make_trace_corpus(samples_of(job.features), job.config.trace, job.config.min_captures)


def read_background(job: _Job, corpus: TraceCorpus) -> list[LabelledTrace]:
    """The traces of the background of a job, none where it has none.

    Raises:
        TraceDataError: as `training.traces.background.make_background`.
    """
    if not job.background:
        return []
    return make_background(samples_of(job.background), job.config.trace, {trace.capture for trace in corpus.traces})


def classes_of(config: TraceTrainingConfig, corpus: TraceCorpus) -> TraceTrainingConfig:
    """The settings with the number of classes of the corpus."""
    return msgspec.structs.replace(config, network=msgspec.structs.replace(config.network, n_class=len(corpus.labels)))


def _start_of(job: _Job) -> str:
    if job.encoders:
        return encoders_of(job.encoders)
    if job.start is None:
        return ""
    return fingerprint(msgspec.to_builtins(read_trace_run(job.start)))


def _files(job: _Job, command: str) -> RunFiles:
    """Where a run keeps its state: to be taken up with as many threads, on whatever device, as there are by then."""
    what = decisive(job.config, background=bool(job.background))
    strange = [features_of(job.background)] if job.background else []
    decided = fingerprint(what, command, features_of(job.features), _start_of(job), *strange)
    return RunFiles(job.directory, decided)
