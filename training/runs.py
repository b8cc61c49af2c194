"""Run directories: what `tapline-train` reads and leaves behind. Each step writes its files whole or not at all."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.checkpoint import Calibration as CalibrationRecord
from models.checkpoint import Checkpoint, Mm4flowNetwork, Unknown, file_sha256
from training.card import render_card
from training.corpus import Corpus, make_corpus, make_training_set
from training.evaluate import EvaluationSettings, cross_validate, network_of
from training.export import export, serving_weights
from training.finetune import EpochReport, TrainingConfig, TrainingError, fit, new_model
from training.pretrain import pretrain
from training.records import EvaluationRecord, Run
from training.report import Evaluation, evaluate
from training.samples import MANIFEST, read_manifest, read_samples

RUN = "run.json"
LOSSES = "metrics.jsonl"
MODEL = "model.safetensors"
ENCODERS = "encoders.safetensors"
EVALUATION = "evaluation.json"

_PACKAGES = ("numpy", "scikit-learn", "torch")


class RunLog:
    """Appends JSON lines to a run's metrics; the first says what starts."""

    def __init__(self, directory: Path, stage: str, config: TrainingConfig) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._path = directory / LOSSES
        self._stage = stage
        self.write(config=config)

    def write(self, **fields: Any) -> None:
        """Write one line."""
        with self._path.open("ab") as file:
            file.write(msgspec.json.encode({"stage": self._stage, **fields}) + b"\n")


