"""Cross-validation of trace models over captures: trains every fold and keeps what it said of the traces left out.

A fold's outcome is a file, so that a broken evaluation goes on where it was; it says what it was measured on, and is
not taken for a measurement of anything else. Figures belong to `summary`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file
from torch import Tensor

from tapline.models.checkpoint import WEIGHTS, TracegramNetwork, file_sha256
from tapline.models.encode import Mm4flowFeatures
from tapline.models.tracegram import TraceNetwork
from tapline.training.data.labelled_traces import LabelledTrace, TraceCorpus, few_of_each
from tapline.training.evaluation.attribution import remove_flows
from tapline.training.evaluation.trace_rivals import fit_predict
from tapline.training.loop.config import TrainingError
from tapline.training.loop.run_files import fingerprint, load_weights, save_weights, weights_hash
from tapline.training.loop.trainer import Report, train_stage
from tapline.training.traces.aggregate import (
    TraceFeatures,
    fit_traces,
    score_traces,
)
from tapline.training.traces.background import background_hash, halve_background
from tapline.training.traces.flow_embeddings import CHECKPOINT, encode_traces, frozen_features
from tapline.training.traces.joint import JointNetwork, fit_jointly, joint_features, make_table
from tapline.training.traces.packet_encoder import FlowLearner, flow_set, new_learner, tune_stage
from tapline.training.traces.trace_config import Phase, TraceAugmentation, TraceTrainingConfig, decisive

PREFIXES = (1, 2, 4, 8, 16, 32)
"""Flows after which an early verdict is measured."""

FINGERPRINT = "fingerprint"

TREES: Mapping[str, Literal["header", "sizes"]] = {"trees-header": "header", "trees-sizes": "sizes"}


@dataclass(frozen=True)
class Variant:
    """One way of training that is measured.

    `start`: pre-trained weights of the flow encoder, None without. `captures`: so many of each device to learn from, 0
    all. `left_out`: devices that are not learned, whose confidences are kept. `frozen`: the encoder is the embedding of
    the flow checkpoint as it ships. `trees`: a tree ensemble instead. `background`: traces of anything else; each fold
    learns one half of their captures as a class after the labels, and is measured on the other. Only `main` and
    `unknown` of a run with an MM4flow encoder have it: the other variants compare what is read, and how.
    """

    name: str
    config: TraceTrainingConfig
    start: Mapping[str, Tensor] | None = None
    captures: int = 0
    left_out: tuple[str, ...] = ()
    frozen: bool = False
    trees: Literal["", "header", "sizes"] = ""
    background: Sequence[LabelledTrace] = ()


@dataclass(frozen=True)
class FoldOutcome:
    """What one fold said of traces it did not learn from: `rows` int64 [m] of the corpus, `logits` float32 [m, C], of
    C + 1 where it learned background.

    `prefixes` int64-named: the same after so many flows. `removal_rows` int64 [r] of the corpus, `top` and `random`
    float64 [r]: fall of the confidence without flows (`attribution`). `background` float32 [b, C + 1]
    are the logits of the half of the background that it did not learn, `background_flows` int64 [b] their flows.
    """

    rows: NDArray[np.int64]
    logits: NDArray[np.float32]
    prefixes: dict[int, NDArray[np.float32]]
    removal_rows: NDArray[np.int64]
    top: NDArray[np.float64]
    random: NDArray[np.float64]
    background: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    background_flows: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))


def cross_validate(
    corpus: TraceCorpus,
    variant: Variant,
    fold_of: NDArray[np.int64],
    folds: Sequence[int],
    directory: Path,
    report: Report = lambda _: None,
) -> list[FoldOutcome]:
    """Train and measure a variant on folds, or read what was measured before.

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


def measured_folds(
    corpus: TraceCorpus, variant: Variant, fold_of: NDArray[np.int64], directory: Path
) -> frozenset[int]:
    """The folds of a variant whose outcomes are in `directory`.

    Raises:
        TrainingError: one of them was measured on something else, or does not say on what, or is damaged.
    """
    paths = sorted((directory / variant.name).glob("fold-*.safetensors"))
    if not paths:
        return frozenset()
    wanted = outcome_fingerprint(corpus, variant, fold_of)
    for path in paths:
        if _fingerprint_of(path) != wanted:
            raise TrainingError(
                f"{path}: not measured with these settings, starting weights, traces and folds: give another --out, "
                f"or delete {path.parent} to measure it again"
            )
    return frozenset(int(path.stem.removeprefix("fold-")) for path in paths)


def outcome_fingerprint(corpus: TraceCorpus, variant: Variant, fold_of: NDArray[np.int64]) -> str:
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


def learning_rows(corpus: TraceCorpus, variant: Variant, fold_of: NDArray[np.int64], fold: int) -> NDArray[np.int64]:
    """The traces that a fold learns from, int64 [n]."""
    truth = corpus.truth
    left = np.isin(truth, [corpus.labels.index(label) for label in variant.left_out])
    rows = np.flatnonzero((fold_of != fold) & ~left)
    if variant.captures:
        rng = np.random.default_rng([variant.config.seed, variant.captures, fold])
        rows = few_of_each(truth, rows, variant.captures, rng)
    return rows


def _measure(
    corpus: TraceCorpus,
    variant: Variant,
    fold_of: NDArray[np.int64],
    fold: int,
    directory: Path,
    report: Report,
) -> FoldOutcome:
    train = learning_rows(corpus, variant, fold_of, fold)
    held = np.flatnonzero(fold_of == fold)
    if variant.trees:
        return _measure_trees(corpus, variant.trees, train, held, variant.config.seed)
    if variant.config.mm4flow is not None:
        return _measure_jointly(corpus, variant, variant.config.mm4flow.features, train, held, fold, report)
    features = frozen_features(corpus) if variant.frozen else _features(corpus, variant, fold, train, directory, report)
    network = fit_traces([features[row] for row in train], corpus.truth[train], variant.config, None, report)
    return _outcome(network, [features[row] for row in held], held, fold, len(corpus.labels))


