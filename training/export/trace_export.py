"""From a run of train-traces to a checkpoint directory. The format belongs to `models.checkpoint`."""

from __future__ import annotations

from pathlib import Path

import msgspec

from tapline.models.checkpoint import Calibration, EarlyVerdict, TracegramCheckpoint, Unknown
from tapline.training.evaluation.evaluation_record import TraceEvaluation, read_trace_evaluation
from tapline.training.evaluation.trace_card import render_trace_card
from tapline.training.export.checkpoint_export import export_traces
from tapline.training.loop.config import TrainingError
from tapline.training.loop.run_files import MODEL, load_weights
from tapline.training.traces.trace_record import TraceRun, read_trace_run


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
    weights = {key: value.numpy() for key, value in load_weights(run / MODEL).items()}
    manifest = _manifest(record, name, version, figures)
    return export_traces(out, manifest, weights, render_trace_card(manifest, record, figures, notes))


def _manifest(record: TraceRun, name: str, version: str, figures: TraceEvaluation | None) -> TracegramCheckpoint:
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
        unknown=Unknown(round(figures.threshold, 4), background),
        early=EarlyVerdict(figures.early.confidence, figures.early.min_flows),
        metrics={"cross_validation": msgspec.to_builtins(figures)},
    )
