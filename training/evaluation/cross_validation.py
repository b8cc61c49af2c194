"""Cross-validation over captures: what a fold of flows or of traces trains, and what it says of those held out.

A fold of traces is kept in a file, so that a broken evaluation goes on where it was; it says what it was measured on,
and is not taken for a measurement of anything else. Figures belong to `flow_figures` and `trace_figures`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tapline.models.checkpoint import WEIGHTS, Mm4flowNetwork, TracegramNetwork, file_sha256
from tapline.models.encode import Mm4flowFeatures
from tapline.models.flow import Flow
from tapline.models.mm4flow import Mm4flow
from tapline.models.tracegram import TraceNetwork
from tapline.training.data.batches import TrainingSet, first_content, prefix
from tapline.training.data.corpus import Corpus, make_training_set
from tapline.training.data.labelled_traces import TraceCorpus, few_of_each
from tapline.training.data.partition import PARTS, Partition
from tapline.training.data.split import SplitError, check_filled, halve_labels, spread_captures
from tapline.training.data.store import StoredFlows, StoredSamples
from tapline.training.evaluation.attribution import remove_flows
from tapline.training.evaluation.evaluation_record import EvaluationSettings
from tapline.training.evaluation.outcomes import (
    FlowOutcome,
    Logits,
    TraceOutcome,
    measured_on,
    read_outcome,
    write_outcome,
)
from tapline.training.evaluation.rivals import PortTable, columns, fit_forest, fit_predict, fit_trees, statistics
from tapline.training.evaluation.trace_figures import PREFIXES
from tapline.training.evaluation.variants import Variant
from tapline.training.flows.finetune import fit, predict
from tapline.training.loop.config import TrainingConfig, TrainingError, network_sizes
from tapline.training.loop.new_networks import new_model
from tapline.training.loop.processes import ALONE, Group
from tapline.training.loop.run_files import fingerprint, load_weights, save_weights, weights_hash
from tapline.training.loop.scores import Ints
from tapline.training.loop.trainer import Report, train_stage
from tapline.training.traces.aggregate import TraceFeatures, fit_traces, score_traces
from tapline.training.traces.background import background_hash, halve_background
from tapline.training.traces.flow_embeddings import CHECKPOINT, encode_traces, frozen_features
from tapline.training.traces.joint import JointNetwork, fit_jointly, joint_features, make_table
from tapline.training.traces.packet_encoder import flow_set, new_learner, tune_stage
from tapline.training.traces.trace_config import Phase, TraceAugmentation, decisive

MIN_CORPUS_FLOWS = 20
"""A corpus is left out once where it holds at least so many flows to be measured on."""
PACKETS_SEEN = (1, 2, 4, 8, 16, 32)
"""Payload packets of a flow after which an early verdict is measured."""
CONTENTS = (0, 4, 8, 16, 32, 64)
"""Content bytes each way that a verdict on a flow is measured with."""

Int8Logits = Callable[[Mm4flow, Mm4flowNetwork, Sequence[Flow], Mm4flowFeatures], Logits]
"""What the quantised form of a model says of flows, in order, float32 [n, classes]."""


@dataclass(frozen=True)
class Fold:
    """What a fold of flows learns from, and what it is measured on: flows of known labels, and of labels never
    learned. `corpus` is what was left out, "" for captures of any."""

    number: int
    data: TrainingSet
    background: bool
    held: StoredSamples
    strange: StoredSamples
    corpus: str = ""


def network_of(corpus: Corpus, config: TrainingConfig, *, background: bool) -> Mm4flowNetwork:
    """The sizes of the network for these labels."""
    return network_sizes(config, len(corpus.labels) + background)


def flow_folds(corpus: Corpus, config: TrainingConfig, settings: EvaluationSettings) -> Iterator[Fold]:
    """The folds of the captures. Half of the rare protocols, another half each time, is background to train on.

    Raises:
        SplitError: a label has fewer than two captures.
        TrainingError: a label has no flow to train on in some fold.
    """
    samples = corpus.samples
    fold_of = spread_captures(corpus.known().held(), corpus.labels, settings.folds, settings.seed)
    check_filled(settings.folds, fold_of.values())
    for fold in range(settings.folds):
        background, unseen = halve_labels(corpus.rare, fold)
        aside = samples.in_captures(capture for capture, of in fold_of.items() if of == fold)
        data = make_training_set(corpus, samples.take(~aside), background, config)
        held = samples.take(aside & samples.with_label(corpus.labels))
        yield Fold(fold, data, bool(background), held, samples.take(samples.with_label(unseen)))


def corpus_folds(corpus: Corpus, config: TrainingConfig, settings: EvaluationSettings) -> Iterator[Fold]:
    """A fold for each corpus with `MIN_CORPUS_FLOWS` flows to measure: all others are learned from, half of their rare
    protocols, another half each time, as background.

    Flows that the model cannot tell from one that it learned from are not measured. A label that no other corpus bears
    is one that was never learned.

    Raises:
        SplitError: fewer than two corpora have flows enough.
    """
    samples, of = corpus.samples, corpus.samples.corpora()
    names = dict(zip(of.tolist(), (name.partition("/")[0] for name in samples.captures_of()), strict=True))
    kinds = samples.flows.kinds(config.features.payload_lengths, config.features.content_bytes)
    known = samples.with_label(corpus.labels)

    def is_new(aside: NDArray[np.bool_], learned: NDArray[np.bool_]) -> NDArray[np.bool_]:
        return aside & ~np.isin(kinds, kinds[learned])

    def is_held(aside: NDArray[np.bool_]) -> NDArray[np.bool_]:
        return is_new(aside, ~aside & known) & np.isin(samples.labels, samples.labels[~aside & known])

    flows = {number: int(is_held(of == number).sum()) for number in names}
    measured = [number for number in names if flows[number] >= MIN_CORPUS_FLOWS]
    if len(measured) < 2:
        held = ", ".join(f"{name} {flows[number]}" for number, name in names.items())
        raise SplitError(
            f"two corpora with {MIN_CORPUS_FLOWS} flows are needed, of labels that others bear too and without their "
            f"like there, and these hold: {held}; label more, and extract each corpus from a folder of its own"
        )
    for fold, number in enumerate(measured):
        aside = of == number
        background, unseen = halve_labels(corpus.rare, settings.seed + fold)
        data = make_training_set(corpus, samples.take(~aside), background, config, some_absent=True)
        learned = ~aside & samples.with_label({*corpus.labels, *background})
        never = (known & ~np.isin(samples.labels, samples.labels[learned])) | samples.with_label(unseen)
        strange = samples.take(is_new(aside, learned) & never)
        yield Fold(fold, data, bool(background), samples.take(is_held(aside)), strange, names[number])


def parts_of(corpus: Corpus, config: TrainingConfig, partition: Partition) -> Iterator[Fold]:
    """Validation and test of a split, as folds of which the first may have served to choose settings.

    Raises:
        SplitError: one of them has no known flow.
    """
    background, unseen = halve_labels(corpus.rare, 0)
    known, strange = corpus.known(), corpus.samples.take(corpus.samples.with_label(unseen))
    parts, strange_parts = partition.parts(known), partition.parts(strange)
    data = make_training_set(corpus, corpus.samples.take(partition.parts(corpus.samples) == 0), background, config)
    for fold, part in enumerate((1, 2)):
        held = known.take(parts == part)
        if not len(held):
            raise SplitError(
                f"the split has no known flow for {PARTS[part]}: split again, with more captures of each label; or "
                "train and evaluate without --split"
            )
        yield Fold(fold, data, bool(background), held, strange.take(strange_parts == part))


def train_fold(
    fold: Fold,
    corpus: Corpus,
    config: TrainingConfig,
    encoders: Mapping[str, Tensor] | None,
    report: Report,
    group: Group = ALONE,
) -> Mm4flow:
    """The model of a fold.

    Raises:
        TrainingError: the encoders are of another size, or the loss is not finite.
    """
    model = new_model(network_of(corpus, config, background=fold.background), config.seed, encoders)
    return fit(model, fold.data, config, report, group=group)


def measure_flows(
    fold: Fold, corpus: Corpus, config: TrainingConfig, model: Mm4flow, int8: Int8Logits | None = None
) -> FlowOutcome:
    """Measure a model trained on the data of a fold, and simpler ones, on its held and its strange flows."""
    data, held, strange = fold.data, fold.held, fold.strange
    seen = data.truth < len(corpus.labels)
    flows, truth = data.flows, data.truth[seen]
    assert isinstance(flows, StoredFlows)
    known = flows.take(seen)
    trees = fit_trees(known, truth, config.seed, config.threads)
    forest = fit_forest(known, truth, config.seed, config.threads)
    shares = trees.predict_proba(columns(held.flows))
    unknown_shares = trees.predict_proba(columns(strange.flows)) if len(strange) else np.zeros((0, 1))
    features, network = config.features, network_of(corpus, config, background=fold.background)
    small = int8(model, network, held.flows, features) if int8 else np.zeros((0, network.n_class), np.float32)
    return FlowOutcome(
        fold=fold.number,
        captures=held.captures_of(),
        truth=corpus.truth(held),
        logits=predict(model, held.flows, features),
        prefixes={n: predict(model, [prefix(flow, n) for flow in held.flows], features) for n in PACKETS_SEEN},
        contents={n: predict(model, [first_content(flow, n) for flow in held.flows], features) for n in CONTENTS},
        unknown_captures=strange.captures_of(),
        unknown_logits=predict(model, strange.flows, features),
        trees=trees.classes_[shares.argmax(axis=1)],
        trees_confidence=shares.max(axis=1),
        trees_unknown_confidence=unknown_shares.max(axis=1),
        forest=forest.predict(statistics(held.flows)),
        ports=PortTable(known, truth, data.captures[seen]).predict(held.flows, len(corpus.labels)),
        corpus=fold.corpus,
        majority=int(np.bincount(truth).argmax()),
        int8=np.asarray(small[:, : len(corpus.labels)].argmax(axis=1), np.int64),
    )


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
    if variant.config.mm4flow is not None:
        return _measure_jointly(fold, variant.config.mm4flow.features)
    features = frozen_features(corpus) if variant.frozen else _features(fold, directory)
    network = fit_traces([features[row] for row in rows], corpus.truth[rows], variant.config, None, report)
    return _outcome(fold, network, features)


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
    features = joint_features(network, make_table(halves.measured, reads), halves.measured)
    flows = np.array([len(trace) for trace in features], np.int64)
    return replace(outcome, background=score_traces(fitted.trace, features).logits, background_flows=flows)


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