def _measure_jointly(
    corpus: TraceCorpus,
    variant: Variant,
    reads: Mm4flowFeatures,
    train: NDArray[np.int64],
    held: NDArray[np.int64],
    fold: int,
    report: Report,
) -> FoldOutcome:
    halves = halve_background(variant.background, fold)
    fitted = fit_jointly(
        corpus.traces, corpus.truth, train, variant.config, variant.start, None, report, halves.learned
    )
    outcome = _outcome(fitted.trace, [fitted.features[row] for row in held], held, fold, len(corpus.labels))
    if not halves.measured:
        return outcome
    network = JointNetwork(fitted.encoder, fitted.trace)
    features = joint_features(network, make_table(halves.measured, reads), halves.measured)
    return replace(
        outcome,
        background=score_traces(fitted.trace, features).logits,
        background_flows=np.array([len(trace) for trace in features], np.int64),
    )


def _features(
    corpus: TraceCorpus,
    variant: Variant,
    fold: int,
    train: NDArray[np.int64],
    directory: Path,
    report: Report,
) -> list[TraceFeatures]:
    """Features of all traces by an encoder that learned from `train` alone; the encoder is kept beside the outcomes."""
    config = variant.config
    network = msgspec.structs.replace(config.network, n_class=len(corpus.labels))
    path = directory / "encoders" / f"{encoder_key(corpus, variant, network, train)}.safetensors"
    learner = new_learner(network, len(corpus.labels), config.seed, variant.start)
    if path.is_file():
        learner.load_state_dict(load_weights(path))
    else:
        learner = tune_encoder(corpus, train, learner, config, report)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_weights(learner.state_dict(), path)
    return encode_traces(corpus, learner, config)


def encoder_key(corpus: TraceCorpus, variant: Variant, network: TracegramNetwork, train: NDArray[np.int64]) -> str:
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


def tune_encoder(
    corpus: TraceCorpus, rows: NDArray[np.int64], learner: FlowLearner, config: TraceTrainingConfig, report: Report
) -> FlowLearner:
    """Phase 0.5 on the flows of these traces."""
    data = flow_set(corpus, rows, config)
    return train_stage(learner, tune_stage(learner, data, config), config.loop(config.tune), None, report)


def _outcome(
    network: TraceNetwork, features: Sequence[TraceFeatures], held: NDArray[np.int64], fold: int, labels: int
) -> FoldOutcome:
    removals = remove_flows(network, features, 1.0, fold, labels)
    prefixes = {
        count: score_traces(network, [trace.part(slice(count)) for trace in features]).logits for count in PREFIXES
    }
    logits = score_traces(network, features).logits
    return FoldOutcome(held, logits, prefixes, held[removals.rows], removals.top, removals.random)


def _measure_trees(
    corpus: TraceCorpus, kind: Literal["header", "sizes"], train: NDArray[np.int64], held: NDArray[np.int64], seed: int
) -> FoldOutcome:
    shares = fit_predict(
        kind,
        [corpus.traces[row].trace for row in train],
        corpus.truth[train],
        [corpus.traces[row].trace for row in held],
        len(corpus.labels),
        seed,
    )
    nothing = np.zeros(0)
    return FoldOutcome(held, np.log(shares + 1e-4).astype(np.float32), {}, nothing.astype(np.int64), nothing, nothing)


def write_outcome(path: Path, outcome: FoldOutcome, measured_on: str) -> None:
    """Write an outcome with the fingerprint of what it was measured on, whole or not at all.

    Raises:
        TrainingError: it could not be written.
    """
    staging = path.with_name(f".{path.name}")
    strange = ("background", "background_flows") if len(outcome.background) else ()
    tables = {name: getattr(outcome, name) for name in ("rows", "logits", "removal_rows", "top", "random", *strange)}
    tables |= {f"prefix-{count}": logits for count, logits in outcome.prefixes.items()}
    try:
        save_file(
            {name: np.ascontiguousarray(table) for name, table in tables.items()}, staging, {FINGERPRINT: measured_on}
        )
        staging.replace(path)
    except (OSError, SafetensorError) as error:
        raise TrainingError(f"{path}: cannot write the fold ({error}): make room and run it again") from None
    finally:
        staging.unlink(missing_ok=True)


def _fingerprint_of(path: Path) -> str:
    """What an outcome was measured on, "" where it does not say so."""
    try:
        with safe_open(path, framework="numpy") as file:
            return str((file.metadata() or {}).get(FINGERPRINT, ""))
    except (OSError, SafetensorError):
        raise _damaged(path) from None


def _damaged(path: Path) -> TrainingError:
    return TrainingError(f"{path}: damaged: delete it, and evaluate again to measure that fold")


def read_outcome(path: Path) -> FoldOutcome:
    """Read an outcome that `write_outcome` wrote.

    Raises:
        TrainingError: it is damaged.
    """
    try:
        tables = load_file(path)
    except (OSError, SafetensorError):
        raise _damaged(path) from None
    prefixes = {
        int(name.removeprefix("prefix-")): table for name, table in tables.items() if name.startswith("prefix-")
    }
    return FoldOutcome(
        prefixes=prefixes, **{name: table for name, table in tables.items() if not name.startswith("prefix-")}
    )
