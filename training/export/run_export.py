"""From a run of finetune or train-traces to a checkpoint directory with its card. `models.checkpoint` is the format."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from tapline.models.checkpoint import Calibration, Checkpoint, EarlyVerdict, Suspicion, TracegramCheckpoint, Unknown
from tapline.models.context import FlowContext
from tapline.training.data.store import open_samples
from tapline.training.evaluation.evaluation_record import (
    Evaluation,
    EvaluationRecord,
    TraceEvaluation,
    read_evaluation,
    read_trace_evaluation,
)
from tapline.training.evaluation.flow_card import render_card
from tapline.training.evaluation.suspicion import read_suspicion
from tapline.training.evaluation.trace_card import render_trace_card
from tapline.training.export.checkpoint_export import export, export_traces
from tapline.training.flows.flow_record import read_run
from tapline.training.loop.config import TrainingError
from tapline.training.loop.run_files import MODEL, load_weights, scratch_folder
from tapline.training.traces.trace_record import TraceRun, read_trace_run


def manifest_of(directory: Path, name: str, version: str) -> Checkpoint:
    """The manifest that a run is exported with, calibrated where the run was evaluated.

    Raises:
        TrainingError: the run is not a whole fine-tuning run.
    """
    run, record = read_run(directory), read_evaluation(directory)
    background = run.network.n_class > len(run.labels)
    figures = record.figures if record else None
    return Checkpoint(
        kind="mm4flow",
        name=name,
        version=version,
        network=run.network,
        labels=sorted(count.label for count in run.labels),
        features=run.config.features,
        calibration=Calibration(round(figures.temperature, 4)) if figures else Calibration(),
        unknown=Unknown(_threshold(figures.threshold) if figures else 0.0, background),
        context=_calibrated(run.context, figures),
        metrics=_metrics(record),
        provenance={"features": run.features, "encoders": run.encoders, "versions": run.versions},
    )


def _threshold(measured: float) -> float:
    """With four digits, and never above what was measured: of verdicts as sure as it none becomes unknown."""
    return math.floor(round(measured * 1e4, 6)) / 1e4


def _calibrated(context: FlowContext | None, figures: Evaluation | None) -> FlowContext | None:
    """The context of a run, its verdicts without ports calibrated where it was evaluated."""
    if context is None or context.ports is None or figures is None or figures.without_ports is None:
        return context
    without = figures.without_ports
    ports = msgspec.structs.replace(
        context.ports, temperature=round(without.temperature, 4), threshold=_threshold(without.threshold)
    )
    return msgspec.structs.replace(context, ports=ports)


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
    samples = None
    if int8_features:
        stored = open_samples(int8_features, scratch_folder())
        samples = stored.take(stored.with_label(manifest.labels))
        if not len(samples):
            raise TrainingError("--int8: no flow with a label of the run in these features")
    return export(out, manifest, _weights(directory), lambda whole: card_of(directory, whole, notes), samples)


def _metrics(record: EvaluationRecord | None) -> dict[str, Any]:
    return {} if record is None else {"cross_validation" if not record.split else "split": msgspec.to_builtins(record)}


def export_traces_run(
    run: Path, out: Path, name: str, version: str, evaluation: Path | None, notes: str
) -> TracegramCheckpoint:
    """Write a run as the checkpoint directory `out`, calibrated where an evaluation is given.

    Raises:
        TrainingError: the run is no run of train-traces, or the evaluation is missing or damaged.
    """
    record = read_trace_run(run, "train-traces")
    figures = read_trace_evaluation(evaluation) if evaluation else None
    if figures and {row.label for row in figures.classes} - set(record.labels):
        raise TrainingError(
            f"{evaluation}: measured on other labels than {run} learned: give the evaluation of this run"
        )
    if figures and (figures.background is not None) != bool(record.background):
        raise TrainingError(
            f"{evaluation}: one of the two has learned background and the other has not, it or {run}: give the "
            "evaluation of this run"
        )
    suspicion = read_suspicion(evaluation) if evaluation else None
    manifest = trace_manifest(record, name, version, figures)
    if suspicion is not None:
        metrics = {**manifest.metrics, "suspicion": msgspec.to_builtins(suspicion)}
        manifest = msgspec.structs.replace(manifest, suspicion=Suspicion(suspicion.threshold), metrics=metrics)
        if suspicion.nameless is not None:
            unknown = msgspec.structs.replace(manifest.unknown, threshold=_threshold(suspicion.nameless.threshold))
            manifest = msgspec.structs.replace(manifest, unknown=unknown)
    return export_traces(out, manifest, _weights(run), render_trace_card(manifest, record, figures, notes, suspicion))


def trace_manifest(record: TraceRun, name: str, version: str, figures: TraceEvaluation | None) -> TracegramCheckpoint:
    """The manifest that a run is exported with, calibrated by the figures of its evaluation, if any."""
    background = bool(record.background)
    network = msgspec.structs.replace(record.config.network, n_class=len(record.labels) + background)
    plain = TracegramCheckpoint(
        kind="tracegram",
        name=name,
        version=version,
        network=network,
        mm4flow=record.config.mm4flow,
        labels=record.labels,
        features=record.config.features,
        trace=record.config.trace,
        unknown=Unknown(background=background),
        provenance={
            "features": record.features,
            **({"background": record.background} if background else {}),
            "start": record.start,
            "versions": record.versions,
            "config": msgspec.to_builtins(record.config),
        },
    )
    if figures is None:
        return plain
    return msgspec.structs.replace(
        plain,
        calibration=Calibration(round(figures.temperature, 4)),
        unknown=Unknown(_threshold(figures.threshold), background),
        early=EarlyVerdict(figures.early.confidence, figures.early.min_flows),
        metrics={"cross_validation": msgspec.to_builtins(figures)},
    )


def _weights(run: Path) -> dict[str, NDArray[np.float32]]:
    return {key: value.numpy() for key, value in load_weights(run / MODEL).items()}