def write_json(path: Path, value: object) -> None:
    """Write a record as indented JSON, through a temporary file."""
    staging = path.with_name(f".{path.name}.{os.getpid()}")
    staging.write_bytes(msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n")
    staging.replace(path)


def pretrain_run(
    features: list[Path], directory: Path, config: TrainingConfig, report: Callable[[EpochReport], None]
) -> None:
    """Pre-train both encoders on every flow of the features, labels unread, and write them to a run directory."""
    torch.set_num_threads(config.threads)
    started = time.monotonic()
    samples = [sample for path in features for sample in read_samples(path)]
    log = RunLog(directory, "pretrain", config)

    def epoch(done: EpochReport) -> None:
        log.write(**vars(done))
        report(done)

    model = pretrain(samples, config, epoch)
    weights = {name: value for name, value in model.state_dict().items() if name.startswith(("ps_enc", "bytes_enc"))}
    _save_weights(weights, directory / ENCODERS)
    network = Mm4flowNetwork(config.d_model, config.n_layer, config.n_head, config.dim_ff, 1)
    write_json(directory / RUN, _run("pretrain", config, 0, features, "", network, None, started))


def finetune_run(
    features: list[Path],
    directory: Path,
    config: TrainingConfig,
    min_captures: int,
    encoders: Path | None,
    report: Callable[[EpochReport], None],
) -> None:
    """Train on all labelled flows, every rare protocol as background, and write weights to a run directory.

    Raises:
        TrainingError: fewer than two labels can be learned, or the loss is not finite.
        SampleError: the features cannot be read.
    """
    torch.set_num_threads(config.threads)
    started = time.monotonic()
    corpus = _read_corpus(features, min_captures)
    data = make_training_set(corpus, corpus.samples, corpus.rare, config)
    network = network_of(corpus, config, background=bool(corpus.rare))
    model = new_model(network, config.seed, read_encoders(encoders))
    log = RunLog(directory, "finetune", config)

    def epoch(done: EpochReport) -> None:
        log.write(**vars(done))
        report(done)

    trained = fit(model, data, config, epoch)
    _save_weights(trained.state_dict(), directory / MODEL)
    (directory / EVALUATION).unlink(missing_ok=True)  # it measured the run before
    made = _run("finetune", config, min_captures, features, _encoders_of(encoders), network, corpus, started)
    write_json(directory / RUN, made)


def evaluate_run(
    features: list[Path],
    directory: Path,
    settings: EvaluationSettings,
    encoders: Path | None,
    report: Callable[[EpochReport], None],
) -> Evaluation:
    """Cross-validate the settings of a fine-tuning run and write the figures beside it.

    Raises:
        TrainingError: the features or encoders are not those of the run, or training fails.
        SplitError: a label has too few captures.
    """
    run = read_run(directory)
    if _features_of(features) != run.features or _encoders_of(encoders) != run.encoders:
        raise TrainingError(
            f"{directory}: made from other features or encoders: give --features and --encoders of the run"
        )
    torch.set_num_threads(run.config.threads)
    started = time.monotonic()
    corpus = _read_corpus(features, run.min_captures)
    outcomes = cross_validate(corpus, run.config, settings, read_encoders(encoders), report)
    figures = evaluate(outcomes, corpus.labels, settings)
    write_json(directory / EVALUATION, EvaluationRecord(settings, figures, time.monotonic() - started))
    return figures


def export_run(directory: Path, out: Path, name: str, version: str, notes: str) -> Checkpoint:
    """Write a run as a checkpoint directory `out`/`name`/`version`, calibrated where the run was evaluated.

    Raises:
        TrainingError: the run is not a whole fine-tuning run.
    """
    run = read_run(directory)
    record = None
    if (directory / EVALUATION).is_file():
        record = msgspec.json.decode((directory / EVALUATION).read_bytes(), type=EvaluationRecord)
    background = run.network.n_class > len(run.labels)
    manifest = Checkpoint(
        kind="mm4flow",
        name=name,
        version=version,
        network=run.network,
        labels=sorted(count.label for count in run.labels),
        features=run.config.features,
        calibration=CalibrationRecord(round(record.figures.temperature, 4)) if record else CalibrationRecord(),
        unknown=Unknown(round(record.figures.threshold, 4) if record else 0.0, background),
        metrics=_metrics(record),
        provenance={"features": run.features, "encoders": run.encoders, "versions": run.versions},
    )
    weights = {key: value.numpy() for key, value in _load_weights(directory / MODEL).items()}
    card = render_card(manifest, run.labels, run.background, run.config, record, run.hardware, run.seconds, notes)
    return export(out / name / version, manifest, serving_weights(weights), card)


def read_run(directory: Path) -> Run:
    """The record of a fine-tuning run.

    Raises:
        TrainingError: the directory holds none.
    """
    try:
        run = msgspec.json.decode((directory / RUN).read_bytes(), type=Run)
    except OSError as error:
        raise TrainingError(f"{directory}: no readable {RUN} ({error.strerror}): expected a run of finetune") from None
    except msgspec.DecodeError as error:
        raise TrainingError(f"{directory / RUN}: {error}") from None
    if run.command != "finetune":
        raise TrainingError(f"{directory}: a run of {run.command}, expected one of finetune")
    return run


def read_encoders(directory: Path | None) -> Mapping[str, Tensor] | None:
    """Weights of pre-trained encoders from a run of pretrain, None without one."""
    return None if directory is None else _load_weights(directory / ENCODERS)


def _read_corpus(features: Iterable[Path], min_captures: int) -> Corpus:
    return make_corpus((sample for path in features for sample in read_samples(path)), min_captures)


def _features_of(features: Iterable[Path]) -> dict[str, str]:
    """Feature directories by name, each with the hash of its manifest, which holds the hashes of its shards."""
    hashes = {}
    for path in features:
        read_manifest(path)
        hashes[path.name] = file_sha256(path / MANIFEST)
    return hashes


def _encoders_of(directory: Path | None) -> str:
    if directory is None:
        return ""
    if not (directory / ENCODERS).is_file():
        raise TrainingError(f"{directory}: no {ENCODERS}: expected a run of pretrain")
    return file_sha256(directory / ENCODERS)


def _save_weights(weights: Mapping[str, Tensor], path: Path) -> None:
    """The decoder of a masked-token head shares its matrix with the embeddings: each name gets a copy of its own."""
    staging = path.with_name(f".{path.name}.{os.getpid()}")
    save_file({name: value.detach().clone().contiguous() for name, value in weights.items()}, staging)
    staging.replace(path)


def _load_weights(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError):
        raise TrainingError(f"{path}: missing or damaged weights: run the step before again") from None


def _run(
    command: str,
    config: TrainingConfig,
    min_captures: int,
    features: list[Path],
    encoders: str,
    network: Mm4flowNetwork,
    corpus: Corpus | None,
    started: float,
) -> Run:
    rare = set(corpus.rare) if corpus else set()
    return Run(
        command=command,
        config=config,
        min_captures=min_captures,
        features=_features_of(features),
        encoders=encoders,
        network=network,
        labels=corpus.counts if corpus else [],
        background=[count for count in corpus.all_counts if count.label in rare] if corpus else [],
        versions={"python": platform.python_version(), **{name: metadata.version(name) for name in _PACKAGES}},
        hardware=f"{platform.machine()}, {config.threads} CPU thread(s)",
        seconds=round(time.monotonic() - started, 1),
    )


def _metrics(record: EvaluationRecord | None) -> dict[str, Any]:
    return {} if record is None else {"cross_validation": msgspec.to_builtins(record)}
