"""Cross-validation of traces over captures: what a fold trains, and what it says of the traces that were held out.

A fold is kept in a file, so that a broken evaluation goes on where it was; it says what it was measured on, and is not
taken for a measurement of anything else. Figures belong to `trace_figures`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np

from tapline.models.checkpoint import WEIGHTS, TracegramNetwork, file_sha256
from tapline.models.encode import Mm4flowFeatures
from tapline.models.tracegram import TraceNetwork
from tapline.training.data.labelled_traces import TraceCorpus, few_of_each
from tapline.training.evaluation.attribution import remove_flows
from tapline.training.evaluation.outcomes import TraceOutcome, measured_on, read_outcome, write_outcome
from tapline.training.evaluation.rivals import fit_predict
from tapline.training.evaluation.trace_figures import PREFIXES
from tapline.training.evaluation.variants import Variant
from tapline.training.loop.config import TrainingError
from tapline.training.loop.run_files import fingerprint, load_weights, save_weights, weights_hash
from tapline.training.loop.scores import Ints
from tapline.training.loop.trainer import Report, train_stage
from tapline.training.traces.aggregate import fit_traces, score_traces
from tapline.training.traces.background import background_hash, halve_background
from tapline.training.traces.features import TraceFeatures, context_features
from tapline.training.traces.flow_embeddings import CHECKPOINT, encode_traces, frozen_features
from tapline.training.traces.joint import JointNetwork, fit_jointly, joint_features, make_table
from tapline.training.traces.packet_encoder import flow_set, new_learner, tune_stage
from tapline.training.traces.trace_config import Phase, TraceAugmentation, decisive
from tapline.training.traces.trace_runs import fit_context


@dataclass(frozen=True)
class TraceFold:
    """What a fold of a variant learns from and is measured on: rows of the corpus, both int64."""

    corpus: TraceCorpus
    variant: Variant
    number: int
    train: Ints
    held: Ints
    report: Report


def cross_validate(
    corpus: TraceCorpus,
    variant: Variant,
    fold_of: Ints,
    folds: Sequence[int],
    directory: Path,
    report: Report = lambda _: None,
) -> list[TraceOutcome]:
    """Train and measure a variant of a trace model on folds, or read what was measured before.

    Raises:
        TrainingError: as `measured_folds`, before anything is trained; or an outcome cannot be written.
    """
    measured = measured_folds(corpus, variant, fold_of, directory)
    outcomes = []
    for fold in folds:
        path = outcome_path(directory, variant, fold)
        if fold not in measured:
            path.parent.mkdir(parents=True, exist_ok=True)
            outcome = _measure(corpus, variant, fold_of, fold, directory, report)
            write_outcome(path, outcome, outcome_fingerprint(corpus, variant, fold_of))
        outcomes.append(read_outcome(path))
    return outcomes


def measured_folds(corpus: TraceCorpus, variant: Variant, fold_of: Ints, directory: Path) -> frozenset[int]:
    """The folds of a variant whose outcomes are in `directory`.

    Raises:
        TrainingError: one of them was measured on something else, or does not say on what, or is damaged.
    """
    paths = sorted((directory / variant.name).glob("fold-*.safetensors"))
    wanted = outcome_fingerprint(corpus, variant, fold_of) if paths else ""
    for path in paths:
        if measured_on(path) != wanted:
            raise TrainingError(
                f"{path}: not measured with these settings, starting weights, traces and folds: give another --out, "
                f"or delete {path.parent} to measure it again"
            )
    return frozenset(fold_number(path) for path in paths)


def outcome_fingerprint(corpus: TraceCorpus, variant: Variant, fold_of: Ints) -> str:
    """A hash of what the outcomes of a variant depend on; how many threads and what device computed them is not."""
    plain = msgspec.to_builtins(
        replace(variant, name="", start=None, left_out=tuple(sorted(set(variant.left_out))), background=())
    )
    plain["config"] = decisive(variant.config, background=bool(variant.background))
    del plain["background"]  # its hash stands for it, so that folds without it are those of before there was any
    strange = [background_hash(variant.background)] if variant.background else []
    shipped = file_sha256(CHECKPOINT / WEIGHTS) if variant.frozen else ""
    return fingerprint(plain, weights_hash(variant.start), shipped, corpus.sha256, fold_of.tolist(), PREFIXES, *strange)


def outcome_path(directory: Path, variant: Variant, fold: int) -> Path:
    """Where the outcome of a fold is kept."""
    return directory / variant.name / f"fold-{fold}.safetensors"


def fold_number(path: Path) -> int:
    """The fold whose outcome is kept there."""
    return int(path.stem.removeprefix("fold-"))


def learning_rows(corpus: TraceCorpus, variant: Variant, fold_of: Ints, fold: int) -> Ints:
    """The traces that a fold learns from, int64 [n]."""
    truth = corpus.truth
    left = np.isin(truth, [corpus.labels.index(label) for label in variant.left_out])
    rows = np.flatnonzero((fold_of != fold) & ~left)
    if variant.captures:
        rng = np.random.default_rng([variant.config.seed, variant.captures, fold])
        rows = few_of_each(truth, rows, variant.captures, rng)
    return rows


def _measure(
    corpus: TraceCorpus, variant: Variant, fold_of: Ints, number: int, directory: Path, report: Report
) -> TraceOutcome:
    rows = learning_rows(corpus, variant, fold_of, number)
    fold = TraceFold(corpus, variant, number, rows, np.flatnonzero(fold_of == number), report)
    if variant.trees:
        return _measure_trees(fold)
    if variant.config.network.encoder == "context":
        return _measure_context(fold)
    if variant.config.mm4flow is not None:
        return _measure_jointly(fold, variant.config.mm4flow.features)
    features = frozen_features(corpus, variant.config.network.context) if variant.frozen else _features(fold, directory)
    network = fit_traces([features[row] for row in rows], corpus.truth[rows], variant.config, None, report)
    return _outcome(fold, network, features)


def _measure_context(fold: TraceFold) -> TraceOutcome:
    corpus, variant, fields = fold.corpus, fold.variant, fold.variant.config.network.context
    halves = halve_background(variant.background, fold.number)
    network = fit_context(corpus.traces, corpus.truth, fold.train, variant.config, None, fold.report, halves.learned)
    outcome = _outcome(fold, network, context_features(corpus.traces, fields))
    if not halves.measured:
        return outcome
    return _with_background(outcome, network, context_features(halves.measured, fields))


def _with_background(outcome: TraceOutcome, network: TraceNetwork, background: Sequence[TraceFeatures]) -> TraceOutcome:
    flows = np.array([len(trace) for trace in background], np.int64)
    return replace(outcome, background=score_traces(network, background).logits, background_flows=flows)


def _measure_jointly(fold: TraceFold, reads: Mm4flowFeatures) -> TraceOutcome:
    corpus, variant = fold.corpus, fold.variant
    halves = halve_background(variant.background, fold.number)
    fitted = fit_jointly(
        corpus.traces, corpus.truth, fold.train, variant.config, variant.start, None, fold.report, halves.learned
    )
    outcome = _outcome(fold, fitted.trace, fitted.features)
    if not halves.measured:
        return outcome
    network = JointNetwork(fitted.encoder, fitted.trace)
    features = joint_features(network, make_table(halves.measured, reads, variant.config.network.context))
    return _with_background(outcome, fitted.trace, features)


def _features(fold: TraceFold, directory: Path) -> list[TraceFeatures]:
    """Features of all traces by an encoder that learned from `train` alone; the encoder is kept beside the outcomes."""
    corpus, variant, config = fold.corpus, fold.variant, fold.variant.config
    network = msgspec.structs.replace(config.network, n_class=len(corpus.labels))
    path = directory / "encoders" / f"{encoder_key(corpus, variant, network, fold.train)}.safetensors"
    learner = new_learner(network, len(corpus.labels), config.seed, variant.start)
    if path.is_file():
        learner.load_state_dict(load_weights(path))
    else:
        stage = tune_stage(learner, flow_set(corpus, fold.train, config), config)
        learner = train_stage(learner, stage, config.loop(config.tune), None, fold.report)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_weights(learner.state_dict(), path)
    return encode_traces(corpus, learner, config)


def encoder_key(corpus: TraceCorpus, variant: Variant, network: TracegramNetwork, train: Ints) -> str:
    """Names what an encoder that learned from the traces `train` depends on, so that variants that differ in phase 1
    alone share it."""
    plain = msgspec.structs.replace(
        variant.config,
        network=msgspec.structs.replace(network, time_encoding=True, queries=1),
        traces=Phase(1, 1, 1, 1.0),
        trace_augmentation=TraceAugmentation(),
    )
    settings = decisive(plain, background=False)
    return fingerprint(settings, weights_hash(variant.start), corpus.sha256, train.tolist())[:16]


def _outcome(fold: TraceFold, network: TraceNetwork, features: Sequence[TraceFeatures]) -> TraceOutcome:
    """What a network says of the traces that are held out; `features` are those of all."""
    held = [features[row] for row in fold.held]
    removals = remove_flows(network, held, 1.0, fold.number, len(fold.corpus.labels))
    prefixes = {flows: score_traces(network, [trace.part(slice(flows)) for trace in held]).logits for flows in PREFIXES}
    logits = score_traces(network, held).logits
    return TraceOutcome(fold.held, logits, prefixes, fold.held[removals.rows], removals.top, removals.random)


def _measure_trees(fold: TraceFold) -> TraceOutcome:
    corpus, variant = fold.corpus, fold.variant
    assert variant.trees
    train, held = ([corpus.traces[row].trace for row in rows] for rows in (fold.train, fold.held))
    truth = corpus.truth[fold.train]
    shares = fit_predict(variant.trees, train, truth, held, len(corpus.labels), variant.config.seed)
    logits, nothing = np.log(shares + 1e-4).astype(np.float32), np.zeros(0)
    return TraceOutcome(fold.held, logits, {}, nothing.astype(np.int64), nothing, nothing)
