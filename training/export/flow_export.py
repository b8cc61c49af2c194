"""From a run of finetune to a checkpoint directory and its card. The format belongs to `models.checkpoint`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from tapline.models.checkpoint import Calibration, Checkpoint, Unknown
from tapline.training.data.store import open_samples
from tapline.training.evaluation.evaluation_record import EvaluationRecord, read_evaluation
from tapline.training.evaluation.flow_card import render_card
from tapline.training.export.checkpoint_export import export, serving_weights
from tapline.training.flows.flow_record import read_run
from tapline.training.loop.config import TrainingError
from tapline.training.loop.run_files import MODEL, load_weights, scratch_folder


def manifest_of(directory: Path, name: str, version: str) -> Checkpoint:
    """The manifest that a run is exported with, calibrated where the run was evaluated.

    Raises:
        TrainingError: the run is not a whole fine-tuning run.
    """
    run, record = read_run(directory), read_evaluation(directory)
    background = run.network.n_class > len(run.labels)
    return Checkpoint(
        kind="mm4flow",
        name=name,
        version=version,
        network=run.network,
        labels=sorted(count.label for count in run.labels),
        features=run.config.features,
        calibration=Calibration(round(record.figures.temperature, 4)) if record else Calibration(),
        unknown=Unknown(round(record.figures.threshold, 4) if record else 0.0, background),
        metrics=_metrics(record),
        provenance={"features": run.features, "encoders": run.encoders, "versions": run.versions},
    )


def card_of(directory: Path, manifest: Checkpoint, notes: str) -> str:
    """The card of a run."""
    run, record = read_run(directory), read_evaluation(directory)
    return render_card(manifest, run.labels, run.background, run.config, record, run.hardware, run.seconds, notes)


def export_run(
    directory: Path, out: Path, name: str, version: str, notes: str, int8_features: Sequence[Path] = ()
) -> Checkpoint:
    """Write a run as the checkpoint directory `out`.

    With `int8_features` a quantised model is written too, and what it says of the labelled flows there is compared
    with what the whole model says; the comparison is in the manifest's metrics and on the card.

    Raises:
        TrainingError: the run is not a whole fine-tuning run.
    """
    manifest = manifest_of(directory, name, version)
    weights = serving_weights({key: value.numpy() for key, value in load_weights(directory / MODEL).items()})
    samples = None
    if int8_features:
        stored = open_samples(int8_features, scratch_folder())
        samples = stored.take(stored.with_label(manifest.labels))
        if not len(samples):
            raise TrainingError("--int8: no flow with a label of the run in these features")
    return export(out, manifest, weights, lambda whole: card_of(directory, whole, notes), samples)


def _metrics(record: EvaluationRecord | None) -> dict[str, Any]:
    return {} if record is None else {"cross_validation" if not record.split else "split": msgspec.to_builtins(record)}
