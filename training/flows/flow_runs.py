"""The runs of pretrain and finetune: what each learns from, what it writes, and what its record holds."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import msgspec
from torch import Tensor

from tapline.models.checkpoint import Mm4flowNetwork
from tapline.models.context import ContextTerms, FlowContext
from tapline.models.mm4flow import Mm4flow
from tapline.training.data.corpus import Corpus, make_corpus, make_training_set
from tapline.training.data.partition import Partition, read_partition
from tapline.training.data.samples import features_of, read_manifest
from tapline.training.data.split import halve_labels
from tapline.training.data.store import StoredSamples, open_samples
from tapline.training.flows.context_counts import learn_context
from tapline.training.flows.finetune import finetune_stage, fit, predict
from tapline.training.flows.flow_record import Run
from tapline.training.flows.pretrain import BOTH, Modality, distinct, pretrain_stage, train_only
from tapline.training.loop.config import TrainingConfig, TrainingError, network_sizes, steps_of
from tapline.training.loop.new_networks import new_model
from tapline.training.loop.plan import Plan, too_few
from tapline.training.loop.processes import join_group
from tapline.training.loop.run_files import (
    ENCODERS,
    EVALUATION,
    OUTCOMES,
    VERDICTS,
    encoder_sizes,
    encoders_of,
    fingerprint,
    read_encoders,
    scratch_folder,
)
from tapline.training.loop.runs import Job, Training, carry_out
from tapline.training.loop.scores import macro_f1
from tapline.training.loop.trainer import Report, RunFiles, train_stage

_Job = Job[TrainingConfig]


def pretrain_run(job: _Job, report: Report, modalities: tuple[Modality, ...] = BOTH) -> Run | Plan:
    """Pre-train encoders on every flow of the features, labels unread, and write them to a run directory.

    With a split, what it keeps for validation and the test is left out. A dry run gives the plan.

    Raises:
        TrainingError: there is no flow, the loss is not finite, or the state cannot be saved or read.
        SampleError: the features cannot be read.
    """
    started, config = time.monotonic(), job.config
    partition, split = (read_partition(job.split), job.split.name) if job.split else (None, "")
    features = features_of(job.features)
    network, encoders = network_sizes(config, 1), tuple(f"{modality}_encoder." for modality in modalities)
    with join_group(config.device, config.threads) as group:
        samples = open_samples(job.features, _scratch(job))
        if partition:
            samples = samples.take(~partition.held_out(samples))
        kinds = distinct(samples, config)
        model = train_only(new_model(network, config.seed), modalities)
        files = _files(job, "pretrain", modalities, features, partition)
        stage = partial(pretrain_stage, model, kinds, config, modalities, group)

        def fit() -> dict[str, Tensor]:
            trained = train_stage(model, stage(), config, files, report, group)
            return {name: value for name, value in trained.state_dict().items() if name.startswith(encoders)}

        record = partial(
            Run, command="pretrain", config=config, min_captures=0, features=features, encoders="", network=network,
            labels=[], background=[], split=split, flows=len(kinds),
        )  # fmt: skip
        facts, steps = [_flows_of(kinds)], steps_of(config)
        training = Training("pretrain", files, facts, model, steps, fit, record, stage, ENCODERS, started=started)
        return carry_out(job, training, group)


def finetune_run(job: _Job, report: Report, min_captures: int, min_flows: int = 1) -> Run | Plan:
    """Train on labelled flows, rare labels as background, and write weights to a run directory.

    With a split, only on its part for training; half of the rare labels are then left to measure *unknown* with. A dry
    run gives the plan.

    Raises:
        TrainingError: fewer than two labels can be learned, the encoders are of other sizes, the loss is not finite, or
            the state cannot be saved.
        SampleError: the features cannot be read.
        SplitError: the split is not one of these features.
    """
    started, config = time.monotonic(), job.config
    partition, split = (read_partition(job.split), job.split.name) if job.split else (None, "")
    starting, features = encoders_of(job.encoders), features_of(job.features)
    files = _files(job, "finetune", features, starting, min_captures, min_flows, partition)
    with join_group(config.device, config.threads) as group:
        corpus = make_corpus(open_samples(job.features, _scratch(job)), min_captures, min_flows)
        samples = corpus.samples.take(partition.parts(corpus.samples) == 0) if partition else corpus.samples
        background = corpus.background(halve_labels(corpus.rare, 0)[0] if partition else corpus.rare)
        data = make_training_set(corpus, samples, background, config)
        context = learn_context(data, config.port_weight)
        network = network_sizes(config, len(corpus.labels) + bool(background))
        _check_sizes(job.encoders, network)
        model = new_model(network, config.seed, read_encoders(job.encoders))
        evaluate = _validation(corpus, config, partition, context)
        rare = [count for count in corpus.all_counts if count.label in corpus.background(corpus.rare)]
        record = partial(
            Run, command="finetune", config=config, min_captures=min_captures, min_flows=min_flows, features=features,
            encoders=starting, network=network, labels=corpus.counts, background=rare, split=split,
            flows=len(data.flows), context=context,
        )  # fmt: skip
        training = Training(
            "finetune",
            files,
            [_flows_of(samples), f"{len(corpus.labels)} labels", *_corrected(job.features)],
            model,
            steps_of(config),
            lambda: fit(model, data, config, report, files, group, evaluate).state_dict(),
            record,
            lambda: finetune_stage("", model, data, config, group),
            notes=too_few(((count.label, count.captures) for count in corpus.all_counts), min_captures),
            outdated=(EVALUATION, OUTCOMES, VERDICTS),
            started=started,
        )
        return carry_out(job, training, group)


def _check_sizes(encoders: Sequence[Path], network: Mm4flowNetwork) -> None:
    """Refuse encoders of other sizes: other heads would load without a word and read something else."""
    for directory in encoders:
        found = encoder_sizes(directory)
        if msgspec.structs.replace(found, n_class=network.n_class) != network:
            raise TrainingError(
                f"{directory}: the encoders do not fit: give their sizes, "
                f"-d {found.d_model} -nh {found.n_head} -l {found.n_layer} -f {found.dim_ff}"
            )


def _validation(
    corpus: Corpus, config: TrainingConfig, partition: Partition | None, context: FlowContext
) -> Callable[[Mm4flow], dict[str, float]] | None:
    """What measures macro-F1, with context, on the part for validation, None without one."""
    if partition is None:
        return None
    known = corpus.known()
    held = known.take(partition.parts(known) == 1)
    if not len(held):
        return None
    truth, n_label = corpus.truth(held), len(corpus.labels)
    terms = ContextTerms(context, n_label, n_label + 1)
    added = (terms.transports(held.flows) + terms.ports(held.flows))[:, :n_label]

    def measure(model: Mm4flow) -> dict[str, float]:
        said = (predict(model, held.flows, config.features)[:, :n_label] + added).argmax(1)
        return {"macro_f1": macro_f1(truth, said, len(corpus.labels), 1), "accuracy": float((said == truth).mean())}

    return measure


def _files(job: _Job, *parts: object) -> RunFiles:
    """Where a run keeps its state: to be taken up with as many threads, on whatever device, as there are by then."""
    what = msgspec.structs.replace(job.config, threads=1, device="auto", saves=1, evaluations=1)
    return RunFiles(job.directory, fingerprint(what, *parts))


def _scratch(job: _Job) -> Path:
    """Where the corpus is kept while the run lasts: beside its results, which are on a real disk."""
    if job.dry_run:
        return scratch_folder()
    return next(path for path in (job.directory, *job.directory.absolute().parents) if path.is_dir())


def _corrected(features: Sequence[Path]) -> list[str]:
    count = len({flow.by for path in features for flow in read_manifest(path).corrected})
    return [f"{count} flows under a corrected label"] if count else []


def _flows_of(samples: StoredSamples) -> str:
    return f"{len(samples)} flows of {len(set(samples.captures.tolist()))} captures"
